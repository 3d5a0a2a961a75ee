"""RigL's rewiring of one sparse weight, at once: what the rule would choose, from the few entries that matter to it.

Of the active entries those of the smallest magnitude go. They and the inactive entries compete for their places by
the magnitude of their gradients, and of the inactive ones only those are looked at that may win. So nothing is sorted,
and next to nothing is computed for the entries that neither go nor come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .kernels.screen import Product
from .kernels.select import largest
from .topology import DropGrow, Rule, Structure, Unstructured, as_schedule, scores

_MARGINS = (1.25, 2.0)  # how many more than are wanted the first, and the second, limit is meant to let pass
_SAMPLED = 1 << 14  # magnitudes of each kind that a limit is read off


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
    index: Tensor, values: Tensor, gradient: Tensor, product: Product, n_dropped: int, total: int
) -> tuple[Tensor, Tensor] | None:
    """The mask of the values that stay and the flat positions, ascending, that come; None: ask the general way.

    index: of the active entries. values, gradient: theirs. product: the gradient of the whole weight.
    """
    kept = largest(values, len(values) - n_dropped)
    if kept is None:
        return None
    gone = _numbers(~kept)
    missing, own = total - len(values) + len(gone), gradient.index_select(0, gone).abs_()
    samples = [
        _Sample.of(own, len(own)),
        _Sample.of(gradient, -len(gradient)),  # active entries are in the product too
        _Sample.of(product.sample(), product.size),
    ]
    for margin in _MARGINS:
        found = _grown(product, index, own, missing, _limit(samples, margin * missing))
        if found is not None:
            revived, born = found
            kept.index_fill_(0, gone.index_select(0, revived), True)
            return kept, born
    return None


class _Sample(NamedTuple):
    """Some of many magnitudes, ascending; and how many each stands for, negative if they are to be taken away."""

    sizes: np.ndarray
    weight: float

    @classmethod
    def of(cls, values: Tensor, total: int) -> _Sample:
        some = values[:: max(1, len(values) // _SAMPLED)]
        return cls(np.sort(np.abs(some.numpy())), total / max(1, len(some)))

    def above(self, limit: float) -> float:
        """About how many there are above it."""
        return self.weight * float(len(self.sizes) - np.searchsorted(self.sizes, limit, side="right"))


def _limit(samples: Sequence[_Sample], wanted: float) -> float:
    """What about as many magnitudes exceed as are wanted: one of the last sample."""
    sizes = samples[-1].sizes
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high + 1) // 2
        many = sum(each.above(sizes[middle]) for each in samples)
        low, high = (middle, high) if many >= wanted else (low, middle - 1)
    return float(sizes[low])


def _grown(product: Product, index: Tensor, own: Tensor, missing: int, limit: float) -> tuple[Tensor, Tensor] | None:
    """Numbers of the dropped entries, and inactive positions, of the largest gradients; None: the limit was amiss."""
    others = product.beyond(limit, index, 4 * missing + 1024)
    if others is None or len(own) + len(others) < missing:
        return None
    sizes = torch.cat([own, product.at(others).abs_()])
    chosen = largest(sizes, missing, first=len(own))  # own ones win ties
    if chosen is None or _smallest(sizes, chosen) <= limit:  # what was not looked at could be as large
        return None
    return _numbers(chosen[: len(own)]), others.index_select(0, _numbers(chosen[len(own) :]))


def _smallest(values: Tensor, of: Tensor) -> float:
    return float(values.masked_fill(~of, math.inf).min())


def _numbers(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than torch's own
