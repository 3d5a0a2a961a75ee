"""The offset of DCTpS: the leading rows and columns of the orthonormal discrete cosine transform."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.transforms import LinearMap, cosine_map
from ._registry import named
from .base import ConvolutionMap, ConvolutionShape, Offset
from .convolution import Pointwise, cosine_convolution


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II of that length, float64: C[k, i] = c_k cos(pi k (2i + 1) / (2 size)).

    c_0 = sqrt(1 / size), the others sqrt(2 / size).
    """
    k, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / (2 * size) * torch.remainder(k * (2 * i + 1), 4 * size)) * math.sqrt(2 / size)
    matrix[:1] /= math.sqrt(2)
    return matrix


@named
@dataclass(frozen=True)
class DCT(Offset):
    """D = C_q[:rows, :columns] with q = max(rows, columns), of the orthonormal DCT-II C_q.

    Source: Price and Tanner 2021, arXiv:2102.07655, as their code has it.
    """

    name = "dct"
    summary = "leading rows and columns of the discrete cosine transform (DCTpS)"
    cost = "q log q"

    def multiplications(self, rows: int, columns: int) -> float:
        """5/4 q log2 q: a real FFT of that length and its twiddles."""
        size = max(rows, columns)
        return 1.25 * size * math.log2(size)

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        return dct_matrix(max(rows, columns))[:rows, :columns].contiguous()

    def linear(self, rows: int, columns: int, seed: int = 0) -> LinearMap:
        """D as a fast transform, or by its matrix where that is faster."""
        return cosine_map(rows, columns)

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """D of a convolution, its channels mixed first (see `cosine_convolution`)."""
        outputs, inputs, height, width = shape.weight
        if height * width == shape.groups == 1 and shape.padding == (0, 0):
            return Pointwise(self.linear(outputs, inputs), shape.stride)
        return by_cosines(shape, torch.arange(outputs))


def by_cosines(shape: ConvolutionShape, rows: Tensor, signs: Tensor | None = None) -> ConvolutionMap:
    """The convolution by those rows of C_q, as a map without unfolding.

    rows: one for each output. signs: (taps, inputs), of every entry of a patch, or (groups, taps, inputs).
    """
    outputs, inputs, height, width = shape.weight
    length = max(outputs, inputs * height * width)
    scale = torch.full((outputs,), math.sqrt(2 / length), dtype=torch.float64)
    scale[rows == 0] /= math.sqrt(2)
    return cosine_convolution(shape, rows, length, scale, signs)
