"""Orthonormal transforms of a length A B as two products with small matrices, and all between them on the chip.

Vectors lie (outer, entries, inner) in memory; a program takes one block of A B entries of a few of them. Places n and k
in it are split as n = B n1 + n2 and k = k1 + A k2, for Walsh-Hadamard k = B k1 + k2.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def times(value, source, number: tl.constexpr, BACK: tl.constexpr, SIDE: tl.constexpr, PRECISION: tl.constexpr):
    """value times a matrix, or its transpose, summed in float32."""
    i = tl.arange(0, SIDE)
    at = i[None, :] * SIDE + i[:, None] if BACK else i[:, None] * SIDE + i[None, :]
    matrix = tl.load(source + number * SIDE * SIDE + at)
    return tl.dot(value.to(matrix.dtype), matrix, input_precision=PRECISION)


@triton.jit
def swapped(value, TOKENS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """(TOKENS HEIGHT, WIDTH) -> (TOKENS WIDTH, HEIGHT)."""
    turned = tl.permute(tl.reshape(value, [TOKENS, HEIGHT, WIDTH]), [0, 2, 1])
    return tl.reshape(turned, [TOKENS * WIDTH, HEIGHT])


@triton.jit
def rotated(real, imaginary, turns, A: tl.constexpr, B: tl.constexpr, TOKENS: tl.constexpr, BACK: tl.constexpr):
    """(TOKENS B, A) complex numbers times those of (B, A), or their conjugates."""
    at = tl.arange(0, B)[:, None] * A + tl.arange(0, A)[None, :]
    cosine = tl.load(turns + at)[None, :, :]
    sine = tl.load(turns + A * B + at)[None, :, :]
    if BACK:
        sine = -sine
    a, b = tl.reshape(real, [TOKENS, B, A]), tl.reshape(imaginary, [TOKENS, B, A])
    return tl.reshape(a * cosine - b * sine, [TOKENS * B, A]), tl.reshape(a * sine + b * cosine, [TOKENS * B, A])


@triton.jit
def cosines(
    value, first, second, turns,
    A: tl.constexpr, B: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(TOKENS A, B), at n1, n2 -> (TOKENS A, B), at k1, k2."""
    value = swapped(value, TOKENS, A, B)
    real = times(value, first, 0, False, A, PRECISION)
    imaginary = times(value, first, 1, False, A, PRECISION)
    real, imaginary = rotated(real, imaginary, turns, A, B, TOKENS, False)
    total = times(swapped(real, TOKENS, B, A), second, 0, False, B, PRECISION)
    return total - times(swapped(imaginary, TOKENS, B, A), second, 1, False, B, PRECISION)


@triton.jit
def cosines_back(
    value, first, second, turns,
    A: tl.constexpr, B: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(TOKENS A, B), at k1, k2 -> (TOKENS A, B), at n1, n2: the transpose of `cosines`."""
    real = swapped(times(value, second, 0, True, B, PRECISION), TOKENS, A, B)
    imaginary = swapped(times(value, second, 1, True, B, PRECISION), TOKENS, A, B)
    real, imaginary = rotated(real, -imaginary, turns, A, B, TOKENS, True)
    total = times(real, first, 0, True, A, PRECISION) + times(imaginary, first, 1, True, A, PRECISION)
    return swapped(total, TOKENS, B, A)


@triton.jit
def transform(
    x, signs, y, first, second, turns, vectors, inner, given, wanted,
    A: tl.constexpr, B: tl.constexpr, TOKENS: tl.constexpr, COSINE: tl.constexpr, BACK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of some vectors. COSINE: DCT-II, else Walsh-Hadamard. BACK: the transpose.

    first: matrices (A, A), second: (B, B), the real and the imaginary parts; turns: (2, B, A). signs: of the columns of
    the map, which come in, or with BACK go out.
    """
    vector = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    there = vector < vectors
    block = tl.program_id(1) * A * B
    outer, rest = (vector // inner).to(tl.int64), vector % inner
    down, across = tl.arange(0, A)[:, None], tl.arange(0, B)[None, :]
    straight = down * B + across
    if COSINE:  # Makhoul's order: the even places, then the odd ones from the end; lines are adjacent in memory
        ordered = tl.where(2 * straight < A * B, 2 * straight, 2 * (A * B - straight) - 1)
        spectrum = tl.arange(0, B)[:, None] * A + tl.arange(0, A)[None, :]  # at k2, k1
    else:
        ordered = straight
        spectrum = straight
    if COSINE and BACK:
        read = block + spectrum
        write = block + ordered
    else:
        read = block + ordered
        write = block + spectrum
    source = x + (outer * given * inner + rest)[:, None, None] + read[None, :, :].to(tl.int64) * inner
    value = tl.load(source, mask=there[:, None, None] & (read < given)[None, :, :], other=0.0)
    if signs is not None and not BACK:
        value = value * tl.load(signs + read, mask=read < given, other=0.0).to(value.dtype)[None, :, :]
    if COSINE and BACK:
        value = value * tl.where(spectrum == 0, 0.7071067811865476, 1.0).to(value.dtype)[None, :, :]
        value = swapped(tl.reshape(value, [TOKENS * B, A]), TOKENS, B, A)
        result = cosines_back(value, first, second, turns, A, B, TOKENS, PRECISION)
        result = tl.reshape(result, [TOKENS, A, B])
    elif COSINE:
        value = tl.reshape(value, [TOKENS * A, B])
        result = cosines(value, first, second, turns, A, B, TOKENS, PRECISION)
        result = tl.permute(tl.reshape(result, [TOKENS, A, B]), [0, 2, 1])
        result = result * tl.where(spectrum == 0, 0.7071067811865476, 1.0)[None, :, :]
    else:
        value = swapped(tl.reshape(value, [TOKENS * A, B]), TOKENS, A, B)
        half = times(value, first, 0, False, A, PRECISION)
        result = times(swapped(half, TOKENS, B, A), second, 0, False, B, PRECISION)
        result = tl.reshape(result, [TOKENS, A, B])
    if signs is not None and BACK:
        result = result * tl.load(signs + write, mask=write < wanted, other=0.0)[None, :, :]
    target = y + (outer * wanted * inner + rest)[:, None, None] + write[None, :, :].to(tl.int64) * inner
    mask = there[:, None, None] & (write < wanted)[None, :, :]
    tl.store(target, result.to(y.dtype.element_ty), mask=mask)
