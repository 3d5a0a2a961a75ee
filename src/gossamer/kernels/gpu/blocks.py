"""Block-sparse products on the GPU: W x, W^T dy, and dy^T x where W has blocks.

The format is that of the layer: values (blocks, side, side), row-major blocks; index int32 (blocks,), their numbers
in the matrix of all blocks counted row by row, ascending. Blocks may reach beyond the lower and right edge, where
values are 0. Sides are 16, 32, 64 or 128 (`supported`). Sums are float32; float32 operands are multiplied as such, not
as TF32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..blocks import grid
from .runtime import device_of, on_gpu

SIDES = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ENOUGH = 528  # programs that fill an H200 well: below, the tokens of a block are split


class Config(NamedTuple):
    """How a product is cut: tokens at a time, warps of a program, loads in flight."""

    tokens: int
    warps: int
    stages: int


CONFIGS = tuple(Config(*each) for each in ((128, 4, 3), (128, 8, 3), (128, 4, 4), (128, 8, 4), (64, 4, 4), (256, 8, 3)))


class _Layout(NamedTuple):
    """Where the blocks of each block row, or column, are: see `device.blocks.product`."""

    starts: Tensor
    sources: Tensor
    numbers: Tensor


_layouts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # index -> what was made of it


def supported(x: Tensor, values: Tensor, other: Tensor | None = None) -> bool:
    """Whether the kernels take these; other: the bias, or the gradient of the result."""
    alike = x.dtype == values.dtype and (other is None or other.dtype == x.dtype)
    return on_gpu(x, values, other) and alike and x.dtype in DTYPES and values.shape[1] in SIDES


def default(side: int, dtype: torch.dtype) -> Config:
    """The configuration used unless one is given."""
    if dtype == torch.float32:  # products without tensor cores, which the compiler writes out
        return Config(16, 8, 2) if side == 128 else Config(64, 4, 2)
    return Config(128, 8, 4) if side == 128 else Config(128, 4, 4)


def _layout(index: Tensor, shape: tuple[int, int], transposed: bool) -> _Layout:
    """Made once for an index of a (block rows, block columns) grid; nothing is read back by the host."""
    known = _layouts.get(index)
    state = None if index.is_inference() else (index._version, shape)  # inference tensors do not count their changes
    if known is None or state is None or known[0] != state:
        known = _layouts[index] = (state, {})
    found: dict[bool, _Layout] = known[1]
    if transposed not in found:
        made = _made(index, shape, transposed)
        if index.is_cuda and torch.cuda.is_current_stream_capturing():
            return made  # it belongs to the graph, and holds nothing before a replay
        found[transposed] = made
    return found[transposed]


def _made(index: Tensor, shape: tuple[int, int], transposed: bool) -> _Layout:
    high, wide = shape
    down, across = index // wide, index % wide
    numbers = torch.argsort(across, stable=True) if transposed else torch.arange(len(index), device=index.device)
    writes, reads = (across[numbers], down[numbers]) if transposed else (down, across)
    edges = torch.arange((wide if transposed else high) + 1, dtype=torch.int32, device=index.device)
    starts = torch.searchsorted(writes.contiguous(), edges, out_int32=True)
    return _Layout(starts, reads.to(torch.int32), numbers.to(torch.int32))


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32"


def block_matmul(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, config: Config | None = None
) -> Tensor:
    """W x + bias: (batch, columns) -> (batch, rows)."""
    layout = _layout(index, grid((rows, x.shape[1]), values.shape[1]), False)
    return _product(x.contiguous(), values, layout, bias, rows, False, config)


def block_matmul_transposed(
    dy: Tensor, values: Tensor, index: Tensor, columns: int, config: Config | None = None
) -> Tensor:
    """W^T dy: (batch, rows) -> (batch, columns)."""
    layout = _layout(index, grid((dy.shape[1], columns), values.shape[1]), True)
    return _product(dy.contiguous(), values, layout, None, columns, True, config)


def _product(
    x: Tensor,
    values: Tensor,
    layout: _Layout,
    bias: Tensor | None,
    wanted: int,
    transposed: bool,
    config: Config | None,
) -> Tensor:
    from .device import blocks as device

    side, y = values.shape[1], x.new_empty((len(x), wanted))
    config = config or default(side, x.dtype)
    with device_of(x):
        device.product[(len(layout.starts) - 1, -(-len(x) // config.tokens))](
            x, values.contiguous(), *layout, bias, y, len(x), x.shape[1], wanted,
            SIDE=side, TRANSPOSED=transposed, TOKENS=config.tokens, PRECISION=_precision(x.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return y


def block_sampled(x: Tensor, dy: Tensor, index: Tensor, side: int, config: Config | None = None) -> Tensor:
    """dy^T x of the blocks: (batch, columns), (batch, rows) -> (blocks, side, side).

    Where there are few blocks, parts of the batch are summed apart and then added, always in the same order.
    """
    from .device import blocks as device

    x, dy, (rows, columns) = x.contiguous(), dy.contiguous(), (dy.shape[1], x.shape[1])
    config = config or default(side, x.dtype)
    tokens = min(config.tokens, 64)
    splits = max(1, min(8, _ENOUGH // len(index), -(-len(x) // tokens)))
    parts = x.new_empty((splits, len(index), side, side), dtype=x.dtype if splits == 1 else torch.float32)
    with device_of(x):
        device.sampled[(len(index), splits)](
            x, dy, index, parts, len(x), rows, columns, grid((rows, columns), side)[1],
            SIDE=side, TOKENS=tokens, PRECISION=_precision(x.dtype), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return parts[0] if splits == 1 else parts.sum(0).to(x.dtype)


def forward(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """As the operator `gossamer::block_linear`."""
    if not len(index) or not len(x):
        return x.new_zeros((len(x), rows)) if bias is None else bias.expand(len(x), rows).clone()
    return block_matmul(x, values, index, bias, rows)


def backward(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    """As the operator `gossamer::block_linear_backward`."""
    dx, dvalues = x.new_empty(x.shape if to_x else (0,)), values.new_empty(values.shape if to_values else (0,))
    if not len(index) or not len(x):
        return dx.zero_(), dvalues.zero_()
    if to_x:
        dx = block_matmul_transposed(dy, values, index, x.shape[1])
    return dx, block_sampled(x, dy, index, values.shape[1]) if to_values else dvalues
