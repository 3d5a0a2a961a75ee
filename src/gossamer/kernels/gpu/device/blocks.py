"""Products with a matrix of which some square blocks exist: tokens are the rows of every tensor-core product."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(
    x, values, starts, sources, numbers, bias, y, batch, given, wanted,
    SIDE: tl.constexpr, TRANSPOSED: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of features of some tokens: the sum over the blocks of the matrix that lead there.

    starts: of each block of features, its first place in sources (blocks of x) and numbers (blocks of values).
    """
    feature = tl.program_id(0)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    along = tl.arange(0, SIDE)
    here = token < batch
    rows = x + token.to(tl.int64)[:, None] * given
    tile = along[:, None] * SIDE + along[None, :]
    total = tl.zeros([TOKENS, SIDE], tl.float32)
    for at in range(tl.load(starts + feature), tl.load(starts + feature + 1)):
        column = tl.load(sources + at) * SIDE + along
        part = tl.load(rows + column[None, :], mask=here[:, None] & (column < given)[None, :], other=0.0)
        block = tl.load(values + tl.load(numbers + at).to(tl.int64) * SIDE * SIDE + tile)
        if not TRANSPOSED:
            block = tl.trans(block)
        total = tl.dot(part, block, total, input_precision=PRECISION)
    column = feature * SIDE + along
    inside = here[:, None] & (column < wanted)[None, :]
    if bias is not None:
        total += tl.load(bias + column, mask=column < wanted, other=0.0).to(tl.float32)[None, :]
    tl.store(y + token.to(tl.int64)[:, None] * wanted + column[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sampled(
    x, dy, index, out, batch, rows, columns, wide,
    SIDE: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dy^T x where blocks exist; each program sums every so many tokens of one block, into a place of its own."""
    number = tl.program_id(0)
    split = tl.program_id(1)
    along = tl.arange(0, SIDE)
    place = tl.load(index + number)
    row = (place // wide) * SIDE + along
    column = (place % wide) * SIDE + along
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for start in range(split * TOKENS, batch, tl.num_programs(1) * TOKENS):
        token = (start + tl.arange(0, TOKENS)).to(tl.int64)
        here = (token < batch)[:, None]
        slope = tl.load(dy + token[:, None] * rows + row[None, :], mask=here & (row < rows)[None, :], other=0.0)
        part = tl.load(
            x + token[:, None] * columns + column[None, :], mask=here & (column < columns)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(slope), part, total, input_precision=PRECISION)
    total = tl.where((row < rows)[:, None] & (column < columns)[None, :], total, 0.0)  # 0 times infinity is none
    at = (split.to(tl.int64) * tl.num_programs(0) + number) * SIDE * SIDE
    tl.store(out + at + along[:, None] * SIDE + along[None, :], total.to(out.dtype.element_ty))
