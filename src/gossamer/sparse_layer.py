"""What a module must offer so that the values it holds can be trained, and moved, as a sparse weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from .topology import Support

_OWN = (
    "capture",
    "weight_shape",
    "index",
    "checked_index",
    "positions",
    "ascending",
    "set_support",
    "exchange",
    "dense_gradient",
    "gradient_factors",
)


class Moved(Protocol):
    """Where values went when a support changed."""

    @property
    def born(self) -> Tensor:
        """Places of newborn entries, after; int64."""

    def survivors(self, held: Tensor) -> Tensor:
        """Return what survivors had, of what is held of each value before."""

    def carried(self, held: Tensor, rest: float = 0.0) -> Tensor:
        """Return a vector in the new order: of survivors what they had, of newborn entries ``rest``."""


class Sink(Protocol):
    """Takes what backward passes leave, such as a list."""

    def append(self, item: Any, /) -> None:
        """Take one item."""


class SparseLayer(Protocol):
    """A module that holds the active entries of its weight only: `gossamer.nn.SparseWeight`, seen from below.

    values: 1-D, in the order of `positions`; of blocks (`block_of`) 3-D. capture: None, or where every backward
    pass appends what `dense_gradient` needs of it.
    """

    values: nn.Parameter
    capture: Sink | None

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the dense weight, which does not exist."""

    @property
    def count(self) -> int:
        """Number of active entries."""

    @property
    def index(self) -> Tensor:
        """Where the values lie, as bytes that only the kernels read."""

    def checked_index(self) -> Tensor:
        """The same, found valid."""

    def positions(self) -> Tensor:
        """Flat position of each value in the dense weight, int64."""

    def ascending(self) -> tuple[Tensor, Tensor]:
        """Flat positions in ascending order, and the place of each in storage order; int64."""

    def set_support(self, support: Support, before: tuple[Tensor, Tensor] | None = None) -> Moved:
        """Move to another support. Survivors keep their value, newborn ones are 0. before: `ascending()`, if known."""

    def exchange(self, kept: Tensor, born: Tensor) -> Moved | None:
        """As `set_support`, to the values in the mask ``kept`` and ascending inactive positions; None: not possible."""

    def dense_gradient(self, rows: slice, captured: Sequence[Any]) -> Tensor:
        """Gradient of some rows of the dense weight, (rows, columns), summed over what was captured."""

    def gradient_factors(self, captured: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Matrices, (rows, samples) and (columns, samples), whose product is that gradient; None: there are none."""


def is_sparse_layer(module: object) -> TypeGuard[SparseLayer]:
    """Whether a module is one."""
    return isinstance(module, nn.Module) and "values" in module._parameters and all(hasattr(module, n) for n in _OWN)


def block_of(module: object) -> int | None:
    """The side of the blocks of a sparse layer that consists of such, else None."""
    return getattr(module, "block", None) if is_sparse_layer(module) else None


def layer_of(module: nn.Module, parameter: Tensor) -> SparseLayer | None:
    """The module as a sparse layer if the parameter holds its values, else None."""
    return module if is_sparse_layer(module) and module.values is parameter else None
