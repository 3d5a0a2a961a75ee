"""Which part of an image a single tap of a convolution reads, and which outputs it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import ConvolutionShape


@dataclass(frozen=True)
class Window:
    """The pairs of an output position and the input position that a tap reads for it, inside the image.

    sources: slices of the input's height and width, targets: of the output's. sizes: height and width of the output.
    """

    sources: tuple[slice, slice]
    targets: tuple[slice, slice]
    sizes: tuple[int, int]

    @property
    def whole_output(self) -> bool:
        """Whether the tap reads the image for every output."""
        return all(part == slice(0, size) for part, size in zip(self.targets, self.sizes, strict=True))

    def read(self, x: Tensor) -> Tensor:
        """View of the input positions of (batch, channels, height, width, ...)."""
        return x[(slice(None), slice(None), *self.sources)]

    def written(self, y: Tensor) -> Tensor:
        """View of the output positions."""
        return y[(slice(None), slice(None), *self.targets)]

    def output(self, size: torch.Size) -> tuple[int, ...]:
        """That size with the height and width of the output."""
        return (*size[:2], *self.sizes, *size[4:])


def windows(shape: ConvolutionShape, size: torch.Size, tap: tuple[int, int]) -> Window:
    """The window of a tap for an input of that size: position p reads p stride - padding + tap dilation."""
    sources, targets, sizes = [], [], []
    for length, taps, stride, padding, dilation, at in zip(
        size[2:4], shape.weight[2:], shape.stride, shape.padding, shape.dilation, tap, strict=True
    ):
        outputs = (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        shift = at * dilation - padding
        first = max(0, -(shift // stride))
        last = max(first, min(outputs, (length - 1 - shift) // stride + 1))
        begin = first * stride + shift
        sources.append(slice(begin, begin + (last - first) * stride, stride) if last > first else slice(0, 0))
        targets.append(slice(first, last) if last > first else slice(0, 0))
        sizes.append(outputs)
    return Window((sources[0], sources[1]), (targets[0], targets[1]), (sizes[0], sizes[1]))


def by_group(x: Tensor, groups: int, product: Callable[[Tensor, int], Tensor]) -> Tensor:
    """A linear map of the channels (axis 1) of every group."""
    y = product(x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:]), 1)
    return y.view(x.shape[0], y.shape[1] * groups, *x.shape[2:])
