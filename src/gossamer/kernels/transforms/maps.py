"""What a linear map provides, and the one that holds its matrix."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class LinearMap(Protocol):
    """A fixed matrix D, (rows, columns), applied along one axis of a tensor.

    Axis -1 of (..., columns) is the row-major layout; axis 1 of (tiles, columns, \\*positions, 16) the packed one; axis
    1 of (batch, columns, height, width) that of images. Nothing has to be differentiated: callers know that the
    derivative of `apply` is `transpose`.
    """

    rows: int
    columns: int

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D x: `columns` entries along the axis become `rows`."""

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D^T g: `rows` entries along the axis become `columns`."""


class Product:
    """A map that holds its matrix and multiplies by it; right for every matrix, and the reference of all others.

    The matrix is kept as given and, once used, in the dtype and on the device of the last input.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.rows, self.columns = matrix.shape
        self.matrix = self._used = matrix

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D x."""
        return _product(self._like(x), x, axis)

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D^T g."""
        return _product(self._like(g).t(), g, axis)

    def _like(self, x: Tensor) -> Tensor:
        if self._used.dtype != x.dtype or self._used.device != x.device:
            self._used = self.matrix.to(x)
        return self._used


def _product(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    if axis in (-1, x.ndim - 1):
        return x @ matrix.t()
    lead, inner = x.shape[:axis], x.shape[axis + 1 :]
    flat = x.reshape(*lead, x.shape[axis], math.prod(inner))
    return torch.matmul(matrix, flat).reshape(*lead, matrix.shape[0], *inner)
