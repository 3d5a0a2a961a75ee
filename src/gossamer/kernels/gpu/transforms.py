"""Cosine and Walsh-Hadamard transforms on the GPU: one pass over the vectors, two small tensor-core products inside.

The DCT-II of N = A B entries is a Fourier transform of reordered entries (Makhoul 1980), and that one is a product with
an A x A matrix, a rotation of every number, and a product with a B x B one. The last rotation, by pi k / (2 N), splits
into a part for each, and only real parts are wanted: four real products, 4 (A + B) operations for an entry.
Walsh-Hadamard takes two products of real matrices.

Lengths are the powers of two from 256 to 16384, in float32 to 4096 (`supported`); `..transforms.reference` serves for
others. float32 is multiplied as float32; float16 and bfloat16 are multiplied as such, with sums in float32 and what
lies between the two products rounded once.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .runtime import device_of, on_gpu

SHORTEST = 256
LONGEST = {torch.float32: 4096, torch.float16: 16384, torch.bfloat16: 16384}  # what a program can hold
_placed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # signs -> the same on a device


def supported(x: Tensor, length: int) -> bool:
    """Whether the kernel takes vectors like these."""
    return not length & (length - 1) and SHORTEST <= length <= LONGEST.get(x.dtype, 0) and on_gpu(x)


def sides(length: int) -> tuple[int, int]:
    """A and B, powers of two with A >= B."""
    bits = length.bit_length() - 1
    return 1 << -(-bits // 2), 1 << bits // 2


def tokens_of(length: int, dtype: torch.dtype) -> tuple[int, int]:
    """Vectors and warps of a program: products of at least 64 rows, and what fits the registers."""
    wide = length > (2048 if dtype == torch.float32 else 8192)
    return max(1, 4096 // length), 16 if wide else 8


def transform(
    name: str, x: Tensor, signs: Tensor | None, sizes: tuple[int, int, int], axis: int, transposed: bool
) -> Tensor:
    """As the operators `gossamer::cosine` and `gossamer::hadamard`; sizes: rows, columns and length of a block.

    x: any shape, not empty, with the entries along the axis.
    """
    from .device import transforms as device

    rows, columns, length = sizes
    x, axis = x.contiguous(), axis % x.ndim
    given, wanted = (rows, columns) if transposed else (columns, rows)
    shape = list(x.shape)
    shape[axis] = wanted
    y, inner = x.new_empty(shape), math.prod(shape[axis + 1 :])
    vectors, (tokens, warps) = x.numel() // given, tokens_of(length, x.dtype)
    a, b = sides(length)
    parts, signs = tables(name, length, x.dtype, x.device), _on(x.device, signs)
    with device_of(x):
        device.transform[(-(-vectors // tokens), -(-wanted // length))](
            x, signs, y, *parts, vectors, inner, given, wanted,
            A=a, B=b, TOKENS=tokens, COSINE=name == "cosine", BACK=transposed,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32", num_warps=warps, num_stages=1,
        )  # fmt: skip
    return y


def _on(device: torch.device, signs: Tensor | None) -> Tensor | None:
    """Copied once: a copy in every step would keep a CUDA graph from being captured."""
    if signs is None or signs.device == device:
        return signs
    copies = _placed.setdefault(signs, {})
    if device not in copies:
        copies[device] = signs.to(device)
    found: Tensor = copies[device]
    return found


@functools.lru_cache(32)
def tables(name: str, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """first (., A, A), second (., B, B) and turns (2, B, A), computed in float64; turns stay float32."""
    a, b = sides(length)
    if name == "hadamard":
        first, second, turns = _walsh(a)[None], _walsh(b)[None], torch.zeros(1)
    else:
        first = _parts(_products(a, a), a) / math.sqrt(a)
        second = _parts(4 * _products(b, b) + torch.arange(b, dtype=torch.float64), 4 * b) * math.sqrt(2 / b)
        turns = _parts(4 * _products(b, a) + torch.arange(a, dtype=torch.float64), 4 * length)
    return first.to(device, dtype), second.to(device, dtype), turns.to(device, torch.float32)


def _products(rows: int, columns: int) -> Tensor:
    i, j = (torch.arange(side, dtype=torch.float64, device="cpu") for side in (rows, columns))
    return i.unsqueeze(1) * j


def _parts(angles: Tensor, circle: int) -> Tensor:
    """exp(-2 pi i angles / circle), of whole numbers: real and imaginary part."""
    turned = angles.remainder(circle) * (-2 * math.pi / circle)
    return torch.stack([turned.cos(), turned.sin()])


def _walsh(side: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    block = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64, device="cpu")
    while len(matrix) < side:
        matrix = torch.kron(matrix, block)
    return matrix / math.sqrt(side)
