"""Offsets without a fast transform: the controls that say whether the structure of the others matters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._draw import generator
from ._registry import named
from .base import Offset


def _normal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator(seed, rows, columns))


@named
@dataclass(frozen=True)
class Orthogonal(Offset):
    """D drawn from all matrices of its shape with singular values 1, uniformly (Haar).

    Made once per layer by a QR factorisation, of rows columns min(rows, columns) multiplications, and held in memory:
    a control. Equal everywhere up to the rounding of that factorisation.

    Source: Mezzadri 2007, arXiv:math-ph/0609050.
    """

    name = "orthogonal"
    summary = "a random matrix of singular values 1, a control: dense, held in memory"
    seeded = True

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        tall, upper = torch.linalg.qr(_normal(max(rows, columns), min(rows, columns), seed))
        tall = tall * upper.diagonal().sign()
        return (tall if rows >= columns else tall.t()).contiguous()


@named
@dataclass(frozen=True)
class Gaussian(Offset):
    """D of independent entries N(0, 1 / q), q = max(rows, columns): on average the squares sum to min(rows, columns).

    A control: dense, held in memory, and its singular values spread from about 0 (square) to 2. With alpha = sqrt 2 a
    square one is the initialisation of He et al. 2015, arXiv:1502.01852. Equal everywhere up to the rounding of the
    logarithms and cosines in the normal distribution.
    """

    name = "gaussian"
    summary = "independent normal entries of the same mean square, a control: dense, held in memory"
    singular_values = "spread, of mean square 1"
    seeded = True

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        return _normal(rows, columns, seed) / max(rows, columns) ** 0.5
