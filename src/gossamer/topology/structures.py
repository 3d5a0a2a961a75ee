"""Structures: which sets of coordinates are allowed, and the best allowed set for given scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, check_flag
from .complementary import Complementary as Complementary  # spelled, as the others, where a structure is asked for
from .selection import check_no_nan, comparable, select_top


class Structure(Protocol):
    """What a structure provides. One that is tied to a single weight refuses a sequence of several."""

    @property
    def name(self) -> str:
        """How it is printed."""

    @property
    def single(self) -> bool:
        """Whether it is a property of one weight, so that weights cannot compete (scope "layer" only)."""

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return the count nearest to ``count`` that a weight of ``shape`` can have."""

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return masks of exactly ``count`` entries in all, highest scores first; order and errors as `select_top`."""

    def is_valid(self, mask: Tensor) -> bool:
        """Whether the mask of one weight has this structure."""


@dataclass(frozen=True)
class Unstructured:
    """Any set of coordinates."""

    name = "unstructured"
    single = False

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return ``count``: every count is possible."""
        return count

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the masks of the ``count`` highest scores, see `select_top`."""
        return select_top(scores, count, active)

    def is_valid(self, mask: Tensor) -> bool:
        """Every mask is."""
        return True


@dataclass(frozen=True)
class FanIn:
    """Constant fan-in: every output filter (index of dimension 0) has the same number of active inputs, to within one.

    A weight is ``(out, ...)``. Each filter gets ``count // out`` entries; the ``count % out`` left over go one each to
    the filters whose next-best entry ranks highest, in the order of `select_top`.

    Args:
        exact: round counts so that all filters have the very same number; a rule may still empty whole filters.

    Source: equal-per-filter supports of DCTpS (Price and Tanner 2021, 2102.07655); SRigL (Lasby et al. 2023,
    2305.02299).

    >>> FanIn().select([torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.5, 0.2]])], 3)
    [tensor([[ True,  True, False],
            [False,  True, False]])]
    """

    exact: bool = False
    name = "fan_in"
    single = True

    def __post_init__(self) -> None:
        """Check `exact`: any text would count as true."""
        check_flag("exact", self.exact)

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return ``count``; with ``exact`` the nearest positive multiple of the number of filters."""
        if not self.exact or not math.prod(shape):
            return count
        return min(max(1, round(count / shape[0])) * shape[0], math.prod(shape))

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the mask of the best ``count`` entries with a constant fan-in.

        Raises:
            ConfigError: more than one weight, a weight without filters, or a count out of range.
            DivergedError: a score is NaN.
        """
        if len(scores) != 1:
            raise ConfigError(f"fan-in is a property of one weight, got {len(scores)}; use scope='layer'")
        (score,) = scores
        if score.dim() < 1 or not 0 <= count <= score.numel():
            raise ConfigError(f"cannot select {count} entries with constant fan-in from shape {tuple(score.shape)}")
        flat = comparable(scores)
        check_no_nan(flat)
        if not score.numel():
            return [torch.zeros(score.shape, dtype=torch.bool, device=score.device)]
        rows = flat[0].view(score.shape[0], -1)
        known = torch.zeros_like(rows, dtype=torch.bool) if active is None else active[0].reshape(rows.shape)
        each, left = divmod(count, len(rows))
        mask = top_of_rows(rows, each, known)
        if left:
            extra = top_of_rows(rows, each + 1, known) ^ mask  # one entry in every row
            (chosen,) = select_top([rows[extra]], left, [known[extra]])
            mask |= extra & chosen.unsqueeze(1)
        return [mask.view(score.shape)]

    def is_valid(self, mask: Tensor) -> bool:
        """Whether the filters' counts differ by at most one; with ``exact``, whether all that are not 0 are equal."""
        if not mask.numel():
            return True
        fan_in = mask.reshape(mask.shape[0], -1).sum(1)
        if self.exact:
            return int(fan_in[fan_in > 0].unique().numel()) <= 1
        return int(fan_in.max() - fan_in.min()) <= 1


@dataclass(frozen=True)
class NM:
    """N of every M consecutive inputs of each output, at the same kernel position: 2:4 and its like.

    Inputs are dimension 1 of a linear or convolution weight (out, in, *kernel); no group crosses an output or a kernel
    position. The density is N/M in every weight.

    Source: Zhou et al. 2021 (2102.04010); the layout of Mishra et al. 2021 (2104.08378).

    >>> NM(1, 2).select([torch.tensor([[3.0, -1.0, 0.5, 2.0]])], 2)
    [tensor([[ True, False, False,  True]])]
    """

    n: int
    m: int
    single = True

    def __post_init__(self) -> None:
        """Check N and M."""
        if not (type(self.n) is int and type(self.m) is int and 1 <= self.n <= self.m):
            raise ConfigError(f"NM({self.n!r}, {self.m!r}): expected whole numbers 1 <= n <= m, e.g. NM(2, 4)")

    @property
    def name(self) -> str:
        """As ``2:4``."""
        return f"{self.n}:{self.m}"

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return N/M of the weight.

        Raises:
            ConfigError: inputs do not divide into groups of M, or ``count`` asks for another density.
        """
        if len(shape) < 2 or shape[1] % self.m:
            raise ConfigError(
                f"{self.name} needs weights whose input dimension divides by {self.m}, got shape {tuple(shape)}; leave "
                "such weights out with targets"
            )
        exact = math.prod(shape) * self.n // self.m
        if abs(count - exact) > 1:
            raise ConfigError(
                f"{self.name} keeps {self.n / self.m:.4g} of every weight, {exact} of shape {tuple(shape)}, but "
                f"density and allocation ask for {count}; use density={self.n / self.m:.4g} and allocation='uniform'"
            )
        return exact

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the mask of the best N in every group; ``count`` must be N/M of the weight."""
        if len(scores) != 1:
            raise ConfigError(f"{self.name} is a property of one weight, got {len(scores)}; use scope='layer'")
        (score,) = scores
        if count != self.round(count, score.shape):
            raise ConfigError(f"{self.name} cannot select {count} entries from shape {tuple(score.shape)}")
        flat = comparable(scores)
        check_no_nan(flat)
        groups = self._groups(flat[0].view(score.shape))
        known = torch.zeros_like(groups, dtype=torch.bool) if active is None else self._groups(active[0])
        chosen = top_of_rows(groups, self.n, known)
        by_position = chosen.view(score.shape[0], -1, score.shape[1])  # (out, kernel positions, in)
        return [by_position.transpose(1, 2).reshape(score.shape).contiguous()]

    def is_valid(self, mask: Tensor) -> bool:
        """Whether every group has N entries."""
        return bool((self._groups(mask).sum(1) == self.n).all())

    def _groups(self, values: Tensor) -> Tensor:
        """(out, in, *kernel) -> (groups, M)."""
        return values.reshape(values.shape[0], values.shape[1], -1).transpose(1, 2).reshape(-1, self.m)


def top_of_rows(rows: Tensor, n: int, active: Tensor) -> Tensor:
    """Return the mask of the ``n`` best entries of every row: score, then active, then lower index."""
    if n == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    threshold = rows.topk(n, dim=1, sorted=False).values.amin(1, keepdim=True)
    mask, ties = rows > threshold, rows == threshold
    for group in (ties & active, ties & ~active):
        need = n - mask.sum(1, keepdim=True)
        mask |= group & (group.cumsum(1) <= need)
    return mask
