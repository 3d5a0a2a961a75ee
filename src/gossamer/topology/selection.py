"""Exact selection of the highest scores, without a full sort.

The threshold is the count-th largest score. A strided sample of the scores gives two values that most likely enclose
it; one pass counts what lies beyond them, and the same is done to the few scores between them. A sample that misleads
costs another pass, never a wrong answer. On the CPU, numpy's comparison and counting are several times faster than
torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DivergedError

SMALL = 1 << 11  # up to here all scores are partitioned; on many ties numpy's partition becomes slow


@dataclass(frozen=True)
class _Arrays:
    """The array operations that numpy and torch name differently; comparing, slicing and bit logic they share."""

    wrap: Callable[[Tensor], Any]
    unwrap: Callable[[Any], Tensor]
    concat: Callable[[Sequence[Any]], Any]
    count: Callable[[Any], int]  # of True
    positions: Callable[[Any], Any]  # of True
    pick: Callable[[Any, Any], Any]  # (array, mask)
    sort: Callable[[Any], Any]  # of a sample
    kth: Callable[[Any, int], Any]  # k-th largest, k from 1
    chunk: int  # entries looked at at a time: what fits the cache, or everything


_NUMPY = _Arrays(
    wrap=Tensor.numpy,
    unwrap=torch.from_numpy,
    concat=np.concatenate,
    count=np.count_nonzero,
    positions=np.flatnonzero,
    pick=lambda array, mask: array[np.flatnonzero(mask)],
    sort=np.sort,
    kth=lambda values, k: np.partition(values, len(values) - k)[len(values) - k],
    chunk=1 << 18,
)
_TORCH = _Arrays(
    wrap=lambda tensor: tensor,
    unwrap=lambda tensor: tensor,
    concat=lambda parts: torch.cat(list(parts)),
    count=lambda mask: int(torch.count_nonzero(mask)),
    positions=lambda mask: mask.nonzero().view(-1),
    pick=lambda array, mask: array[mask],
    sort=lambda values: values.sort().values,
    kth=lambda values, k: values.sort().values[len(values) - k],  # kthvalue is not deterministic on CUDA
    chunk=1 << 62,
)


def select_top(scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return bool masks, in the shapes of ``scores``, of the ``count`` highest scores of the whole sequence.

    Exactly ``count`` entries are True in total. Order: higher score first; then active first; then lower index (an
    earlier tensor of the sequence, then a lower flat index). ``+inf`` and ``-inf`` force entries in and out; ``-0.0``
    equals ``0.0``. The result depends on nothing else.

    Raises:
        ConfigError: ``count`` is negative or above the number of scores, or scores are not floating point.
        DivergedError: a score is NaN.

    >>> select_top([torch.tensor([1.0, 5.0, 1.0]), torch.tensor([2.0, 1.0])], 3)
    [tensor([ True,  True, False]), tensor([ True, False])]
    """
    total = sum(score.numel() for score in scores)
    if not 0 <= count <= total:
        raise ConfigError(f"cannot select {count} of {total} entries")
    flat = comparable(scores)
    check_no_nan(flat)
    if count in (0, total):
        return [torch.full(s.shape, count > 0, dtype=torch.bool, device=s.device) for s in scores]
    ops = _NUMPY if all(part.device.type == "cpu" for part in flat) else _TORCH
    parts = [ops.wrap(part) for part in flat]
    known = None if active is None else [ops.wrap(a.detach().reshape(-1)) for a in active]
    masks = _masks(ops, parts, _kth_largest(ops, parts, count), count, known)
    return [ops.unwrap(mask).view(score.shape) for mask, score in zip(masks, scores, strict=True)]


def count_true(mask: Tensor) -> int:
    """Return the number of True entries of a bool tensor."""
    if mask.device.type == "cpu":
        return int(np.count_nonzero(mask.numpy()))
    return int(torch.count_nonzero(mask))


def comparable(scores: Sequence[Tensor]) -> list[Tensor]:
    """Return flat contiguous scores of one dtype in which comparing is exact: half types become float32.

    Raises:
        ConfigError: scores are not floating point.
    """
    for score in scores:
        if not score.is_floating_point():
            raise ConfigError(f"scores must be floating point, got {score.dtype}; use .float()")
    half = (torch.float16, torch.bfloat16)
    flat = [s.detach().to(torch.float32 if s.dtype in half else s.dtype).reshape(-1) for s in scores]
    if len({part.dtype for part in flat}) > 1:
        flat = [part.to(torch.float64) for part in flat]
    return flat


