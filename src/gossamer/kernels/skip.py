"""Products of a sparse weight with activations that are sparse too: nothing is multiplied by zero."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .cpu.library import call, native, threads

_library = torch.library.Library("gossamer", "FRAGMENT")
_library.define(
    "skip(Tensor x, Tensor start, Tensor row, Tensor values, Tensor? bias, int rows, int[] kernel, int[] stride, "
    "int[] padding, int[] dilation) -> (Tensor, Tensor)"
)


class Columns(NamedTuple):
    """The active entries of a weight (out, in / groups, height, width), by the input and the tap that they read.

    start: int64, (in * taps + 1,): where the entries of each input channel and tap begin. row: int32, output channels,
    ascending within these. values: of each entry.
    """

    start: Tensor
    row: Tensor
    values: Tensor


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


def check(weight: Columns, rows: int, columns: int) -> None:
    """Raise ConfigError unless these are the entries of a weight of so many rows and columns: kernels trust them."""
    start, row, values = weight
    if any(tensor.is_meta for tensor in weight):
        raise ConfigError("the entries of a doubly sparse layer are on the meta device; use load_state_dict first")
    kinds = start.dtype == torch.int64 and row.dtype == torch.int32 and values.is_floating_point()
    if not kinds or start.shape != (columns + 1,) or row.ndim != 1 or row.shape != values.shape:
        raise ConfigError(
            f"start is {start.dtype} {tuple(start.shape)}, row {row.dtype} {tuple(row.shape)}, values {values.dtype} "
            f"{tuple(values.shape)}; expected torch.int64 ({columns + 1},), torch.int32, and as many floating values"
        )
    if int(start[0]) or int(start[-1]) != len(row) or bool((start.diff() < 0).any()):
        raise ConfigError(f"the columns of a doubly sparse layer do not share out its {len(row)} entries")
    rises = row.diff() > 0
    rises[start[1:-1][(start[1:-1] > 0) & (start[1:-1] < len(row))] - 1] = True  # where a column begins
    inside = len(row) == 0 or (int(row.min()) >= 0 and int(row.max()) < rows)
    if not inside or not bool(rises.all()):
        raise ConfigError(f"the entries of a doubly sparse layer are not ascending rows below {rows} in each column")


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
) -> tuple[Tensor, Tensor]:
    """Convolve images (samples, channels, height, width), channels last in memory; and count the multiplications.

    weight: entries that `check` finds valid. rows: output channels. how: stride, padding, dilation. One multiplication
    for each active weight and non-zero input that meet; NaN is no zero.
    """
    y, products = torch.ops.gossamer.skip(x, *weight, bias, rows, kernel, *how)
    return y.permute(0, 3, 1, 2), products


@torch.library.impl(_library, "skip", "CPU")
def _skip(
    x: Tensor,
    start: Tensor,
    row: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: int,
    kernel: Sequence[int],
    *how: Sequence[int],
) -> tuple[Tensor, Tensor]:
    if bias is not None and (bias.shape != (rows,) or bias.dtype != x.dtype):
        raise ConfigError(f"bias is {bias.dtype} of shape {tuple(bias.shape)}; expected {x.dtype} of shape ({rows},)")
    y, count = _outputs(x, start, row, values, bias, rows, kernel, *how)
    weight, library = Columns(start, row, values), native()
    if library is None or x.dtype != torch.float32 or values.dtype != x.dtype:
        return y, count.fill_(_reference(x, weight, bias, y, kernel, how))
    stride, padding, dilation = how
    sizes = [*x.shape, rows, *kernel, *stride, *padding, *dilation, 1, *y.shape[1:3]]
    geometry = ctypes.byref((ctypes.c_int64 * len(sizes))(*sizes))  # `Geometry` of cpu/native/kernels.h
    last = x.permute(0, 2, 3, 1)
    products = call(library.skip_forward, *weight, bias, last, y, geometry, threads()) if y.numel() else 0
    return y, count.fill_(products)


@torch.library.register_fake("gossamer::skip", lib=_library)
def _outputs(
    x: Tensor,
    start: Tensor,
    row: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: int,
    kernel: Sequence[int],
    *how: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Memory of the images, channels last, and of the count."""
    return x.new_empty((len(x), *output_size(x.shape[2:], kernel, how), rows)), start.new_empty(())


def _reference(
    x: Tensor,
    weight: Columns,
    bias: Tensor | None,
    y: Tensor,
    kernel: Sequence[int],
    how: Sequence[Sequence[int]],
) -> int:
    """Tap by tap: every pair of a non-zero input and an entry that it meets, added up by index; how many there are."""
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
        y.view(-1).index_add_(0, cell, weight.values[entry].to(y.dtype) * factor)
        products += len(pair)
    return products
