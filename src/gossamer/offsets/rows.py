"""Random rows of the discrete cosine transform."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.transforms import LinearMap
from ._draw import generator
from ._registry import named
from .base import ConvolutionMap, ConvolutionShape, Offset
from .dct import DCT, by_cosines, dct_matrix


@named
@dataclass(frozen=True)
class RandomRows(DCT):
    """D = C_q[r, :columns] with `rows` random rows r of C_q, in their order: frequencies from the whole spectrum.

    Only layers with fewer outputs than inputs (or entries of a patch) have a choice; the others get `DCT`. All singular
    values are 1. A fast transform computes all q frequencies and keeps `rows` of them.

    Source: partial random transforms of compressed sensing, Candes, Romberg and Tao 2006, arXiv:math/0409186.
    """

    name = "random-rows"
    summary = "random rows of the DCT instead of its lowest frequencies"
    seeded = True

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        return dct_matrix(max(rows, columns))[_chosen(rows, columns, seed), :columns].contiguous()

    def linear(self, rows: int, columns: int, seed: int = 0) -> LinearMap:
        """By its matrix."""
        return Offset.linear(self, rows, columns, seed)

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """D of a convolution, its channels mixed first (see `cosine_convolution`)."""
        outputs, inputs, height, width = shape.weight
        return by_cosines(shape, _chosen(outputs, inputs * height * width, seed))


def _chosen(rows: int, columns: int, seed: int) -> Tensor:
    order = torch.randperm(max(rows, columns), generator=generator(seed, rows, columns))
    return order[:rows].sort().values
