"""Bytes of the cost table: of a network before it trains, while it trains, and as it is stored."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..foresight import Saliency
from ..foresight.objectives import GradientFlow
from ..method import Method
from ..nn._drawing import draw_positions
from ..nn.convolution import SparseConv2d
from ..nn.layer_shape import LayerShape
from ..nn.linear import SparseLinear
from ..topology import Static, Support, scores
from .ledger import HELD, at_count, cheapest_index, entries
from .work import Work

VALUE, SEED = 4, 8  # bytes of a float32, and of the seed that a random static support is drawn from


@dataclass(frozen=True)
class Amount:
    """FLOPs or bytes: in theory, executed on masked weights, executed by sparse or hybrid layers (None: cannot be)."""

    theory: float
    masked: float
    sparse: float | None


def held(works: Sequence[Work], counts: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of weights, gradients, optimizer slots and indices at these counts, in theory and as executed."""
    theory = executed = 0
    for work in works:
        now = at_count(work, counts.get(work.name, work.numel))
        if now.execution in ("sparse", "hybrid") and now.shape is not None:
            now = replace(now, index_bytes=index_bytes(now.shape, now.count))
        kept = [entry for entry in entries(now) if entry.phase in HELD[:-1]]  # all but activations
        theory += sum(entry.bytes for entry in kept)
        executed += sum(entry.bytes_executed for entry in kept)
    return theory, executed


@functools.lru_cache(maxsize=4096)
def index_bytes(shape: LayerShape, count: int) -> int:
    """Bytes of the index of a sparse layer of that shape, which is made for a random support of that count."""
    if count == 0:
        return 0
    positions = draw_positions(shape.numel, count, torch.Generator().manual_seed(0))
    support = Support.from_index(positions, shape.weight)
    layer: Any
    if shape.kind == "linear":
        layer = SparseLinear(shape.weight[1], shape.weight[0], bias=False, support=support)
    else:
        outputs, inputs, *kernel = shape.weight
        taps: Any = tuple(kernel)
        layer = SparseConv2d(inputs * shape.groups, outputs, taps, groups=shape.groups, bias=False, support=support)
    return int(layer.index.nbytes)


def first_bytes(sizes: Mapping[str, int], method: object, counts: Mapping[str, int]) -> Amount:
    """Bytes of the weights before the first step, and of what scores them.

    In theory a support that is drawn needs its weights only, one that is scored all weights and their gradients. The
    library makes the dense model before it masks or converts it (but for layers made with a density); a score works on
    masked copies of the weights, SynFlow in float64, GraSP with a second gradient.
    """
    total = VALUE * sum(sizes.values())
    if not isinstance(method, Method):
        return Amount(total, total, None)
    mask = total // VALUE
    if isinstance(method.init, Saliency):
        wide = 2 if method.init.objective.data == "inputs" else 1
        second = 2 * total if isinstance(method.init.objective, GradientFlow) else 0
        scored = total + 2 * wide * total + second + mask
        return Amount(2 * total, scored, scored)
    drawn = method.init is scores.random and not method.starts_dense
    return Amount(stored(sizes, method, counts) if drawn else total, total + mask, total + mask)


def stored(sizes: Mapping[str, int], method: object, counts: Mapping[str, int]) -> int:
    """Bytes of the active values and the cheapest index of every weight: none, a seed, bits or 16-bit positions."""
    if method is None:
        return VALUE * sum(sizes.values())
    drawn = isinstance(method, Method) and method.init is scores.random and isinstance(method.rule, Static)
    return sum(
        min(VALUE * size, VALUE * counts[name] + (SEED if drawn else cheapest_index(counts[name], size)))
        for name, size in sizes.items()
    )


def bitmask_bytes(count: int, numel: int) -> int:
    """Bytes of `count` of `numel` values with one bit for each entry, as the authors of RigL count them."""
    return VALUE * count + math.ceil(numel / 8)
