"""Maximum pooling of packed images, (tiles, channels, height, width, 16)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cpu.library import call, native, threads

LANES = 16
_SMALL = 1 << 31  # places in a plane are counted in 32 bits


def max_pool(x: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
    """Return the maxima and, int64, their positions in the image, as torch's ``max_pool2d_with_indices``.

    window: kernel size, stride, padding and dilation, two numbers each, and ceil_mode.
    """
    library = native()
    if library is None or x.dtype != torch.float32 or x.shape[2] * x.shape[3] >= _SMALL:
        out, voxels = torch.ops.aten.max_pool3d_with_indices(x, *_volume(window))
        return out, voxels // LANES
    size = _out_size(x, window)
    out = x.new_empty((*x.shape[:2], *size, LANES))
    places = torch.empty(out.shape, dtype=torch.int64)
    call(library.max_pool_forward, x, out, places, x.shape[0] * x.shape[1], _struct(x, window, size), threads())
    return out, places


def max_pool_backward(slope: Tensor, x: Tensor, places: Tensor, *window: Any) -> Tensor:
    """Return the gradient of ``x``; places as `max_pool` gave them."""
    library = native()
    if library is None or x.dtype != torch.float32 or x.shape[2] * x.shape[3] >= _SMALL:
        voxels = places * LANES + torch.arange(LANES)
        return torch.ops.aten.max_pool3d_with_indices_backward(slope, x, *_volume(window), voxels)
    dx, planes = torch.empty_like(x, memory_format=torch.contiguous_format), x.shape[0] * x.shape[1]
    call(library.max_pool_backward, slope, places, dx, planes, _struct(x, window, slope.shape[2:4]), threads())
    return dx


def _volume(window: Sequence[Any]) -> list[Any]:
    """The same window over images whose last dimension are the lanes."""
    kernel, stride, padding, dilation, ceil = window
    return [[*kernel, 1], [*stride, 1], [*padding, 0], [*dilation, 1], ceil]


def _out_size(x: Tensor, window: Sequence[Any]) -> Sequence[int]:
    image = torch.empty((1, 1, *x.shape[2:4]), device="meta")
    return torch.ops.aten.max_pool2d_with_indices(image, *window)[0].shape[2:]


def _struct(x: Tensor, window: Sequence[Any], size: Sequence[int]) -> Any:
    """`Window` of cpu/native/kernels.h."""
    numbers = [*x.shape[2:4], *window[0], *window[1], *window[2], *window[3], *size]
    return ctypes.byref((ctypes.c_int64 * len(numbers))(*numbers))
