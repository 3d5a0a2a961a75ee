"""Maps made of other maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.transforms import LinearMap
from .base import ConvolutionMap, ConvolutionShape
from .cost import convolution_multiplications, linear_multiplications


def per_entry(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """`values`, one for each entry of x along the axis, in a shape and type that multiply x."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.to(x.dtype).view(shape)


def along(x: Tensor, axis: int, start: int, size: int) -> Tensor:
    """Entries `start` and following along an axis of that many in all, x; the others are zero."""
    if start == 0 and x.shape[axis] == size:
        return x
    shape = list(x.shape)
    shape[axis] = size
    whole = x.new_zeros(shape)
    whole.narrow(axis, start, x.shape[axis]).copy_(x)
    return whole


class Chain:
    """gain times a product of maps, the first of which meets the input."""

    def __init__(self, parts: Sequence[LinearMap], gain: float) -> None:
        self.parts, self.gain = parts, gain
        self.rows, self.columns = parts[-1].rows, parts[0].columns
        self.multiplications = sum(map(linear_multiplications, parts)) + self.rows

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D x."""
        for part in self.parts:
            x = part.apply(x, axis)
        return x * self.gain

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D^T g."""
        for part in reversed(self.parts):
            g = part.transpose(g, axis)
        return g * self.gain


class FlippedChannels:
    """Signs before a convolution: one for each channel of its input."""

    def __init__(self, inner: ConvolutionMap, signs: Tensor, shape: ConvolutionShape) -> None:
        self.inner, self.signs = inner, signs
        self.multiplications = convolution_multiplications(inner, shape) + len(signs)

    def apply(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.inner.apply(x * per_entry(self.signs, x, 1))

    def transpose(self, g: Tensor, size: torch.Size) -> Tensor:
        """Gradient of the input."""
        back = self.inner.transpose(g, size)
        return back * per_entry(self.signs, back, 1)


class Transposed:
    """D^T of another map."""

    def __init__(self, inner: LinearMap) -> None:
        self.inner = inner
        self.rows, self.columns = inner.columns, inner.rows
        self.multiplications = linear_multiplications(inner)

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D^T x."""
        return self.inner.transpose(x, axis)

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D g."""
        return self.inner.apply(g, axis)
