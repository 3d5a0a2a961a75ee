"""Structures: which sets of coordinates are allowed, and the best allowed set for given scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from .selection import check_no_nan, comparable, select_top


class Structure(Protocol):
    """What a structure provides. One that is tied to a single weight refuses a sequence of several."""

    @property
    def name(self) -> str:
        """How it is printed."""

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

    Source: equal-per-filter supports of DCTpS (Price and Tanner 2021, 2102.07655); SRigL (Lasby et al. 2023,
    2305.02299).

    >>> FanIn().select([torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.5, 0.2]])], 3)
    [tensor([[ True,  True, False],
            [False,  True, False]])]
    """

    name = "fan_in"

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return ``count``: filters may differ by one, so every count is possible."""
        return count

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
        mask = _top_of_rows(rows, each, known)
        if left:
            extra = _top_of_rows(rows, each + 1, known) ^ mask  # one entry in every row
            (chosen,) = select_top([rows[extra]], left, [known[extra]])
            mask |= extra & chosen.unsqueeze(1)
        return [mask.view(score.shape)]

    def is_valid(self, mask: Tensor) -> bool:
        """Whether the filters' counts differ by at most one."""
        fan_in = mask.reshape(mask.shape[0], -1).sum(1)
        return int(fan_in.max() - fan_in.min()) <= 1


def _top_of_rows(rows: Tensor, n: int, active: Tensor) -> Tensor:
    """Return the mask of the ``n`` best entries of every row: score, then active, then lower index."""
    if n == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    threshold = rows.topk(n, dim=1, sorted=False).values.amin(1, keepdim=True)
    mask, ties = rows > threshold, rows == threshold
    for group in (ties & active, ties & ~active):
        need = n - mask.sum(1, keepdim=True)
        mask |= group & (group.cumsum(1) <= need)
    return mask
