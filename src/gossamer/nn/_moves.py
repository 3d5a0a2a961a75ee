"""What happens to the values of a sparse layer: they move with a support, and backward passes go through them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels import rewire, sparse


@dataclass(frozen=True, eq=False)
class Moves:
    """A change of support.

    source: int32, for each stored value its storage place before, or -1 if it is newborn.
    """

    source: Tensor

    @property
    def old(self) -> Tensor:
        """Places of the survivors before."""
        return self.source[self.new].long()

    @property
    def new(self) -> Tensor:
        """Places of the survivors, in the same order, after."""
        return torch.from_numpy(np.flatnonzero(self.source.numpy() >= 0))

    @property
    def born(self) -> Tensor:
        """Places of newborn entries, after."""
        return torch.from_numpy(np.flatnonzero(self.source.numpy() < 0))

    def survivors(self, held: Tensor) -> Tensor:
        """Return what survivors had."""
        return held.index_select(0, self.old)

    def carried(self, held: Tensor, rest: float = 0.0) -> Tensor:
        """Return a vector in the new order: of survivors what they had, of newborn entries ``rest``."""
        return rewire.carried(held, self.source, rest)


@dataclass(frozen=True)
class Pass:
    """What one backward pass went through, both packed. The samples that fill the last lanes up have slopes of zero.

    x: input. slope: gradient of the output.
    """

    x: Tensor
    slope: Tensor

    @functools.cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """Both row-major, (samples, *features)."""
        many = sparse.LANES * len(self.x)
        return sparse.unpack(self.x, many), sparse.unpack(self.slope, many)

    @functools.cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """Both of samples with one axis, as (features, samples)."""
        x, slope = (part.transpose(0, 1).reshape(part.shape[1], -1) for part in (self.x, self.slope))
        return x, slope
