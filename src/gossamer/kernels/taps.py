"""Convolutions whose weight is a few products of small factors: what is left of them after the channels were mixed.

The weight (outputs, inputs / groups, kernel height, kernel width) is::

    weight[o, c, i, j] = sum over parts s of filters[o, s, i, j] * sum over k of mix[o, s, k] * channels[s, k, c]

with other `channels` for each group. The product with `channels` is left to the caller; it gives z, whose channels
follow each other by group, part and k. Neither the weight nor the outputs' planes before the filters are ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from . import sparse
from ._operators import _as_struct, _geometry, spread
from .cpu.library import Library, call, native, threads

Pair = tuple[int, int]


@dataclass(frozen=True)
class Taps:
    """The factors behind z, and how the filters step over the image.

    mix: (outputs, parts, rank). filters: (outputs, parts, kernel height, kernel width). groups: of the outputs, each
    with channels of z of its own.
    """

    mix: Tensor
    filters: Tensor
    groups: int
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def channels(self) -> int:
        """Those of z."""
        return self.groups * self.mix[0].numel()

    def apply(self, z: Tensor) -> Tensor:
        """Images from z: packed (tiles, channels, height, width, 16), or plain (batch, channels, height, width)."""
        library = self._native_for(z, z.shape[2:4])
        if z.ndim == 4:
            return sparse.unpack(self.apply(sparse.pack(z)), len(z)) if library else self._reference(z)
        if library is None:
            return sparse.pack(self._reference(_plain(z)))
        geometry = self._geometry(z.shape)
        y = z.new_empty((len(z), len(self.mix), *geometry[-2:], sparse.LANES))
        if y.numel():
            parts = self.mix.shape[1]
            factors = self.mix.to(z.dtype), self.filters.to(z.dtype)
            call(library.taps_forward, z, *factors, y, _as_struct(geometry), parts, threads())
        return y

    def transpose(self, g: Tensor, size: Sequence[int]) -> Tensor:
        """The gradient of z, whose height and width are `size`, from that of the images."""
        library = self._native_for(g, size)
        if g.ndim == 4:
            if library is None:
                return self._reference_transpose(g, size)
            return sparse.unpack(self.transpose(sparse.pack(g), size), len(g))
        if library is None:
            return sparse.pack(self._reference_transpose(_plain(g), size))
        dz = g.new_empty((len(g), self.channels, *size, sparse.LANES))
        if not g.numel():
            return dz.zero_()
        factors = self.mix.to(g.dtype), self.filters.to(g.dtype)
        geometry = _as_struct(self._geometry(dz.shape))
        call(library.taps_backward, g, *factors, dz, geometry, self.mix.shape[1], threads())
        return dz

    def _native_for(self, x: Tensor, size: Sequence[int]) -> Library | None:
        if x.dtype != torch.float32 or spread(size, self.filters.shape[2:], self.padding, self.dilation):
            return None
        return native()

    def _how(self, groups: int) -> Any:
        return self.stride, self.padding, self.dilation, groups

    def _geometry(self, z: torch.Size) -> list[int]:
        shape = (len(self.mix), 0, *self.filters.shape[2:])
        return _geometry(torch.empty(z, device="meta"), shape, self._how(self.groups))

    def _by_output(self, dtype: torch.dtype) -> Tensor:
        """(groups, outputs of one x parts, parts x rank): the planes of each output from z."""
        outputs, parts, rank = self.mix.shape
        eye = torch.eye(parts, dtype=self.mix.dtype)
        whole = self.mix[:, :, None] * eye[:, :, None]
        return whole.reshape(self.groups, outputs // self.groups * parts, parts * rank).to(dtype)

    def _reference(self, z: Tensor) -> Tensor:
        grouped = z.reshape(len(z), self.groups, self.mix[0].numel(), z.shape[2] * z.shape[3])
        planes = (self._by_output(z.dtype) @ grouped).view(len(z), self.mix[..., 0].numel(), *z.shape[2:])
        return functional.conv2d(planes, self.filters.to(z.dtype), None, *self._how(len(self.mix)))

    def _reference_transpose(self, g: Tensor, size: Sequence[int]) -> Tensor:
        planes = [len(g), self.mix[..., 0].numel(), *size]
        slope = conv2d_input(planes, self.filters.to(g.dtype), g, *self._how(len(self.mix)))
        grouped = slope.view(len(g), self.groups, planes[1] // self.groups, size[0] * size[1])
        return (self._by_output(g.dtype).mT @ grouped).view(len(g), self.channels, *size)


def _plain(packed: Tensor) -> Tensor:
    return sparse.unpack(packed, len(packed) * sparse.LANES)
