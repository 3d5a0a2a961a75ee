"""Each native kernel in plain torch, for machines without the native build and for float64.

A sparse matrix is a CSR structure, read once from the index; all three products are raw ones: ``mm`` for the forward,
``mm`` with the transposed structure for the input's gradient, ``sampled_addmm`` for that of the values. The autograd of
CSR tensors is never used: it would make the dense gradient. A convolution unfolds strips of its input, about `STRIP`
numbers at a time, and does the same. The dense weight is never made.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference_index import build as build
from .reference_index import check as check
from .reference_index import index_bytes as index_bytes
from .reference_index import positions as positions
from .reference_index import sizes

LANES = 16
STRIP = 1 << 22  # numbers of an unfolded strip: 16 MiB in float32
KEPT = 64  # structures remembered, about 28 bytes per value each


class Compressed(NamedTuple):
    """Rows of a sparse matrix: where each starts, the column of each value, and its number in storage order."""

    starts: Tensor
    columns: Tensor
    order: Tensor
    shape: tuple[int, int]

    def matrix(self, values: Tensor) -> Tensor:
        """The CSR tensor that holds these values, given in storage order."""
        _quiet()
        return torch.sparse_csr_tensor(
            self.starts, self.columns, values[self.order], self.shape, check_invariants=False
        )


class Structure(NamedTuple):
    """A sparse matrix by its rows and by its columns."""

    by_row: Compressed
    by_column: Compressed


class Window(NamedTuple):
    """How a convolution moves over its input: (height, width) of each."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out."""
        out = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip((height, width), *self, strict=True)
        ]
        return out[0], out[1]


@functools.cache
def _quiet() -> None:
    """Spend torch's one warning that CSR tensors are in beta: these products are covered by our own tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


def _compress(major: Tensor, minor: Tensor, shape: tuple[int, int]) -> Compressed:
    order = torch.argsort(major * shape[1] + minor)
    starts = torch.zeros(shape[0] + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(major, minlength=shape[0]), 0, out=starts[1:])
    return Compressed(starts.int(), minor[order].int(), order, shape)


@functools.lru_cache(KEPT)
def _structure(data: bytes, groups: int) -> Structure:
    index = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    rows, columns, count = sizes(index)
    position = positions(index, count)
    row, column = position // columns, position % columns
    # The groups of a convolution stand side by side: one matrix over all channels.
    column = column + row // (rows // groups) * columns
    return Structure(_compress(row, column, (rows, columns * groups)), _compress(column, row, (columns * groups, rows)))


def structure(index: Tensor, groups: int = 1) -> Structure:
    """Return the sparse matrix of an index; the last `KEPT` are remembered by their bytes."""
    return _structure(index.numpy().tobytes(), groups)


def pack(x: Tensor) -> Tensor:
    """(batch, *features) to (tiles, *features, 16), missing lanes zero."""
    tiles = -(-x.shape[0] // LANES)
    padded = x.new_zeros((tiles * LANES, *x.shape[1:]))
    padded[: x.shape[0]] = x
    return padded.view(tiles, LANES, *x.shape[1:]).movedim(1, -1).contiguous()


def unpack(packed: Tensor, batch: int) -> Tensor:
    """(tiles, *features, 16) back to (batch, *features)."""
    return packed.movedim(-1, 1).flatten(0, 1)[:batch].clone(memory_format=torch.contiguous_format)


def linear_forward(index: Tensor, values: Tensor, bias: Tensor | None, x: Tensor, rows: int) -> Tensor:
    """(tiles, columns, 16) to (tiles, rows, 16)."""
    product = structure(index).by_row.matrix(values) @ _by_feature(x)
    if bias is not None:
        product += bias[:, None]
    return _by_tile(product, rows)


def linear_backward(
    index: Tensor, values: Tensor, x: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of input and values, each empty unless asked for."""
    rows = structure(index)
    slope = _by_feature(dy)
    dx, dvalues = x.new_empty(0), torch.zeros_like(values) if to_values else values.new_empty(0)
    if to_x:
        dx = _by_tile(rows.by_column.matrix(values) @ slope, x.shape[1])
    if to_values:
        _add_sampled(dvalues, rows.by_row, slope, _by_feature(x))
    return dx, dvalues


def _by_feature(packed: Tensor) -> Tensor:
    """[tiles, features, 16] as the matrix [features, tiles * 16]."""
    return packed.transpose(0, 1).reshape(packed.shape[1], -1)


