"""What seeded offsets draw: the same on every machine and in every process."""

from __future__ import annotations

import torch
from torch import Tensor

from ..seeding import generator_for


def generator(seed: int, *shape: int) -> torch.Generator:
    """The generator of an offset of that shape."""
    return generator_for(seed, "offset", "x".join(map(str, shape)))


def signs(count: int, source: torch.Generator) -> Tensor:
    """Fair signs, +1 or -1, in float64."""
    return torch.randint(0, 2, (count,), generator=source).to(torch.float64) * 2 - 1
