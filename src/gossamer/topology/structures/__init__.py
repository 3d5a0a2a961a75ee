"""Structures: which sets of coordinates are allowed, and the best allowed set for given scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

# Spelled in text, as in ``block:16``, is each dataclass that stands here beside the protocol.
from .base import Unstructured as Unstructured
from .base import top_of_rows as top_of_rows
from .block import Block as Block
from .channels import Channels as Channels
from .complementary import Complementary as Complementary
from .fan_in import FanIn as FanIn
from .n_m import NM as NM
from .n_m import transposable_gap as transposable_gap
from .units import Units as Units


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
