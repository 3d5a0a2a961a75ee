"""What the native cosine transform has to know about a length, computed in float64: see cpu/native/transform.h."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[Any]
LARGEST_PRIME = 61  # of cpu/native/fft.h
KEPT = 64  # lengths remembered, about 30 bytes per entry of a vector


class Tables(NamedTuple):
    """factors: int64; numbers: float32; convolution: inner length of Bluestein's algorithm, 0 without it."""

    factors: Tensor
    numbers: Tensor
    convolution: int


def factors_of(length: int) -> list[int] | None:
    """Radices whose product is ``length``, the outermost first; None if a prime factor is too large for one.

    >>> factors_of(2048), factors_of(1152), factors_of(2 * 67)
    ([4, 8, 8, 8], [3, 3, 2, 8, 8], None)
    """
    found = []
    for radix in (8, 4, 2, *range(3, LARGEST_PRIME + 1, 2)):
        while length % radix == 0:
            found.append(radix)
            length //= radix
    return found[::-1] if length == 1 else None


def native_factors(length: int) -> list[int] | None:
    """The radices of the Fourier transform in a cosine transform, which has half its length or, if odd, the same."""
    return factors_of(_complex(length))


def _complex(length: int) -> int:
    return length if length % 2 else length // 2


@functools.lru_cache(KEPT)
def tables(length: int) -> Tables:
    """The tables of the orthonormal cosine transform of that length; always on the CPU.

    Made by numpy: whatever mode of torch a transform is first used in, they must be right ever after.
    """
    half = inner = _complex(length)
    parts, factors, convolution = [_turns(length)], native_factors(length), 0
    if factors is None:
        inner = convolution = _smooth(2 * half - 1)
        factors = factors_of(inner) or []
        parts += _bluestein(half, inner)
    for radix in factors:
        inner //= radix
        parts += _stage(radix, inner)
    numbers = np.concatenate([np.ascontiguousarray(part).reshape(-1) for part in parts]).view(np.float64)
    return Tables(
        torch.from_numpy(np.array(factors, np.int64)), torch.from_numpy(numbers.astype(np.float32)), convolution
    )


def _turn(angles: Numbers, circle: int) -> Numbers:
    """exp(-2 pi i angles / circle), of whole numbers."""
    return np.exp((-2j * np.pi / circle) * np.remainder(angles, circle))


def _turns(length: int) -> Numbers:
    """What joins frequency k with its mirror images, for every k from 1 that stands for them all."""
    if length % 2:
        return math.sqrt(2 / length) * _turn(np.arange(1, length // 2 + 1), 4 * length)
    half = length // 2
    k = np.arange(1, half // 2 + 1)
    scale = math.sqrt(1 / (2 * length))
    return np.stack([_turn(2 * k, 2 * length), scale * _turn(k, 4 * length), scale * _turn(half - k, 4 * length)], 1)


def _stage(radix: int, inner: int) -> list[Numbers]:
    """Cosines and sines of the radix, then for each k < inner the factors of its elements but the first."""
    circle = _turn(np.arange(radix), radix)
    k, j = np.arange(inner)[:, None], np.arange(1, radix)
    both = np.concatenate([circle.real, -circle.imag])
    return [both.view(np.complex128), _turn(k * j, radix * inner)]


def _bluestein(length: int, inner: int) -> list[Numbers]:
    """The chirp, and the transform of its conjugate wrapped around the inner length."""
    k = np.arange(length)
    chirp = _turn(k * k, 2 * length)
    wrapped = np.zeros(inner, np.complex128)
    wrapped[:length] = chirp.conj()
    wrapped[inner - length + 1 :] = chirp[1:][::-1].conj()
    return [chirp, np.fft.fft(wrapped) / inner]


def _smooth(least: int) -> int:
    """The smallest number of that size or more without a prime factor beyond 5."""
    length = least
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
