"""Whole channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import check_choice
from .block import check_p, norm_name
from .n_m import Axis
from .units import Units


@dataclass(frozen=True)
class Channels(Units):
    """Whole output filters, or whole input channels, of a weight (out, in, *kernel).

    Counts are rounded to whole channels. What else belongs to a channel, its bias and normalisation, is not touched.

    Args:
        axis: "outputs" for filters (rows of a linear weight), "inputs" for input channels (columns).
        p: a channel's score is the p-norm of the scores in it, see `Block`.

    Source: Li et al. 2017 (1608.08710), filters by their 1-norm; Wen et al. 2016 (1608.03665).

    >>> import torch
    >>> Channels().select([torch.tensor([[2.0, 0.0], [1.5, 1.5], [0.0, 1.0]])], 2)
    [tensor([[False, False],
            [ True,  True],
            [False, False]])]
    """

    axis: Axis = "outputs"
    p: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_choice("axis", self.axis, ("inputs", "outputs"))
        check_p("Channels", self.p)

    @property
    def name(self) -> str:
        """As ``output channels by 1-norm``."""
        return f"{self.axis[:-1]} channels{norm_name(self.p)}"

    def _matrix(self, values: Tensor) -> Tensor:
        by_channel = values if self.axis == "outputs" else values.transpose(0, 1)
        return by_channel.reshape(by_channel.shape[0], math.prod(by_channel.shape[1:]), 1)

    def _restored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        if self.axis == "outputs":
            return matrix.reshape(tuple(shape))
        return matrix.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)

    def _unit(self, shape: Sequence[int]) -> tuple[int, int]:
        return 1, math.prod(shape) // shape[0 if self.axis == "outputs" else 1]
