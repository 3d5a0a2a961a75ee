"""The largest entries of a product of two matrices, found without ever holding it.

The product is computed tile by tile in bfloat16 where the CPU multiplies that natively, which takes half the time, and
looked through for entries that may exceed a limit; only these are then computed in float32. What the coarse product
can be wrong by follows from the norms of its factors, so that no entry is missed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cpu.library import Library, call, native, threads

TILE = 1 << 21  # entries of the product that are looked at at a time
_SAMPLED = 256  # rows, and columns
_UNDERFLOW = 2.0**-120  # of each term, at most


@dataclass(frozen=True)
class Product:
    """The matrix (rows, columns) of all dot products of a row of ``left`` and one of ``right``.

    left: (rows, samples), right: (columns, samples); contiguous float32. It is for the native library only.
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.left) * len(self.right)

    def sample(self) -> Tensor:
        """Some of its entries, 1-D, spread evenly over rows and columns."""
        down, across = (max(1, len(part) // _SAMPLED) for part in (self.left, self.right))
        return (self.left[::down] @ self.right[::across].t()).view(-1)

    def at(self, positions: Tensor) -> Tensor:
        """Its entries at flat positions, int64."""
        values = torch.empty(len(positions))
        (_, samples), columns = self.left.shape, len(self.right)
        given = self.left, self.right, samples, columns, positions, len(positions)
        call(_library().sampled_product, *given, values, threads())
        return values

    def beyond(self, limit: float, most: int) -> Tensor | None:
        """Flat positions, ascending, of all entries of a magnitude above ``limit``, and of some that come near it.

        None: there are more than ``most``, something is not finite, or the limit is too low to tell.
        """
        low = _coarse()
        slack = [part.norm(dim=1) for part in (self.left, self.right)]
        slack[0] = slack[0] * _relative_error(low, self.left.shape[1])
        least = limit * (1 - torch.finfo(low).eps / 2) - self.left.shape[1] * _UNDERFLOW
        if not 0 < least < math.inf or not math.isfinite(float(slack[0].max() * slack[1].max())):
            return None
        left, right = self.left.to(low), self.right.to(low).t()
        columns, height = right.shape[1], max(1, TILE // right.shape[1])
        buffer, room = torch.empty(height, columns, dtype=low), torch.empty(height * (columns + 1), dtype=torch.int64)
        found = [room[:0]]
        for first in range(0, len(left), height):
            rows = left[first : first + height]
            tile = torch.mm(rows, right, out=buffer[: len(rows)])
            where = first, len(rows), columns, *slack, least
            count = call(_library().screen, tile, low == torch.bfloat16, *where, room, threads())
            found.append(room[:count].clone())
            if sum(map(len, found)) > most:
                return None
        return torch.cat(found)


def _library() -> Library:
    library = native()
    assert library is not None
    return library


@functools.cache
def _coarse() -> torch.dtype:
    """In what the CPU multiplies fastest."""
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if capable else torch.float32


def _relative_error(dtype: torch.dtype, samples: int) -> float:
    """By how much a dot product can differ from the same one in float32, over the norms of its factors.

    |sum a b - sum a' b'| <= (2 u + u^2) sum |a b| if each factor is rounded by u of itself, and sum |a b| is at most
    the product of the norms (Cauchy-Schwarz). Either sum is accumulated in float32. The norms are rounded too.
    """
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    sums = 2 * samples * torch.finfo(torch.float32).eps
    return 1.001 * ((1 + rounding) ** 2 * (1 + sums) - 1)
