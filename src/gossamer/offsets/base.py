"""What an offset is: a matrix for each shape of a layer, and maps that apply it without holding it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from ..kernels import sparse
from ..kernels.transforms import LinearMap, Product


@dataclass(frozen=True)
class ConvolutionShape:
    """The sizes of a convolution: `weight` is (outputs, inputs / groups, kernel height, kernel width)."""

    weight: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class ConvolutionMap(Protocol):
    """A fixed convolution and its transpose.

    Of images (batch, channels, height, width), or packed ones (tiles, channels, height, width, 16). As with
    `LinearMap`, nothing is differentiated.
    """

    def apply(self, x: Tensor) -> Tensor:
        """Convolve."""

    def transpose(self, g: Tensor, size: torch.Size) -> Tensor:
        """Gradient of the input, which had that size, from that of the output."""


class Direct:
    """A convolution map that holds its kernel, and leaves the work to torch."""

    def __init__(self, kernel: Tensor, shape: ConvolutionShape) -> None:
        self.kernel = kernel
        self.options = (shape.stride, shape.padding, shape.dilation, shape.groups)

    def apply(self, x: Tensor) -> Tensor:
        """Convolve."""
        if x.ndim == 5:
            return sparse.pack(self.apply(_images(x)))
        return functional.conv2d(x, self.kernel.to(x.dtype), None, *self.options)

    def transpose(self, g: Tensor, size: torch.Size) -> Tensor:
        """Gradient of the input."""
        if g.ndim == 5:
            tiles, *image, lanes = size
            return sparse.pack(self.transpose(_images(g), torch.Size((tiles * lanes, *image))))
        return conv2d_input(list(size), self.kernel.to(g.dtype), g, *self.options)


def _images(packed: Tensor) -> Tensor:
    return sparse.unpack(packed, len(packed) * packed.shape[-1])


@dataclass(frozen=True)
class Offset(ABC):
    """A fixed matrix D for every layer shape, of unit singular values unless it says otherwise.

    name, summary: as listed by `gossamer offsets`. cost: of a fast transform, in words; q = max(rows, columns), Q the
        next power of two. singular_values: those of D, in words. seeded: whether D is drawn, from the seed that its
        layer keeps. spellings: name -> class of every offset with a name, by which configs spell them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    cost: ClassVar[str] = "rows columns"
    singular_values: ClassVar[str] = "all 1"
    seeded: ClassVar[bool] = False
    spellings: ClassVar[Mapping[str, type[Offset]]] = {}

    @property
    def label(self) -> str:
        """Its name, by which a config spells it."""
        return self.name

    def argument(self, name: str) -> Any:
        """One of its fields."""
        return getattr(self, name)

    @abstractmethod
    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64, (rows, columns): its definition."""

    def linear(self, rows: int, columns: int, seed: int = 0) -> LinearMap:
        """D as a map; here, by its matrix."""
        return Product(self.matrix(rows, columns, seed))

    def multiplications(self, rows: int, columns: int) -> float:
        """Multiplications that D x takes with the best transform known; what a map really does may be more."""
        return rows * columns

    def kernel(self, shape: ConvolutionShape, seed: int = 0) -> Tensor:
        """D of a convolution in float64, (outputs, inputs / groups, kernel height, kernel width).

        Each patch of the image is read in the order kernel row, kernel column, channel, with the channel fastest (not
        the order of ``torch.nn.functional.unfold``), and D is that of a linear layer from it to the outputs.
        """
        outputs, inputs, height, width = shape.weight
        patches = self.matrix(outputs, inputs * height * width, seed)
        return patches.view(outputs, height, width, inputs).permute(0, 3, 1, 2).contiguous()

    def kernel_multiplications(self, shape: ConvolutionShape) -> float:
        """The same for a convolution, per position of its output: a transform of the patch of each group."""
        outputs, inputs, height, width = shape.weight
        return shape.groups * self.multiplications(outputs, inputs * height * width)

    def convolution(self, shape: ConvolutionShape, seed: int = 0) -> ConvolutionMap:
        """D of a convolution as a map; here, by its kernel."""
        return Direct(self.kernel(shape, seed), shape)
