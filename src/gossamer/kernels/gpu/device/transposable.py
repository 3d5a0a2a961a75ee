"""The best transposable 2:4 pattern of every tile: the arithmetic of `kernels.patterns`, to the bit."""

from __future__ import annotations

import triton
import triton.language as tl

from ... import patterns as definition

_MOST = max(map(len, definition.MEMBERS))
MEMBERS: tl.constexpr = tl.constexpr(
    tuple((*members, *members[:1] * (_MOST - len(members))) for members in definition.MEMBERS)
)
HELD: tl.constexpr = tl.constexpr(tuple(map(len, definition.MEMBERS)))
COMPLEMENT: tl.constexpr = tl.constexpr(definition.COMPLEMENT)
BITS: tl.constexpr = tl.constexpr(definition.BITS)
VECTORS: tl.constexpr = tl.constexpr(len(definition.VECTORS))


@triton.jit
def columns_of(values):
    """(tiles, 4) as four of (tiles,), without leaving the registers of a thread."""
    even, odd = tl.split(tl.reshape(values, [values.shape[0], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def row_of(first, second, third, fourth):
    """The inverse of `columns_of`."""
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), [first.shape[0], 4])


@triton.jit
def pairs_of(row):
    """The sums of a row's six pairs of columns, in the order of `PAIRS`."""
    a, b, c, d = row
    return a + b, a + c, a + d, b + c, b + d, c + d


@triton.jit
def half(upper, lower, vector: tl.constexpr):
    """The first best choice of two rows that leaves this vector of column counts: its sum and its bits."""
    best = upper[MEMBERS[vector][0] // 6] + lower[MEMBERS[vector][0] % 6]
    bits = tl.full(best.shape, BITS[MEMBERS[vector][0]], tl.int32)
    for member in tl.static_range(1, 6):
        if member < HELD[vector]:
            other = upper[MEMBERS[vector][member] // 6] + lower[MEMBERS[vector][member] % 6]
            better = other > best
            best = tl.where(better, other, best)
            bits = tl.where(better, BITS[MEMBERS[vector][member]], bits)
    return best, bits


@triton.jit
def held_sum(row, active):
    """Sum of a row's active entries, and whether there are two."""
    a, b, c, d = row
    p, q, r, s = active
    first = tl.where(p != 0, a, 0.0) + tl.where(q != 0, b, 0.0)
    second = tl.where(r != 0, c, 0.0) + tl.where(s != 0, d, 0.0)
    return first + second, p + q + r + s == 2


@triton.jit
def bits_of(row):
    """Four flags as four bits."""
    a, b, c, d = row
    return a | (b << 1) | (c << 2) | (d << 3)


@triton.jit
def kept(rows, live, best, bits):
    """The bits of the active entries where these are a pattern that is as good as the best one."""
    first, valid0 = held_sum(rows[0], live[0])
    second, valid1 = held_sum(rows[1], live[1])
    third, valid2 = held_sum(rows[2], live[2])
    fourth, valid3 = held_sum(rows[3], live[3])
    keep = valid0 & valid1 & valid2 & valid3 & ((first + second) + (third + fourth) == best)
    for column in tl.static_range(4):
        keep = keep & (live[0][column] + live[1][column] + live[2][column] + live[3][column] == 2)
    mine = bits_of(live[0]) | (bits_of(live[1]) << 4) | (bits_of(live[2]) << 8) | (bits_of(live[3]) << 12)
    return tl.where(keep, mine, bits)


@triton.jit
def row_at(source, at, held):
    """One row of each tile, in four columns."""
    return columns_of(tl.load(source + at, mask=held, other=0))


@triton.jit
def magnitudes(row):
    """In float32."""
    a, b, c, d = row
    return tl.abs(a.to(tl.float32)), tl.abs(b.to(tl.float32)), tl.abs(c.to(tl.float32)), tl.abs(d.to(tl.float32))


@triton.jit
def flags(row):
    """As whole numbers."""
    a, b, c, d = row
    return a.to(tl.int32), b.to(tl.int32), c.to(tl.int32), d.to(tl.int32)


@triton.jit
def prune(weight, active, pruned, mask, tiles, columns, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """Masks of the tiles' best patterns, and the weight with +0 off them."""
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    across = columns // 4
    start = (tile // across).to(tl.int64) * 4 * columns + (tile % across) * 4
    at = start[:, None] + tl.arange(0, 4)[None, :]
    held = (tile < tiles)[:, None]
    w0, w1 = row_at(weight, at, held), row_at(weight, at + columns, held)
    w2, w3 = row_at(weight, at + 2 * columns, held), row_at(weight, at + 3 * columns, held)
    rows = magnitudes(w0), magnitudes(w1), magnitudes(w2), magnitudes(w3)
    p0, p1, p2, p3 = pairs_of(rows[0]), pairs_of(rows[1]), pairs_of(rows[2]), pairs_of(rows[3])
    upper, bits = half(p0, p1, 0)
    lower, more = half(p2, p3, COMPLEMENT[0])
    best = upper + lower
    bits = bits | (more << 8)
    for vector in tl.static_range(1, VECTORS):
        upper, first = half(p0, p1, vector)
        lower, second = half(p2, p3, COMPLEMENT[vector])
        total = upper + lower
        better = total > best
        best = tl.where(better, total, best)
        bits = tl.where(better, first | (second << 8), bits)
    if active is not None:
        l0, l1 = flags(row_at(active, at, held)), flags(row_at(active, at + columns, held))
        l2, l3 = flags(row_at(active, at + 2 * columns, held)), flags(row_at(active, at + 3 * columns, held))
        bits = kept(rows, (l0, l1, l2, l3), best, bits)
    values = w0, w1, w2, w3
    for row in tl.static_range(4):
        mine = bits >> (4 * row)
        chosen = row_of(mine & 1, (mine >> 1) & 1, (mine >> 2) & 1, (mine >> 3) & 1)
        if MASKED:
            tl.store(mask + at + row * columns, chosen.to(tl.int8), mask=held)
        a, b, c, d = values[row]
        kept_values = tl.where(chosen != 0, row_of(a, b, c, d), 0.0)
        tl.store(pruned + at + row * columns, kept_values.to(pruned.dtype.element_ty), mask=held)
