"""Constant fan-in: every output filter has the same number of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError, check_flag
from ..selection import check_no_nan, comparable, select_top
from .base import one_weight, top_of_rows


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
        if not (self.exact and shape and math.prod(shape)):
            return count
        return min(max(1, round(count / shape[0])) * shape[0], math.prod(shape))

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the mask of the best ``count`` entries with a constant fan-in.

        Raises:
            ConfigError: more than one weight, a weight without filters, or a count out of range.
            DivergedError: a score is NaN.
        """
        score = one_weight("fan-in", scores)
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
