"""Sparse products over packed activations, as torch operators; native on the CPU, plain torch elsewhere.

**Packed activations** hold sixteen samples in the lanes of a register: a tensor (batch, *features) becomes (tiles,
*features, 16), tiles = ceil(batch / 16), missing samples zero. **Values** of a sparse matrix are a 1-D tensor in the
order of its **index**, a tensor of bytes that `build` makes and nobody else needs to look into (its layout is in
`cpu/native/index.h`). The weight (outputs, inputs / groups, *kernel) of a convolution is the matrix with a row per
output.

The operators are `torch.ops.gossamer.*`, differentiable, with shapes known to `torch.compile` and `torch.export`;
autocast computes them in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import ConfigError
from . import _operators, reference
from .cpu.library import call, native, threads

LANES = 16
_LARGEST = 32768  # rows or columns of a block
_PROBLEMS = {
    1: "it does not begin like one",
    2: "it belongs to another shape or number of values",
    3: "its header makes no sense",
    4: "its blocks do not add up",
    5: "rows or columns are out of range, repeated or out of order",
    6: "its blocks cut through kernels",
}
_BLOCK_AT = slice(32, 48)  # rows and columns of a block, in the header


def blocks(shape: tuple[int, int], count: int, taps: int = 1) -> tuple[int, int]:
    """Rows and columns of a block for a matrix of ``shape`` with ``count`` values.

    About a dozen values of a row fall into one block, so that starting a row costs little; four column blocks or more
    give the threads of a backward pass something to divide. The columns of a convolution come in whole channels.
    """
    rows, columns = shape
    density = max(count, 1) / (rows * columns)
    wanted = 2 ** round(math.log2(12.8 / density))
    width = min(max(64, min(wanted, 8192, columns // 4)), columns)
    if taps > 1:
        width = min(max(taps, width // taps * taps), columns)
        return min(max(32, min(32 * columns // taps, 1024)), rows), width
    height = 1024
    while height < min(rows, _LARGEST) and height * width * density < 2048:  # blocks cost something too
        height *= 2
    return min(height, rows), width


def block_of(index: Tensor) -> tuple[int, int]:
    """Rows and columns of a block of this index."""
    height, width = index[_BLOCK_AT].clone().view(torch.int64).tolist()
    return height, width


def index_bytes(shape: tuple[int, int], count: int, taps: int = 1) -> int:
    """Bytes of the index of ``count`` values in a matrix of ``shape``, wherever they lie; taps as in `build`.

    Raises:
        ConfigError: a size is out of range.
    """
    return reference.index_bytes(*shape, count, *_blocks(shape, count, taps))


def _blocks(shape: tuple[int, int], count: int, taps: int) -> tuple[int, int]:
    """The same as `blocks`, of sizes that can be."""
    rows, columns = shape
    if not 0 < rows <= 1 << 31 or not 0 < columns <= 1 << 31:
        raise ConfigError(f"a sparse matrix of {rows} x {columns}: each side must be between 1 and {1 << 31}")
    if taps > _LARGEST:
        raise ConfigError(f"a kernel of {taps} entries; sparse convolutions go up to {_LARGEST}, keep this layer dense")
    if not 0 <= count <= rows * columns:
        raise ConfigError(f"{count} values do not fit into a {rows} x {columns} matrix")
    return blocks(shape, count, taps)


def build(flat: Tensor, shape: tuple[int, int], taps: int = 1) -> tuple[Tensor, Tensor]:
    """Return the index of the entries at positions ``flat`` and the order in which it stores them.

    flat: 1-D int64, strictly ascending flat positions in a (rows, columns) matrix. taps: entries of a kernel, if the
        matrix is a convolution's. Returns ``(index, order)``: uint8 bytes; int64, the i-th stored value belongs to
        ``flat[order[i]]``.

    Raises:
        ConfigError: ``flat`` is no such tensor, or a size is out of range.
    """
    rows, columns = shape
    if flat.dtype != torch.int64 or flat.ndim != 1 or flat.device.type != "cpu":
        raise ConfigError(
            f"positions are {flat.dtype} of shape {tuple(flat.shape)} on {flat.device}; expected 1-D int64 on the CPU"
        )
    row_block, column_block = _blocks(shape, len(flat), taps)
    library = native()
    if library is None:
        return reference.build(flat, shape, (row_block, column_block))
    sizes = (rows, columns, len(flat), row_block, column_block)
    index = torch.empty(max(0, library.index_bytes(*sizes)), dtype=torch.uint8)
    order = torch.empty(len(flat), dtype=torch.int64)
    given = flat, len(flat), rows, columns, row_block, column_block
    if not len(index) or call(library.index_build, *given, index, order, threads()):
        raise ConfigError(
            f"positions must ascend strictly within 0..{rows * columns - 1} for a {rows} x {columns} matrix; sort them "
            "and drop repeated ones"
        )
    return index, order


def check(index: Tensor, shape: tuple[int, int], count: int, taps: int = 1) -> None:
    """Raise ConfigError unless ``index`` is valid for ``count`` values in a matrix of ``shape``; taps as in `build`."""
    if index.dtype != torch.uint8 or index.ndim != 1 or index.device.type != "cpu":
        raise ConfigError(f"an index is {index.dtype} of shape {tuple(index.shape)}; expected 1-D uint8 on the CPU")
    library = native()
    if library is None:
        problem = reference.check(index, shape, count)
    else:
        problem = call(library.index_check, index, len(index), *shape, count)
    if not problem and taps > 1:
        width = block_of(index)[1]
        problem = 6 if width < shape[1] and width % taps else 0
    if problem:
        raise ConfigError(
            f"these {len(index)} bytes are no index of {count} values in a {shape[0]} x {shape[1]} matrix: "
            f"{_PROBLEMS[problem]}"
        )


def positions(index: Tensor, count: int) -> Tensor:
    """Return the flat position of each stored value, int64; ``index`` must be valid."""
    library = native()
    if library is None:
        return reference.positions(index, count)
    flat = torch.empty(count, dtype=torch.int64)
    call(library.index_positions, index, flat)
    return flat


def gather(weight: Tensor, index: Tensor, count: int) -> Tensor:
    """Return the values of a dense (rows, columns) weight in the order of ``index``."""
    library = native()
    if library is None or weight.dtype != torch.float32 or not weight.is_contiguous():
        return weight.reshape(-1)[positions(index, count)]
    values = weight.new_empty(count)
    call(library.gather, index, weight, values, threads())
    return values


def pack(x: Tensor) -> Tensor:
    """(batch, *features) -> (tiles, *features, 16); differentiable."""
    _refuse_tangents(x)
    return _operators.pack(x)


def unpack(packed: Tensor, batch: int) -> Tensor:
    """(tiles, *features, 16) -> (batch, *features); differentiable."""
    return _operators.unpack(packed, batch)


def linear(packed: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """W x + bias of packed activations: (tiles, columns, 16) -> (tiles, rows, 16).

    Differentiable in ``packed``, ``values`` and ``bias``; the index must be valid and fit (`check`).
    """
    _refuse_tangents(packed, values)
    return _operators.linear(packed, values, index, bias, rows)


def conv(
    packed: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """2-D convolution of packed activations: (tiles, in, height, width, 16) -> (tiles, out, height', width', 16).

    weight_shape: (out, in / groups, kernel height, kernel width). Differentiable as `linear`.
    """
    _refuse_tangents(packed, values)
    return _operators.conv(packed, values, index, bias, weight_shape, stride, padding, dilation, groups)


def _refuse_tangents(*tensors: Tensor) -> None:
    """Forward-mode derivatives would be lost without a word."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            "sparse products have no forward-mode derivative; compute it with the dense form of the layer"
        )
