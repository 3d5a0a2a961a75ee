"""What `Block` and `Channels` share: entries come and go in whole units, rectangles of a matrix."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError
from ..selection import check_no_nan, comparable, count_true, select_top
from .base import one_weight

Sizes = tuple[tuple[int, int], ...]  # how many entries units have, the largest first, and how many units have as many


class Units(ABC):
    """A structure of whole units: a grid of rectangles over matrices (rows, columns, kernel positions).

    p: a unit's score is the p-norm of the scores in it: (sum sign(s) |s|^p)^(1/p), the largest one for p = inf. Units
    at the edges are padded: they count, and score by, the entries that they really have.
    """

    p: float
    single = True

    @property
    @abstractmethod
    def name(self) -> str:
        """How it is printed."""

    @abstractmethod
    def _matrix(self, values: Tensor) -> Tensor:
        """(out, in, *kernel) -> (rows, columns, positions)."""

    @abstractmethod
    def _restored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The reverse."""

    @abstractmethod
    def _unit(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of a unit in such a weight."""

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return the number of entries nearest to ``count`` that whole units can have, at least one unit.

        Of two equally near ones the larger.

        Raises:
            ConfigError: the weight is no matrix or convolution.
        """
        sizes = self._sizes(shape)
        return _nearest(count, sizes) if sizes else 0

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the mask of the best units, ``count`` entries in all.

        Order: higher score; then active (any entry of it); then the lower index of the first entry. Where units have
        different sizes, at edges, a unit is taken if the count can still be met exactly with those below it.

        Raises:
            ConfigError: more than one weight, or a count that whole units cannot have.
            DivergedError: a score is NaN.
        """
        score = one_weight(self.name, scores)
        sizes = self._sizes(score.shape)
        if count and not _makes(count, sizes):
            near = self.round(count, score.shape) if count > 0 else 0
            raise ConfigError(
                f"cannot select {count} entries in whole units ({self.name}) from shape {tuple(score.shape)}; "
                f"possible is {near}"
            )
        flat = comparable(scores)
        check_no_nan(flat)
        values = self._scores(flat[0].view(score.shape))
        known = None if active is None else self._any(active[0])
        if len(sizes) < 2:
            most = count // sizes[0][0] if sizes else 0
            (chosen,) = select_top([values], most, None if known is None else [known])
        else:
            chosen = self._exactly(values, known, count, score.shape)
        return [self._spread(chosen, score.shape)]

    def keep(self, score: Tensor, active: Tensor, count: int) -> Tensor:
        """Drop whole active units, the lowest scores first, while at least ``count`` entries stay; return the mask.

        All of a unit is active or none of it. For rules that drop before they grow.

        Raises:
            DivergedError: a score is NaN.
        """
        (flat,) = comparable([score])
        check_no_nan([flat])
        held = self._any(active)
        values = torch.where(held, self._scores(flat.view(score.shape)), -torch.inf)
        ranked = _ranked(values, held)[: count_true(held)].flip(0)  # the active, the worst first
        gone = self._counts(score.shape).to(ranked.device).view(-1)[ranked].cumsum(0) <= count_true(active) - count
        kept = held.clone()
        kept.view(-1)[ranked[gone]] = False
        return self._spread(kept, score.shape)

    def is_valid(self, mask: Tensor) -> bool:
        """Whether every unit is active as a whole or not at all."""
        if mask.dim() < 2:
            return False
        return torch.equal(self._spread(self._any(mask), mask.shape), mask)

    def largest(self, shape: Sequence[int]) -> int:
        """Return how many entries the largest unit of such a weight has."""
        sizes = self._sizes(shape)
        return sizes[0][0] if sizes else 0

    def smallest(self, shape: Sequence[int]) -> int:
        """Return how many entries the smallest unit of such a weight has, at an edge."""
        sizes = self._sizes(shape)
        return sizes[-1][0] if sizes else 0

    # -- units --

    def _checked(self, shape: Sequence[int]) -> tuple[int, int, int]:
        if len(shape) < 2:
            raise ConfigError(
                f"{self.name} needs weights (out, in, ...), got shape {tuple(shape)}; leave such weights out with "
                "targets"
            )
        rows, columns, positions = self._matrix(torch.empty(tuple(shape), device="meta")).shape
        return rows, columns, positions

    def _clipped(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of a unit, no more than the weight has: a grid is never padded to a larger one."""
        (rows, columns, _), (height, width) = self._checked(shape), self._unit(shape)
        return min(height, max(rows, 1)), min(width, max(columns, 1))

    def _sizes(self, shape: Sequence[int]) -> Sizes:
        return _sizes(*self._checked(shape), *self._clipped(shape)) if math.prod(shape) else ()

    def _counts(self, shape: Sequence[int]) -> Tensor:
        """How many entries each unit has: (rows, columns, positions) of the grid."""
        rows, columns, positions = self._checked(shape)
        unit = self._clipped(shape)
        height, width = torch.tensor(_lengths(rows, unit[0])), torch.tensor(_lengths(columns, unit[1]))
        return (height.unsqueeze(1) * width).unsqueeze(2).expand(-1, -1, positions).contiguous()

    def _grid(self, values: Tensor, padding: float | bool) -> Tensor:
        """(rows, height of a unit, columns, its width, positions), padded."""
        matrix, (height, width) = self._matrix(values), self._clipped(values.shape)
        below, beside = -matrix.shape[0] % height, -matrix.shape[1] % width
        if below or beside:
            matrix = torch.nn.functional.pad(matrix, (0, 0, 0, beside, 0, below), value=padding)
        rows, columns, positions = matrix.shape
        return matrix.reshape(rows // height, height, columns // width, width, positions)

    def _scores(self, values: Tensor) -> Tensor:
        if not values.numel():
            return values.new_zeros(0)
        grid = self._grid(values, -math.inf)
        largest = grid.amax((1, 3))
        if self.p == math.inf:
            return largest
        numbers = grid.where(grid.isfinite(), 0.0).double()
        # Powers of two change no digit, and keep high powers of small and large numbers apart.
        exponent = numbers.abs().amax((1, 3), keepdim=True).frexp().exponent
        numbers = numbers.ldexp(-exponent)
        powers = (numbers.sign() * numbers.abs() ** self.p).sum((1, 3))
        norms = (powers.sign() * powers.abs() ** (1 / self.p)).ldexp(exponent[:, 0, :, 0])
        return torch.where(largest.isinf(), largest.double(), norms)

    def _any(self, mask: Tensor) -> Tensor:
        return self._grid(mask, False).any(3).any(1) if mask.numel() else mask.new_zeros(0)

    def _spread(self, chosen: Tensor, shape: Sequence[int]) -> Tensor:
        """Masks of units -> of entries."""
        if not chosen.numel():
            return torch.zeros(tuple(shape), dtype=torch.bool, device=chosen.device)
        (height, width), (rows, columns, _) = self._clipped(shape), self._checked(shape)
        whole = chosen.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
        return self._restored(whole, shape).contiguous()

    def _exactly(self, values: Tensor, active: Tensor | None, count: int, shape: Sequence[int]) -> Tensor:
        known = torch.zeros_like(values, dtype=torch.bool) if active is None else active
        order = _ranked(values, known).cpu().numpy()
        taken = _taken(self._counts(shape).view(-1).numpy()[order], count)
        chosen = np.zeros(len(order), dtype=bool)
        chosen[order] = taken
        return torch.from_numpy(chosen).view(values.shape).to(values.device)


def _ranked(values: Tensor, active: Tensor) -> Tensor:
    """Numbers of the units from the best to the worst: score, then active, then lower number."""
    by_activity = (~active.reshape(-1)).to(torch.uint8).argsort(stable=True)
    return by_activity[(-values.reshape(-1)[by_activity]).argsort(stable=True)]


def _lengths(total: int, by: int) -> list[int]:
    return [by] * (total // by) + ([total % by] if total % by else [])


@functools.cache
def _sizes(rows: int, columns: int, positions: int, height: int, width: int) -> Sizes:
    found: dict[int, int] = {}
    for tall, n in _occurring(rows, height):
        for wide, m in _occurring(columns, width):
            found[tall * wide] = found.get(tall * wide, 0) + n * m * positions
    return tuple(sorted(found.items(), reverse=True))


def _occurring(total: int, by: int) -> list[tuple[int, int]]:
    return [(length, n) for length, n in ((by, total // by), (total % by, 1)) if length and n]


@functools.cache
def _nearest(count: int, sizes: Sizes) -> int:
    count = min(max(count, min(size for size, _ in sizes)), sum(size * n for size, n in sizes))
    return next(near for away in range(count + 1) for near in (count + away, count - away) if _makes(near, sizes))


def _makes(total: int, sizes: Sizes) -> bool:
    """Whether some of the units have ``total`` entries in all; there are four sizes at most."""
    if total < 0 or not sizes:
        return total == 0
    (large, n_large), (small, n_small) = (*sizes, (1, 0))[:2]
    rest = np.zeros(1, dtype=np.int64)
    for size, n in sizes[2:]:
        rest = (rest[:, None] + size * np.arange(n + 1)).ravel()
    left = total - rest[rest <= total]  # large i + small j = left, 0 <= i <= n_large, 0 <= j <= n_small
    common = math.gcd(large, small)
    left = left[left % common == 0]
    period = large // common
    first = left // common * pow(small // common, -1, period) % period
    least = np.maximum(0, -(-(left - large * n_large) // small))
    j = first + -(-np.maximum(least - first, 0) // period) * period
    return bool((j <= np.minimum(n_small, left // small)).any())


def _taken(sizes: np.ndarray, count: int) -> np.ndarray:
    """Which units are taken: from the best down, each with which the rest can still be filled exactly.

    Those that all fit are found by bisection: if the best i can be taken, so can fewer.
    """
    taken, at = np.zeros(len(sizes), dtype=bool), 0
    left = {int(size): int(n) for size, n in zip(*np.unique(sizes, return_counts=True), strict=True)}
    while count:
        total = np.concatenate([[0], np.cumsum(sizes[at:])])
        low, high = 0, int(np.searchsorted(total, count, side="right")) - 1
        while low < high:
            middle = (low + high + 1) // 2
            fits = _makes(count - int(total[middle]), _remaining(left, sizes[at : at + middle]))
            low, high = (middle, high) if fits else (low, middle - 1)
        taken[at : at + low] = True
        left = dict(_remaining(left, sizes[at : at + low + 1]))  # and the next one is left out
        count -= int(total[low])
        at += low + 1
    return taken


def _remaining(left: Mapping[int, int], used: np.ndarray) -> Sizes:
    gone = dict(zip(*(part.tolist() for part in np.unique(used, return_counts=True)), strict=True))
    return tuple((size, n - gone.get(size, 0)) for size, n in sorted(left.items(), reverse=True))
