"""What structures share, and the one that allows every set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from ..selection import select_top


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


def one_weight(name: str, scores: Sequence[Tensor]) -> Tensor:
    """Return the only one of ``scores``.

    Raises:
        ConfigError: there are more.
    """
    if len(scores) != 1:
        raise ConfigError(f"{name} is a property of one weight, got {len(scores)}; use scope='layer'")
    return scores[0]


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
