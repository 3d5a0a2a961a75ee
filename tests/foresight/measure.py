"""What the tests ask of the library: weights that are to be sparse, scores, masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import foresight
from gossamer.foresight.probe import Probe
from gossamer.foresight.saliency import Saliency
from gossamer.targets import choose
from gossamer.topology import Entries

Tensors = dict[str, Tensor]


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {row.name: row.parameter for row in choose(model, None) if row.sparse}


def names(model: nn.Module) -> list[str]:
    return list(weights(model))


def scores(model: nn.Module, saliency: Saliency, masks: Mapping[str, Tensor] | None = None) -> Tensors:
    """What the first round of a saliency ranks by, at the initial weights under the masks; 0 off them."""
    probe = Probe(model, weights(model), saliency.examples, saliency.ones, saliency.batches)
    probe.masks = dict(masks or {n: torch.ones_like(w, dtype=torch.bool) for n, w in probe.weights.items()})
    found = saliency.objective.gradient(probe)
    entries = {name: Entries(w.detach(), probe.masks[name], found[name]) for name, w in probe.weights.items()}
    return {name: saliency.objective.score(e) * e.active for name, e in entries.items()}


def masks(model: nn.Module, saliency: Saliency, density: float, **arguments: Any) -> Tensors:
    return {n: support.mask for n, support in foresight.find(model, saliency, density, **arguments).items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def counts(found: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in found.items()}
