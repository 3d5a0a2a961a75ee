"""RigL's rewiring of one sparse weight, at once: what the rule would choose, from the few entries that matter to it.

Of the active entries those of the smallest magnitude go. They and the inactive entries compete for their places by
the magnitude of their gradients, and of the inactive ones only those are looked at that may win. So nothing is sorted,
and next to nothing is computed for the entries that neither go nor come.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .kernels import rewire
from .kernels.screen import Product
from .kernels.select import split
from .topology import DropGrow, Rule, Structure, Unstructured, as_schedule, scores, select_top

_MARGINS = (1.2, 2.0)  # how many more than are wanted the first, and the second, limit is meant to let pass


def dropped(rule: Rule, structure: Structure, held: int, total: int, step: int) -> int | None:
    """How many of ``held`` active entries go; None if this is not the rule, or there is nothing to exchange."""
    if not isinstance(rule, DropGrow) or not isinstance(structure, Unstructured):
        return None
    plain = rule.quota is None and not rule.grace and rule.revive
    if not plain or rule.fraction is None or rule.drop is not scores.magnitude or rule.grow is not scores.gradient:
        return None
    fraction = as_schedule(rule.fraction)(step)
    keep = min(held - math.floor(fraction * held), total)
    return held - keep if 0 <= fraction <= 1 and keep < total else None


def exchanged(
    positions: Tensor, order: Tensor, values: Tensor, gradient: Tensor, product: Product, n_dropped: int, total: int
) -> Tensor | None:
    """Flat positions, ascending, of the next support; None where only the general way can tell.

    positions, order: of the active entries, see `kernels.rewire.ascending`. values, gradient: theirs, as stored.
    product: the gradient of the whole weight.
    """
    kept = _largest(values[order], None, len(values) - n_dropped)
    if kept is None:
        return None
    gone = torch.from_numpy(np.flatnonzero(~kept.numpy()))
    missing, own = total - len(values) + n_dropped, gradient[order[gone]].abs()
    sample = product.sample().abs()
    for margin in _MARGINS:
        found = _grown(product, positions, own, missing, _limit(sample, margin * missing / product.size))
        if found is not None:
            revived, born = found
            kept[gone[revived]] = True
            return rewire.union(positions[torch.from_numpy(np.flatnonzero(kept.numpy()))], born)
    return None


def _limit(sample: Tensor, share: float) -> float:
    """What about this share of the entries exceeds, going by a sample of them."""
    count = min(len(sample), math.ceil(share * len(sample)) + 8)
    return float(sample[select_top([sample], count)[0]].min()) if bool(sample.isfinite().all()) else 0.0


def _grown(
    product: Product, positions: Tensor, own: Tensor, missing: int, limit: float
) -> tuple[Tensor, Tensor] | None:
    """Which of the dropped entries, and which inactive positions, have the largest gradients; None: of a limit amiss."""
    others = product.beyond(limit, positions, 4 * missing + 1024)
    if others is None or len(own) + len(others) < missing:
        return None
    sizes = torch.cat([own, product.at(others).abs()])
    before = torch.arange(len(sizes)) < len(own)  # these win ties
    chosen = _largest(sizes, before, missing)
    if chosen is None or float(sizes[chosen].min()) <= limit:  # what was not looked at could be as large
        return None
    return chosen[: len(own)], others[chosen[len(own) :]]


def _largest(values: Tensor, first: Tensor | None, count: int) -> Tensor | None:
    """The mask of the largest magnitudes; ties go to those in ``first``, then to lower numbers."""
    first = torch.ones(values.shape, dtype=torch.bool) if first is None else first
    masks = split([values], [first], [torch.empty_like(values)], count)
    return None if masks is None else masks[0]
