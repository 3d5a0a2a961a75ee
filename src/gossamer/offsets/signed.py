"""The discrete cosine transform behind random signs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.transforms import LinearMap, cosine_map
from ._draw import generator, signs
from ._maps import FlippedChannels
from ._registry import named
from .base import ConvolutionMap, ConvolutionShape
from .dct import DCT, by_cosines


@named
@dataclass(frozen=True)
class SignedDCT(DCT):
    """D = C_q[:rows, :columns] diag(s), with a random sign for every entry of the input.

    For a convolution this is an entry of the patch, so the signs of a channel differ from tap to tap. Every layer has
    signs of its own: the same D in layer after layer correlates with the positive mean that ReLU leaves, and random
    signs end that. Singular values stay all 1.

    Source: named as an alternative in the open questions of Price and Tanner's talk on arXiv:2102.07655; signs before
    a fast transform are those of Ailon and Chazelle 2006 (doi:10.1145/1132516.1132597).
    """

    name = "signed-dct"
    summary = "random signs on every input, or entry of a patch, then the DCT"
    cost = "q log q + columns"
    seeded = True

    def multiplications(self, rows: int, columns: int) -> float:
        """Those of the DCT, and the signs."""
        return super().multiplications(rows, columns) + columns

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        return super().matrix(rows, columns) * signs(columns, generator(seed, rows, columns))

    def linear(self, rows: int, columns: int, seed: int = 0) -> LinearMap:
        """Signs, then the map of the DCT."""
        return cosine_map(rows, columns, signs(columns, generator(seed, rows, columns)))

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """D of a convolution, its channels mixed for each tap (see `cosine_convolution`)."""
        outputs, inputs, height, width = shape.weight
        flips = signs(inputs * height * width, generator(seed, outputs, inputs * height * width))
        return by_cosines(shape, torch.arange(outputs), flips.view(height * width, inputs))


@named
@dataclass(frozen=True)
class ChannelSignedDCT(SignedDCT):
    """D = C_q[:rows, :columns] diag(s), with one random sign for each channel of a convolution's input.

    The signs can be applied to the image, so every fast convolution of the DCT serves. In a linear layer it is
    `SignedDCT`. The channels of all groups have signs of their own.
    """

    name = "channel-signed-dct"
    summary = "random signs on the channels of the input, then the DCT"
    cost = "q log q + channels"

    def kernel(self, shape: ConvolutionShape, seed: int = 0) -> Tensor:
        """The kernel of the DCT with signs on its input channels."""
        return _flipped(DCT().kernel(shape), shape, self._signs(shape, seed))

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """Signs, then the map of the DCT."""
        return FlippedChannels(DCT().convolution(shape), self._signs(shape, seed), shape)

    @staticmethod
    def _signs(shape: ConvolutionShape, seed: int) -> Tensor:
        return signs(shape.weight[1] * shape.groups, generator(seed, *shape.weight))


@named
@dataclass(frozen=True)
class TapSignedDCT(SignedDCT):
    """D = C_q[:rows, :columns] diag(s), the sign of a patch's entry being that of its channel times that of its tap.

    Between `ChannelSignedDCT` and `SignedDCT`: it still splits into a part for channels and one for taps. In a linear
    layer it is `SignedDCT`.
    """

    name = "tap-signed-dct"
    summary = "random signs on the channels and on the taps of the kernel, then the DCT"
    cost = "q log q + channels + taps"

    def kernel(self, shape: ConvolutionShape, seed: int = 0) -> Tensor:
        """The kernel of the DCT with signs on its input channels and taps."""
        by_channel, by_tap = self._both(shape, seed)
        return _flipped(DCT().kernel(shape), shape, by_channel) * by_tap.view(shape.weight[2:])

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """D of a convolution, its channels mixed first (see `cosine_convolution`)."""
        by_channel, by_tap = self._both(shape, seed)
        flips = by_channel.view(shape.groups, 1, -1) * by_tap.view(1, -1, 1)
        return by_cosines(shape, torch.arange(shape.weight[0]), flips)

    @staticmethod
    def _both(shape: ConvolutionShape, seed: int) -> tuple[Tensor, Tensor]:
        source = generator(seed, *shape.weight)
        by_channel = signs(shape.weight[1] * shape.groups, source)
        return by_channel, signs(math.prod(shape.weight[2:]), source)


def _flipped(kernel: Tensor, shape: ConvolutionShape, by_channel: Tensor) -> Tensor:
    grouped = kernel.view(shape.groups, -1, *kernel.shape[1:])
    return (grouped * by_channel.view(shape.groups, 1, -1, 1, 1)).view(kernel.shape)
