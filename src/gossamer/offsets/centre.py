"""Offsets whose convolutions have nothing but their centre tap: a linear map of the channels at each position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.transforms import LinearMap
from ._taps import Window, by_group, windows
from .base import ConvolutionMap, ConvolutionShape, Offset
from .cost import linear_multiplications


class Centre:
    """A convolution of one tap, the centre (height // 2, width // 2), with the same linear map for every group.

    The output at position p is the map of the input at p stride - padding + centre dilation, and zero where that lies
    outside the image.
    """

    def __init__(self, inner: LinearMap, shape: ConvolutionShape) -> None:
        self.inner, self.shape = inner, shape
        self.multiplications = shape.groups * linear_multiplications(inner)

    def apply(self, x: Tensor) -> Tensor:
        """Convolve."""
        image = self._image(x.shape)
        y = by_group(image.read(x), self.shape.groups, self.inner.apply)
        if image.whole_output:
            return y
        spread = y.new_zeros(image.output(y.shape))
        image.written(spread).copy_(y)
        return spread

    def transpose(self, g: Tensor, size: torch.Size) -> Tensor:
        """Gradient of the input."""
        image = self._image(size)
        back = by_group(image.written(g), self.shape.groups, self.inner.transpose)
        if back.shape == size:
            return back
        spread = back.new_zeros(size)
        image.read(spread).copy_(back)
        return spread

    def _image(self, size: torch.Size) -> Window:
        height, width = self.shape.weight[2:]
        return windows(self.shape, size, (height // 2, width // 2))


@dataclass(frozen=True)
class CentreTap(Offset):
    """An offset that is a linear map of the channels at the centre tap, the same in every group."""

    def kernel_multiplications(self, shape: ConvolutionShape) -> float:
        """Those of the channels."""
        outputs, inputs = shape.weight[:2]
        return shape.groups * self.multiplications(outputs // shape.groups, inputs)

    def kernel(self, shape: ConvolutionShape, seed: int = 0) -> Tensor:
        """Zero but for the centre tap."""
        outputs, inputs, height, width = shape.weight
        kernel = torch.zeros(shape.weight, dtype=torch.float64)
        channels = self.matrix(outputs // shape.groups, inputs, seed)
        kernel[:, :, height // 2, width // 2] = channels.repeat(shape.groups, 1)
        return kernel

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """A slice of the image and the linear map."""
        outputs, inputs = shape.weight[:2]
        return Centre(self.linear(outputs // shape.groups, inputs, seed), shape)
