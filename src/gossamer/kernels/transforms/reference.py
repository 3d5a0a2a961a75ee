"""The transforms in plain torch, on any device and in float64: by torch.fft, and by sums and differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def cosine(x: Tensor) -> Tensor:
    """The orthonormal DCT-II along the last axis, by a Fourier transform of the same length (Makhoul 1980)."""
    q = x.shape[-1]
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    turned = torch.fft.rfft(v) * _turn(q, -1, x.dtype, x.device)
    low, high = turned.real, -turned.imag[..., 1 : (q + 1) // 2].flip(-1)
    return _scaled(torch.cat([low, high], -1), math.sqrt(2 / q))


def cosine_transposed(x: Tensor) -> Tensor:
    """Its transpose, which is its inverse: the orthonormal DCT-III."""
    q = x.shape[-1]
    c = _scaled(x, math.sqrt(q / 2), math.sqrt(2))
    low = c[..., : q // 2 + 1]
    mirrored = torch.cat([torch.zeros_like(c[..., :1]), c.flip(-1)[..., : q // 2]], -1)
    v = torch.fft.irfft(torch.complex(low, -mirrored) * _turn(q, 1, x.dtype, x.device), q)
    out = torch.empty_like(v)
    out[..., ::2], out[..., 1::2] = v[..., : (q + 1) // 2], v[..., (q + 1) // 2 :].flip(-1)
    return out


def hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform along the last axis, in natural order; its own transpose."""
    q, half = x.shape[-1], 1
    x = x / math.sqrt(q)
    while half < q:
        a, b = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x, half = torch.stack([a + b, a - b], -2).flatten(-3), 2 * half
    return x


def along(
    axis: int,
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    signs: Tensor | None,
    sizes: tuple[int, int, int],
    transposed: bool,
) -> Tensor:
    """D x or D^T x, for the leading rows and columns of a block-diagonal D whose columns have signs.

    sizes: rows and columns of D, and of a block, which ``function`` transforms in the direction wanted.
    """
    rows, columns, length = sizes
    x = x.movedim(axis, -1)
    if signs is not None and not transposed:
        x = x * signs
    blocks = -(-max(rows, columns) // length)
    padded = functional.pad(x, (0, blocks * length - x.shape[-1]))
    y = function(padded.unflatten(-1, (blocks, length))).flatten(-2)[..., : columns if transposed else rows]
    if signs is not None and transposed:
        y = y * signs
    return y.movedim(-1, axis).contiguous()


@functools.lru_cache(64)
def _turn(length: int, direction: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(pi i k / (2 length)), or its conjugate; not by conj(), whose lazy form compiled graphs overlook here."""
    angles = torch.arange(length // 2 + 1, dtype=torch.float64, device=device) * (math.pi / (2 * length))
    return torch.complex(angles.cos(), direction * angles.sin()).to(dtype.to_complex())


def _scaled(x: Tensor, scale: float, first: float = math.sqrt(1 / 2)) -> Tensor:
    factors = x.new_full((x.shape[-1],), scale)
    factors[0] *= first
    return x * factors
