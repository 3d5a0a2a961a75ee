"""Random signs and Walsh-Hadamard transforms: additions only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels.transforms import Hadamard, LinearMap, Product, faster
from ._draw import generator, signs
from ._maps import Chain
from ._registry import named
from .base import Offset


@named
@dataclass(frozen=True)
class SignedHadamard(Offset):
    """D = (H diag(s))^rounds [:rows, :columns] sqrt(Q / q), H the orthonormal Walsh-Hadamard matrix of order Q.

    q = max(rows, columns), Q the next power of two; every round has random signs of its own, and rows are in the
    natural (Hadamard) order. rounds = 1 is the randomised Hadamard transform, rounds = 3 is close to a random rotation
    (SORF).

    Singular values are all 1 only where Q = q: otherwise both sides are cut, and the factor sqrt(Q / q) restores their
    mean square (exactly for one round, on average for more) but not their spread. For a 300 x 300 matrix, cut out of
    512 x 512, the largest is 1.31 and the smallest 0.12 after one round, below 0.01 after three.

    Sources: Ailon and Chazelle 2006 (doi:10.1145/1132516.1132597); Yu et al. 2016, arXiv:1610.09072.

    Raises:
        ConfigError: rounds is no whole number from 1 on.
    """

    name = "signed-hadamard"
    summary = "random signs, then the Walsh-Hadamard transform, padded to a power of two"
    cost = "rounds Q log2 Q additions"
    singular_values = "all 1 if q is a power of two, else of mean square 1"
    seeded = True
    rounds: int = 1

    def __post_init__(self) -> None:
        """Check the argument."""
        if type(self.rounds) is not int or self.rounds < 1:
            raise ConfigError(f"rounds = {self.rounds!r}: expected a whole number of transforms, at least 1")

    def multiplications(self, rows: int, columns: int) -> float:
        """The signs; the transforms add."""
        return columns + (self.rounds - 1) * _power(max(rows, columns))

    def linear(self, rows: int, columns: int, seed: int = 0) -> LinearMap:
        """Signs and fast transforms, or the matrix where that is faster."""
        longest = max(rows, columns)
        size, source = _power(longest), generator(seed, rows, columns)
        sizes = [columns, *[size] * (self.rounds - 1), rows]
        parts = [Hadamard(to, at, signs(size, source)[:at]) for at, to in pairwise(sizes)]
        if not isinstance(faster(parts[0]), Hadamard):
            return Product(self.matrix(rows, columns, seed))
        return Chain(parts, (size / longest) ** 0.5)

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        longest = max(rows, columns)
        size, source = _power(longest), generator(seed, rows, columns)
        result = torch.eye(size, columns, dtype=torch.float64)
        for _ in range(self.rounds):
            result = _transformed(result * signs(size, source)[:, None])
        return result[:rows] * (size / longest) ** 0.5


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def _transformed(columns: Tensor) -> Tensor:
    """H of every column, by its factors."""
    size, count = columns.shape
    half = 1
    while half < size:
        pairs = columns.reshape(-1, 2, half, count)
        columns = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(size, count)
        half *= 2
    return columns / size**0.5
