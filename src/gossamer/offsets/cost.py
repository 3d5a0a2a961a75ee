"""What maps really cost: those that do less than a dense product say so in an attribute `multiplications`."""

from __future__ import annotations

import math

from ..kernels.transforms import LinearMap
from .base import ConvolutionMap, ConvolutionShape


def linear_multiplications(made: LinearMap) -> float:
    """Multiplications of a map per vector: what it says, or else one for every entry of its matrix."""
    return getattr(made, "multiplications", made.rows * made.columns)


def convolution_multiplications(made: ConvolutionMap, shape: ConvolutionShape) -> float:
    """Multiplications of a map per position of its output, at stride 1: what it says, or one for every kernel entry."""
    return getattr(made, "multiplications", math.prod(shape.weight))
