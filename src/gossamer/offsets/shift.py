"""Every channel at a random tap, then the discrete cosine transform of the channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..kernels.transforms import LinearMap
from ._draw import generator, signs
from ._maps import per_entry
from ._registry import named
from ._taps import Window, by_group, windows
from .base import ConvolutionMap, ConvolutionShape
from .cost import linear_multiplications
from .dct import DCT
from .signed import SignedDCT


@named
@dataclass(frozen=True)
class ShiftDCT(SignedDCT):
    """A convolution that reads every channel at a random tap with a random sign, then the DCT of the channels.

    With more outputs than inputs a channel is read at m = ceil(outputs / inputs) different taps, at most all of them,
    so that all singular values of D are 1 for every shape. As an operator on images, at stride 1, they are all equal,
    too: 1 up to as many outputs as inputs, sqrt(m) where outputs = m inputs. It mixes space by shifts that differ from
    channel to channel, and costs what `DeltaDCT` costs: no part of it grows with the size of the kernel.

    In a linear layer it is `SignedDCT`.

    Source: own; shifts in place of spatial convolutions are those of Wu et al. 2018, arXiv:1711.08141.
    """

    name = "shift-dct"
    summary = "every channel at a random tap with a random sign, then the DCT of the channels"
    cost = "q log q + q, q of the channels only"

    def kernel_multiplications(self, shape: ConvolutionShape) -> float:
        """Those of the channels."""
        outputs, entries = _channels(shape)
        return shape.groups * self.multiplications(outputs, entries)

    def kernel(self, shape: ConvolutionShape, seed: int = 0) -> Tensor:
        """D in float64."""
        outputs, entries = _channels(shape)
        taps, flips = _drawn(shape, seed)
        inputs, turns = shape.weight[1], entries // shape.weight[1]
        per_channel = DCT().matrix(outputs, entries).view(outputs, turns, inputs)
        one_hot = functional.one_hot(taps, shape.weight[2] * shape.weight[3]) * flips[..., None]
        grouped = one_hot.view(shape.groups, turns, inputs, -1)
        return torch.einsum("omc,gmct->goct", per_channel, grouped).reshape(shape.weight)

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """Shifts, signs, and the map of the DCT."""
        return Shifted(DCT().linear(*_channels(shape)), *_drawn(shape, seed), shape)


class Shifted:
    """A linear map, the same for every group, of channels that are each read at a tap of its own.

    taps, signs: (groups, turns, inputs of a group); the map takes turns x inputs entries.
    """

    def __init__(self, inner: LinearMap, taps: Tensor, signs: Tensor, shape: ConvolutionShape) -> None:
        self.inner, self.shape, self.signs = inner, shape, signs.flatten()
        self.multiplications = shape.groups * linear_multiplications(inner) + len(self.signs)
        channels = torch.arange(shape.groups * shape.weight[1]).view(shape.groups, 1, -1).expand_as(taps).flatten()
        width = shape.weight[3]
        self.reads = [
            ((tap // width, tap % width), channels[entries], entries)
            for tap in range(shape.weight[2] * width)
            if len(entries := (taps.flatten() == tap).nonzero().view(-1))
        ]

    def apply(self, x: Tensor) -> Tensor:
        """Convolve."""
        parts = [(*read, windows(self.shape, x.shape, read[0])) for read in self.reads]
        shifted = x.new_zeros((x.shape[0], len(self.signs), *parts[0][-1].output(x.shape)[2:]))
        for _, channels, entries, window in parts:
            window.written(shifted).index_copy_(1, entries, window.read(x).index_select(1, channels))
        shifted.mul_(per_entry(self.signs, shifted, 1))
        return by_group(shifted, self.shape.groups, self.inner.apply)

    def transpose(self, g: Tensor, size: torch.Size) -> Tensor:
        """Gradient of the input."""
        shifted = by_group(g, self.shape.groups, self.inner.transpose)
        shifted = shifted * per_entry(self.signs, shifted, 1)
        back = shifted.new_zeros(size)
        for tap, channels, entries in self.reads:
            window: Window = windows(self.shape, size, tap)
            window.read(back).index_add_(1, channels, window.written(shifted).index_select(1, entries))
        return back


def _channels(shape: ConvolutionShape) -> tuple[int, int]:
    """Outputs of a group, and the entries of a patch that it reads."""
    outputs, inputs, height, width = shape.weight
    outputs //= shape.groups
    return outputs, inputs * min(height * width, -(-outputs // inputs))


def _drawn(shape: ConvolutionShape, seed: int) -> tuple[Tensor, Tensor]:
    """Tap and sign of every entry: (groups, turns, inputs of a group)."""
    source, inputs = generator(seed, *shape.weight), shape.weight[1]
    turns = _channels(shape)[1] // inputs
    order = torch.rand(
        shape.groups, inputs, shape.weight[2] * shape.weight[3], generator=source, dtype=torch.float64
    ).argsort(2)
    taps = order[..., :turns].transpose(1, 2).contiguous()
    return taps, signs(taps.numel(), source).view(taps.shape)
