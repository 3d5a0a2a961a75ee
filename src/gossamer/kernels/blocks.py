"""Products with a matrix of which some square blocks exist: torch operators, native on the CPU, in Triton on a GPU.

**Values** are a tensor (blocks, side, side), each block row-major; the **index** holds their numbers in the matrix of
all blocks, counted row by row: int32, strictly ascending. Where the side does not divide the matrix, blocks at its
lower and right edge reach beyond it: those values are 0, take no part in a product and have gradients of 0.

`torch.ops.gossamer.block_packed` takes packed activations, on the CPU: native for float32 and sides that are multiples
of 4. `torch.ops.gossamer.block_linear` takes rows, on any device: in `gpu.blocks` where that supports them. The rest is
plain torch. Both have derivatives, and shapes for tracing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ConfigError
from ._operators import LANES, _check_sizes, _kernel, _library, _native_for, _no_second_derivative, _shapes
from .cpu.library import Library, call, threads
from .reference import pack, unpack
from .sparse import _refuse_tangents

STRIP = 1 << 22  # numbers of a product of single blocks that the reference makes at a time
_DAMAGED = "the index of a block-sparse layer is damaged: {}; load the layer again, or call set_support()"

for _name in ("block_linear", "block_packed"):
    _library.define(f"{_name}(Tensor x, Tensor values, Tensor index, Tensor? bias, int rows) -> Tensor")
    _library.define(
        f"{_name}_backward(Tensor x, Tensor values, Tensor index, Tensor dy, bool to_x, bool to_values) "
        "-> (Tensor, Tensor)"
    )


def grid(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Block rows and block columns of a (rows, columns) matrix."""
    return -(-shape[0] // side), -(-shape[1] // side)


def places(index: Tensor, columns: int, side: int) -> tuple[Tensor, Tensor]:
    """Block row and block column of each block, int64, in a matrix of so many columns."""
    wide = -(-columns // side)
    return index.long() // wide, index.long() % wide


def inside(index: Tensor, shape: tuple[int, int], side: int) -> Tensor:
    """Which values lie within the matrix, bool (blocks, side, side)."""
    along = torch.arange(side, device=index.device)
    down, across = ((at * side).unsqueeze(1) + along for at in places(index, shape[1], side))
    return (down < shape[0]).unsqueeze(2) & (across < shape[1]).unsqueeze(1)


def check(index: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
    """Raise ConfigError unless ``index`` is valid for ``values`` in a matrix of ``shape``."""
    if values.ndim != 3 or values.shape[1] != values.shape[2]:
        raise ConfigError(f"the values of blocks have shape {tuple(values.shape)}; expected (blocks, side, side)")
    if index.dtype != torch.int32 or index.shape != values.shape[:1]:
        raise ConfigError(
            f"the index of {len(values)} blocks is {index.dtype} of shape {tuple(index.shape)}; expected int32 of "
            f"shape ({len(values)},)"
        )
    high, wide = grid(shape, values.shape[1])
    if len(index) and not (index[0] >= 0 and index[-1] < high * wide and (index[1:] > index[:-1]).all()):
        raise ConfigError(_DAMAGED.format(f"block numbers must ascend strictly within 0..{high * wide - 1}"))


def linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """W x + bias of rows: (batch, columns) -> (batch, rows), on any device.

    Differentiable in ``x``, ``values`` and ``bias``; the index must be valid (`check`).
    """
    _refuse_tangents(x, values)
    return torch.ops.gossamer.block_linear(x, values, index, bias, rows)


def packed_linear(packed: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """The same of packed activations: (tiles, columns, 16) -> (tiles, rows, 16), on the CPU."""
    _refuse_tangents(packed, values)
    return torch.ops.gossamer.block_packed(packed, values, index, bias, rows)


# -- the reference --


def _strips(x: Tensor, index: Tensor, values: Tensor) -> Iterator[slice]:
    """Ranges of blocks whose products are made at a time."""
    length = max(1, STRIP // max(1, len(x) * values.shape[1]))
    return (slice(at, at + length) for at in range(0, len(index), length))


def _by_blocks(x: Tensor, side: int) -> Tensor:
    """(batch, features) -> (blocks of features, batch, side), zeros beyond the last feature."""
    count = -(-x.shape[1] // side)
    padded = torch.nn.functional.pad(x, (0, count * side - x.shape[1]))
    return padded.view(len(x), count, side).transpose(0, 1)


def _summed(x: Tensor, values: Tensor, read: Tensor, write: Tensor, features: int) -> Tensor:
    """Add x's blocks ``read`` times values to the blocks ``write`` of a (batch, features) result."""
    side, batch = values.shape[1], len(x)
    out, blocks = x.new_zeros(-(-features // side), batch, side), _by_blocks(x, side)
    for some in _strips(x, read, values):
        out.index_add_(0, write[some], torch.bmm(blocks[read[some]], values[some]))
    return out.transpose(0, 1).reshape(batch, len(out) * side)[:, :features]


def _forward(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    from .gpu import blocks as gpu  # which shares `grid`

    _check_sizes(rows, bias)
    _native_for(x, values, bias)
    if gpu.supported(x, values, bias):
        return gpu.forward(x, values, index, bias, rows)
    down, across = places(index, x.shape[1], values.shape[1])
    with torch.autocast(x.device.type, enabled=False):  # as it is given
        y = _summed(x, values.transpose(1, 2), across, down, rows)
    return y.contiguous() if bias is None else y + bias


def _backward(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    from .gpu import blocks as gpu

    _native_for(x, values, dy)
    if gpu.supported(x, values, dy):
        return gpu.backward(x, values, index, dy, to_x, to_values)
    with torch.autocast(x.device.type, enabled=False):  # a backward pass may run in it
        return _gradients(x, values, index, dy, to_x, to_values)


def _gradients(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    side = values.shape[1]
    down, across = places(index, x.shape[1], side)
    dx = _summed(dy, values, down, across, x.shape[1]).contiguous() if to_x else x.new_empty(0)
    if not to_values:
        return dx, values.new_empty(0)
    dvalues, inputs, slopes = torch.empty_like(values), _by_blocks(x, side), _by_blocks(dy, side)
    for some in _strips(x, index, values):
        dvalues[some] = torch.bmm(slopes[down[some]].transpose(1, 2), inputs[across[some]])
    return dx, dvalues.masked_fill_(~inside(index, (dy.shape[1], x.shape[1]), side), 0.0)


# -- the operators --


def _native(values: Tensor, *others: Tensor | None) -> Library | None:
    library = _native_for(values, *others)
    return None if values.shape[1] % 4 else library


def _called(function: object, *arguments: object) -> None:
    if call(function, *arguments):
        raise ConfigError(_DAMAGED.format("block numbers do not ascend within the matrix"))


def _on_any_device(name: str, function: object) -> None:
    _library.impl(name, function, "CompositeExplicitAutograd")


_on_any_device("block_linear", _forward)
_on_any_device("block_linear_backward", _backward)


@_kernel("block_packed")
def _packed_forward(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    _check_sizes(rows, bias)
    library = _native(values, x, bias)
    if library is None:
        return pack(_forward(unpack(x, LANES * len(x)), values, index, bias, rows))
    y = _packed_like(x, values, index, bias, rows)
    where = index, len(index), rows, x.shape[1], values.shape[1]
    _called(library.block_forward, *where, values, bias, x, y, len(x), threads())
    return y


@_kernel("block_packed_backward")
def _packed_backward(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    library = _native(values, x, dy)
    if library is None:
        rows = (unpack(each, LANES * len(each)) for each in (x, dy))
        dx, dvalues = _backward(next(rows), values, index, next(rows), to_x, to_values)
        return pack(dx) if to_x else dx, dvalues
    dx, dvalues = _gradients_like(x, values, index, dy, to_x, to_values)
    outputs = dx if to_x else None, dvalues if to_values else None
    where = index, len(index), dy.shape[1], x.shape[1], values.shape[1]
    _called(library.block_backward, *where, values, x, dy, *outputs, len(x), threads())
    return dx, dvalues


@_shapes("block_linear")
def _rows_like(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty((x.shape[0], rows))


@_shapes("block_packed")
def _packed_like(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty((x.shape[0], rows, LANES))


@_shapes("block_linear_backward")
@_shapes("block_packed_backward")
def _gradients_like(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if to_x else (0,)), values.new_empty(values.shape if to_values else (0,))


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _rows_derivative(ctx: torch.autograd.function.FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _derivative(ctx, dy, torch.ops.gossamer.block_linear_backward, (0,))


def _packed_derivative(ctx: torch.autograd.function.FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _derivative(ctx, dy, torch.ops.gossamer.block_packed_backward, (0, 2))


def _derivative(
    ctx: torch.autograd.function.FunctionCtx,
    dy: Tensor,
    backward: torch._ops.OpOverloadPacket,
    samples: tuple[int, ...],
) -> tuple[Tensor | None, ...]:
    x, values, index = ctx.saved_tensors  # type: ignore[attr-defined]
    to_x, to_values, _, to_bias = ctx.needs_input_grad[:4]  # type: ignore[attr-defined]
    dx, dvalues = backward(x, values, index, dy, to_x, to_values)
    return dx if to_x else None, dvalues if to_values else None, None, dy.sum(samples) if to_bias else None, None


for _name, _function in (("block_linear", _rows_derivative), ("block_packed", _packed_derivative)):
    torch.library.register_autograd(f"gossamer::{_name}", _function, setup_context=_keep, lib=_library)
    torch.library.register_autograd(f"gossamer::{_name}_backward", _no_second_derivative, lib=_library)
    torch.library.register_autocast(f"gossamer::{_name}", "cpu", torch.float32, lib=_library)
