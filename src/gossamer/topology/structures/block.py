"""Blocks of neighbouring entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import ConfigError, check_number
from .units import Units


@dataclass(frozen=True)
class Block(Units):
    """Whole blocks of b x b neighbouring outputs and inputs, in a convolution at the same kernel position.

    The blocks of a weight (out, in, *kernel) with the highest scores are active, those of the largest |w| where scores
    are magnitudes. ``Block(1)`` is unstructured. Blocks at edges that b does not divide have as many entries as there
    are, and counts are rounded to what whole blocks can have.

    Args:
        rows: b, or the number of outputs of a block.
        columns: the number of inputs of a block; None: as many.
        p: a block's score is the p-norm of the scores in it; math.inf (text: inf) the largest. With p below inf the sum
            is in float64, and a negative score s counts as -|s|^p.

    Source: Stosic and Stosic 2021 (2105.12920), appendix E.1; Gray et al. 2017; Narang et al. 2017 (1711.02782).

    >>> import torch
    >>> Block(2).select([torch.tensor([[3.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])], 4)
    [tensor([[ True,  True, False, False],
            [ True,  True, False, False]])]
    """

    rows: int
    columns: int | None = None
    p: float = math.inf

    def __post_init__(self) -> None:
        """Check the arguments."""
        for what, value in (("rows", self.rows), ("columns", self.columns)):
            if not (type(value) is int and value >= 1) and (what, value) != ("columns", None):
                raise ConfigError(f"Block: {what} = {value!r}, expected a whole number >= 1, e.g. Block(16)")
        check_p("Block", self.p)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of a block."""
        return self.rows, self.rows if self.columns is None else self.columns

    @property
    def name(self) -> str:
        """As ``block 16`` or ``block 8x1``; with the norm if it is not the largest."""
        rows, columns = self.shape
        return f"block {rows}" + (f"x{columns}" if rows != columns else "") + norm_name(self.p)

    def _matrix(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:2], math.prod(values.shape[2:]))

    def _restored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        return matrix.reshape(tuple(shape))

    def _unit(self, shape: Sequence[int]) -> tuple[int, int]:
        return self.shape


def check_p(what: str, p: object) -> None:
    """Raise ConfigError unless p is that of a norm."""
    if not isinstance(p, float) or p != math.inf:
        check_number("p", p, "the norm that a unit is scored by")
        if not p > 0:  # type: ignore[operator]
            raise ConfigError(f"{what}: p = {p!r}, expected a number above 0 or math.inf")


def norm_name(p: float) -> str:
    """As `` by 2-norm``; nothing for the largest."""
    return "" if p == math.inf else f" by {p:g}-norm"