def _by_tile(matrix: Tensor, features: int) -> Tensor:
    """The reverse of `_by_feature`."""
    return matrix.view(features, matrix.shape[1] // LANES, LANES).transpose(0, 1).contiguous()


def _add_sampled(dvalues: Tensor, rows: Compressed, left: Tensor, right: Tensor) -> None:
    """Add left @ right^T, on the support alone, to values in storage order."""
    if not len(dvalues) or not left.shape[1]:
        return
    zero = rows.matrix(torch.zeros_like(dvalues))
    dvalues[rows.order] += torch.sparse.sampled_addmm(zero, left, right.t(), beta=0.0).values()


def conv_forward(
    index: Tensor, values: Tensor, bias: Tensor | None, x: Tensor, shape: Sequence[int], *how: Any
) -> Tensor:
    """(tiles, in, height, width, 16) to (tiles, out, height', width', 16).

    shape: of the dense weight. how: stride, padding, dilation (each height and width) and groups.
    """
    window, groups = Window(shape[2:], *how[:3]), how[3]
    matrix = structure(index, groups).by_row.matrix(values)
    y = x.new_empty(len(x), shape[0], *window.output(*x.shape[2:4]), LANES)
    for tile, (top, end), unfolded in _strips(x, window):
        y[tile, :, top:end] = (matrix @ unfolded).view_as(y[tile, :, top:end])
    if bias is not None:
        y += bias[:, None, None, None]
    return y


def conv_backward(
    index: Tensor, values: Tensor, x: Tensor, dy: Tensor, shape: Sequence[int], *how: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of input and values, each empty unless asked for.

    how: as in `conv_forward`, then whether the input's and whether the values' gradient is wanted.
    """
    window, (groups, to_x, to_values) = Window(shape[2:], *how[:3]), how[3:]
    rows = structure(index, groups)
    dvalues = torch.zeros_like(values) if to_values else values.new_empty(0)
    down, right = window.padding
    dx = F.pad(torch.zeros_like(x), (0, 0, right, right, down, down)) if to_x else x.new_empty(0)
    transposed = rows.by_column.matrix(values)
    for tile, (top, end), unfolded in _strips(x, window):
        slope = dy[tile, :, top:end].reshape(shape[0], -1)
        if to_values:
            _add_sampled(dvalues, rows.by_row, slope, unfolded)
        if to_x:
            _fold(dx[tile], transposed @ slope, top, end, window, dy.shape[3])
    if to_x:
        dx = dx[:, :, down : down + x.shape[2], right : right + x.shape[3]].contiguous()
    return dx, dvalues


def _strips(x: Tensor, window: Window) -> Iterator[tuple[int, tuple[int, int], Tensor]]:
    """Strips of output rows: the tile, the first row and the end, and [channels * taps, rows * width * 16] of input."""
    height, width = window.output(*x.shape[2:4])
    channels, (down, right) = x.shape[1], window.padding
    lines = max(1, STRIP // (channels * window.kernel[0] * window.kernel[1] * width * LANES))
    for tile in range(len(x)):
        padded = F.pad(x[tile], (0, 0, right, right, down, down)).contiguous()
        plane, line, column, _ = padded.stride()
        steps = (window.dilation[0] * line, window.dilation[1] * column)
        strides = (plane, *steps, window.stride[0] * line, window.stride[1] * column, 1)
        for top in range(0, height, lines):
            end = min(top + lines, height)
            view = padded.as_strided(
                (channels, *window.kernel, end - top, width, LANES), strides, top * window.stride[0] * line
            )
            yield tile, (top, end), view.reshape(channels * window.kernel[0] * window.kernel[1], -1)


def _fold(padded: Tensor, unfolded: Tensor, top: int, end: int, window: Window, width: int) -> None:
    """Add unfolded gradients of output rows from top to end to where they came from: the adjoint of `_strips`."""
    taps = unfolded.view(padded.shape[0], *window.kernel, end - top, width, LANES)
    (down, right), (row_step, column_step) = window.stride, window.dilation
    for i in range(window.kernel[0]):
        first = top * down + i * row_step
        lines = slice(first, first + (end - top - 1) * down + 1, down)
        for j in range(window.kernel[1]):
            left = j * column_step
            padded[:, lines, left : left + (width - 1) * right + 1 : right] += taps[:, i, j]
