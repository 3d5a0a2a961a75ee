"""Random supports and values of sparse layers, in memory that grows with what is kept only."""

from __future__ import annotations

import torch
from torch import Tensor

_SPARE = 1.05  # draws beyond those expected to be needed


def draw_positions(numel: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `count` of `numel` flat positions uniformly, without replacement; ascending.

    generator: None for torch's global one.
    """
    if 2 * count > numel:  # the complement is the smaller set
        kept = torch.ones(numel, dtype=torch.bool)
        kept[draw_positions(numel, numel - count, generator)] = False
        return kept.nonzero().view(-1)
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        missing, free = count - len(found), numel - len(found)
        draws = torch.randint(numel, (int(_SPARE * missing * numel / free) + 16,), generator=generator)
        found = torch.cat([found, draws]).unique()
    if len(found) > count:  # any subset of what was drawn is as likely as another
        found = found[torch.randperm(len(found), generator=generator)[:count].sort().values]
    return found


def bounds(flat: Tensor, rows: int, columns: int, fan_in: str) -> Tensor:
    """1 / sqrt(fan-in) for the entry at each flat position; fan_in: "live" counts its row, "dense" all columns."""
    row = flat // columns
    fan = torch.bincount(row, minlength=rows)[row] if fan_in == "live" else torch.full_like(flat, columns)
    return fan.to(torch.float64).rsqrt()
