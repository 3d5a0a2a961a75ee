"""Layers with a dense weight that compute with its support, and what a controller tells them of it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from . import distributed


@runtime_checkable
class Declared(Protocol):
    """A layer that computes with 2:4 weights: told of what kind supports are, when control begins and ends."""

    @property
    def is_semi_structured(self) -> bool:
        """Whether the weight was last found or declared 2:4 along its inputs."""

    def declare(self, mask: Tensor | None, *, both_ways: bool = True) -> None:
        """The weight is zero off this mask, of the whole weight, and off others of its kind later; None: no longer.

        both_ways: whether the later ones are 2:4 along outputs too, if this one is.
        """


@runtime_checkable
class Following(Protocol):
    """A layer that computes with each support: told every one, and whenever the weight was made zero off it."""

    def set_support(self, support: Tensor | None) -> None:
        """The weight is zero off this mask from now on; None: off none that is known."""

    def confirm(self) -> None:
        """The weight was written to, and is zero off the support."""


class Informed:
    """The layer of a weight, told of the support if it offers one of the two protocols; sharded weights follow none."""

    def __init__(self, module: nn.Module, parameter: nn.Parameter, two_four: tuple[bool, bool]) -> None:
        sharded = distributed.is_sharded(parameter)
        self._declared, self._two_four = module if isinstance(module, Declared) else None, two_four
        self._following = module if isinstance(module, Following) and not sharded else None

    def declare(self, mask: Tensor | None) -> None:
        """The whole support when control begins or a run is loaded."""
        if self._declared is not None:
            along_inputs, along_outputs = self._two_four
            self._declared.declare(mask if along_inputs else None, both_ways=along_outputs)

    def rewired(self, mask: Tensor) -> None:
        """The whole support after a rewiring: the first of its kind, if the method started dense."""
        if self._declared is not None and not self._declared.is_semi_structured:
            self.declare(mask)

    def follow(self, mask: Tensor | None) -> None:
        """The support, of the local part of the weight, whenever it changes."""
        if self._following is not None:
            self._following.set_support(mask)

    def confirm(self) -> None:
        """Whenever the weight was made zero off the support."""
        if self._following is not None:
            self._following.confirm()

    def release(self) -> None:
        """When nobody keeps the weight zero off it any more."""
        self.follow(None)
        self.declare(None)
