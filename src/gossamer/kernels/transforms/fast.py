"""Linear maps whose matrix is never stored: cosine and Walsh-Hadamard transforms, cropped on both sides."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...errors import ConfigError
from . import operators  # noqa: F401  registers the operators


class _Transform:
    """D = (diag(T, T, ...))[:rows, :columns] diag(signs), T an orthonormal transform of `length` entries."""

    _operator: str

    def __init__(self, rows: int, columns: int, length: int, signs: Tensor | None = None) -> None:
        if min(rows, columns, length) < 1:
            raise ConfigError(f"a transform of {columns} to {rows} entries by {length}: each must be at least 1")
        if signs is not None and (signs.shape != (columns,) or not bool((signs.abs() == 1).all())):
            raise ConfigError(f"signs of a transform must be {columns} numbers, each 1 or -1; got {signs!r:.60}")
        self.rows, self.columns, self.length = rows, columns, length
        self.signs = None if signs is None else signs.detach().to("cpu", torch.float32)

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D x: `columns` entries along the axis become `rows`."""
        return self._along(x, axis, False)

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D^T g: `rows` entries along the axis become `columns`."""
        return self._along(g, axis, True)

    def matrix(self) -> Tensor:
        """D in float64."""
        return self.transpose(torch.eye(self.rows, dtype=torch.float64, device="cpu"), -1)

    def _along(self, x: Tensor, axis: int, transposed: bool) -> Tensor:
        if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
            primal, tangent = forward_ad.unpack_dual(x)
            if tangent is not None:  # torch would lose it without a word
                both = [self._computed(each, axis, transposed) for each in (primal, tangent)]
                return forward_ad.make_dual(*both)
        return self._computed(x, axis, transposed)

    def _computed(self, x: Tensor, axis: int, transposed: bool) -> Tensor:
        operator = getattr(torch.ops.gossamer, self._operator).default
        return operator(x, self.signs, self.rows, self.columns, self.length, axis, transposed)


class Cosine(_Transform):
    """D = C_q[:rows, :columns] diag(signs), q = max(rows, columns), of the orthonormal DCT-II C_q of any length.

    C_q[k, i] = c_k cos(pi k (2 i + 1) / (2 q)), c_0 = sqrt(1 / q), the others sqrt(2 / q). Differentiable any number of
    times; computed in float32 under autocast, and for float16 and bfloat16.

    signs: (columns,), each 1 or -1; None for all 1.
    Source: Makhoul 1980, "A fast cosine transform in one and two dimensions".

    Raises:
        ConfigError: a size below 1, other signs; when applied, an axis of another length, or whole numbers.
    """

    _operator = "cosine"

    def __init__(self, rows: int, columns: int, signs: Tensor | None = None) -> None:
        super().__init__(rows, columns, max(rows, columns), signs)
        self.multiplications = 1.25 * self.length * math.log2(self.length)  # of a real FFT and its twiddles


class BlockCosine(_Transform):
    """The leading rows and columns of a block-diagonal matrix of orthonormal DCT-IIs, of `block` entries each.

    What lies beyond the shorter side is cut off, through the last block if need be; rows beyond all columns' blocks are
    zero. Otherwise as `Cosine`.
    """

    _operator = "cosine"

    def __init__(self, rows: int, columns: int, block: int, signs: Tensor | None = None) -> None:
        super().__init__(rows, columns, block, signs)
        self.multiplications = -(-min(rows, columns) // block) * 1.25 * block * math.log2(block)


class Hadamard(_Transform):
    """D = H_Q[:rows, :columns] diag(signs), Q the next power of two, of the orthonormal Walsh-Hadamard matrix H_Q.

    In natural order: H_1 = [1], H_2Q = [[H_Q, H_Q], [H_Q, -H_Q]] / sqrt(2). Unless max(rows, columns) is a power of
    two, H_Q is cut on both sides, and singular values fall below 1. Otherwise as `Cosine`.
    """

    _operator = "hadamard"

    def __init__(self, rows: int, columns: int, signs: Tensor | None = None) -> None:
        super().__init__(rows, columns, 1 << (max(rows, columns, 1) - 1).bit_length(), signs)
        self.multiplications = 0 if signs is None else columns  # all else are additions