def check_no_nan(flat: Sequence[Tensor]) -> None:
    """Raise DivergedError if one of the tensors holds a NaN."""
    for place, part in enumerate(flat):
        if part.numel() and _smallest_is_nan(part):
            where = f" in tensor {place} of {len(flat)}" if len(flat) > 1 else ""
            raise DivergedError(f"a score is NaN{where}: the weights or gradients it came from have diverged")


def _smallest_is_nan(part: Tensor) -> bool:
    # The minimum is NaN if anything is, and takes one pass without a buffer.
    if part.device.type != "cpu":
        return bool(part.min().isnan())
    with np.errstate(invalid="ignore"):
        return bool(np.isnan(part.numpy().min()))


def _kth_largest(ops: _Arrays, parts: Sequence[Any], k: int) -> Any:
    """Return the k-th largest value over all parts, 1 <= k <= total."""
    total = sum(map(len, parts))
    if total > SMALL:
        for low, high in _brackets(ops, parts, k):
            scans = [_scan(ops, chunk, low, high) for chunk in _chunks(ops, parts)]
            beyond, within = sum(scan[0] for scan in scans), sum(scan[1] for scan in scans)
            if beyond < k <= within and within - beyond <= total // 2:  # always fewer, so that this ends
                return _kth_largest(ops, [ops.concat([scan[2] for scan in scans])], k - beyond)
            # Many equal scores: the threshold often is one of the two ends itself.
            if beyond >= k > sum(ops.count(part > high) for part in parts):
                return high
            if within < k <= sum(ops.count(part >= low) for part in parts):
                return low
    return ops.kth(ops.concat(parts), k)


def _scan(ops: _Arrays, chunk: Any, low: Any, high: Any) -> tuple[int, int, Any]:
    """Return how many values are >= high and > low, and those between."""
    beyond, within = chunk >= high, chunk > low
    return ops.count(beyond), ops.count(within), ops.pick(chunk, within > beyond)


def _chunks(ops: _Arrays, parts: Sequence[Any]) -> list[Any]:
    return [part[at : at + ops.chunk] for part in parts for at in range(0, len(part), ops.chunk)]


def _brackets(ops: _Arrays, parts: Sequence[Any], k: int) -> Iterator[tuple[Any, Any]]:
    """Yield (low, high) around the k-th largest value: a narrow pair, then a wide one for an unlucky sample."""
    total = sum(map(len, parts))
    stride = round(total ** (1 / 3))  # balances the size of the sample and the number of values in the bracket
    while math.gcd(stride, 2 * 3 * 5 * 7 * 11 * 13) > 1:  # keep out of step with rows and kernels
        stride += 1
    sample = ops.sort(ops.concat([part[::stride] for part in parts]))
    size, share = len(sample), k / total
    for deviations in (3, 24):
        margin = deviations * (math.sqrt(size * share * (1 - share)) + 1)
        upper, lower = int(share * size - margin), math.ceil(share * size + margin)
        high = sample[size - upper] if upper >= 1 else math.inf
        low = sample[size - lower] if lower <= size else -math.inf
        yield low, high


def _masks(ops: _Arrays, parts: Sequence[Any], threshold: Any, k: int, active: list[Any] | None) -> list[Any]:
    """Return the masks of exactly ``k`` entries, given the k-th largest value."""
    masks = [part >= threshold for part in parts]
    surplus = sum(map(ops.count, masks)) - k
    if not surplus:
        return masks
    ties = [part == threshold for part in parts]
    need = sum(map(ops.count, ties)) - surplus
    masks = [mask ^ tie for mask, tie in zip(masks, ties, strict=True)]
    groups = [ties]
    if active is not None:
        first = [tie & known for tie, known in zip(ties, active, strict=True)]
        groups = [first, [tie ^ one for tie, one in zip(ties, first, strict=True)]]
    for group in groups:
        for tie in _chunks(ops, group):
            need -= _keep_first(ops, tie, need)
        for mask, tie in zip(masks, group, strict=True):
            mask |= tie
    return masks


def _keep_first(ops: _Arrays, mask: Any, n: int) -> int:
    """Clear all but the first ``n`` True entries in place; return how many are left."""
    found = int(ops.count(mask))
    if found <= n:
        return found
    mask[int(ops.positions(mask)[n - 1]) + 1 if n else 0 :] = False
    return n
