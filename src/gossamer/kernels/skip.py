"""Products of a sparse weight with activations that are sparse too: nothing is multiplied by zero."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .cpu.library import call, native, threads


class Columns(NamedTuple):
    """The active entries of a weight (out, in / groups, height, width), by the input and the tap that they read.

    start: int64, (in * taps + 1,): where the entries of each input channel and tap begin. row: int32, output channels,
    ascending within these. value: of each entry.
    """

    start: Tensor
    row: Tensor
    value: Tensor


def by_columns(flat: Tensor, values: Tensor, shape: Sequence[int], groups: int) -> Columns:
    """Order entries at ascending flat positions of a weight of that shape."""
    rows, channels, *kernel = shape
    taps = kernel[0] * kernel[1]
    row, rest = flat // (channels * taps), flat % (channels * taps)
    group = row // (rows // groups)
    column = group * channels * taps + rest
    order = torch.argsort(column, stable=True)
    counts = torch.bincount(column, minlength=groups * channels * taps)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Columns(start, row[order].int(), values[order].contiguous())


def output_size(size: Sequence[int], kernel: Sequence[int], how: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Height and width that a convolution gives. how: stride, padding, dilation.

    Raises:
        ConfigError: the kernel is larger than the padded image.
    """
    height, width = (
        (at + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for at, taps, jump, pad, step in zip(size, kernel, *how, strict=True)
    )
    if height < 1 or width < 1:
        raise ConfigError(
            f"an input of size {tuple(size)} padded by {tuple(how[1])} is smaller than the kernel; enlarge the padding "
            "or the input"
        )
    return height, width


def forward(
    x: Tensor, weight: Columns, bias: Tensor | None, rows: int, kernel: Sequence[int], how: Sequence[Sequence[int]]
) -> tuple[Tensor, int]:
    """Convolve images (samples, channels, height, width), channels last in memory; and count the multiplications.

    rows: output channels. how: stride, padding, dilation. One multiplication for each active weight and non-zero input
    that meet; NaN is no zero.
    """
    out = output_size(x.shape[2:], kernel, how)
    y = x.new_empty((len(x), *out, rows))
    library = native()
    if library is None or x.dtype != torch.float32:
        return _reference(x, weight, bias, y, kernel, how)
    stride, padding, dilation = how
    sizes = [*x.shape, rows, *kernel, *stride, *padding, *dilation, 1, *out]
    geometry = ctypes.byref((ctypes.c_int64 * len(sizes))(*sizes))  # `Geometry` of cpu/native/kernels.h
    last = x.permute(0, 2, 3, 1)
    products = call(library.skip_forward, *weight, bias, last, y, geometry, threads()) if y.numel() else 0
    return y.permute(0, 3, 1, 2), int(products)


def _reference(
    x: Tensor,
    weight: Columns,
    bias: Tensor | None,
    y: Tensor,
    kernel: Sequence[int],
    how: Sequence[Sequence[int]],
) -> tuple[Tensor, int]:
    """Tap by tap: every pair of a non-zero input and an entry that it meets, added up by index."""
    y[:] = 0 if bias is None else bias
    stride, padding, dilation = (torch.tensor(each) for each in how)
    sample, channel, *at = x.nonzero().unbind(1)
    products, size = 0, torch.tensor(y.shape[1:3])
    for tap in range(kernel[0] * kernel[1]):
        shift = torch.tensor(divmod(tap, kernel[1])) * dilation
        place = torch.stack(at, 1) + padding - shift
        to = place // stride
        meets = ((place >= 0) & (place % stride == 0) & (to < size)).all(1)
        n, c, (i, j) = sample[meets], channel[meets], to[meets].unbind(1)
        first = weight.start[c * kernel[0] * kernel[1] + tap]
        many = weight.start[c * kernel[0] * kernel[1] + tap + 1] - first
        pair = torch.repeat_interleave(many)
        entry = first[pair] + torch.arange(len(pair)) - (many.cumsum(0) - many)[pair]
        factor = x[n, c, at[0][meets], at[1][meets]][pair]
        cell = ((n * y.shape[1] + i) * y.shape[2] + j)[pair] * y.shape[3] + weight.row[entry]
        y.view(-1).index_add_(0, cell, weight.value[entry].to(y.dtype) * factor)
        products += len(pair)
    return y.permute(0, 3, 1, 2), products
