"""The largest entries of a product of two matrices, found without ever holding it.

The product is computed coarsely, in whole numbers of eight bits where the CPU multiplies these natively (AVX-512 VNNI),
and looked through for entries that may exceed a limit; only these are then computed in float32. What the coarse product
can be wrong by follows from the norms of its factors and of what rounding takes from them, so that no entry is missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import rewire
from .cpu.library import Library, call, native, threads

TILE = 1 << 21  # entries of the product that are looked at at a time in float32
_CANNOT = -2
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

    def beyond(self, limit: float, index: Tensor, most: int) -> Tensor | None:
        """Flat positions, ascending, of all entries of a magnitude above ``limit``, and of some that come near it.

        index: what to leave out, of a matrix of the same sizes. None: there are more than ``most``, something is not
            finite, or the limit is too low to tell.
        """
        if not self.left.shape[1] * _UNDERFLOW < limit < math.inf:
            return None
        library, found = _library(), torch.empty(threads() * (most + len(self.right)), dtype=torch.int64)
        given = self.left, self.right, self.left.shape[1], limit, index, found, most, library.isa.encode(), threads()
        count = call(library.beyond, *given)
        if count == _CANNOT:
            return self._beyond(limit, index, most)
        return found[:count] if count >= 0 else None

    def _beyond(self, limit: float, index: Tensor, most: int) -> Tensor | None:
        """The same in float32, which takes four times as long."""
        slack = [part.norm(dim=1) for part in (self.left, self.right)]
        slack[0] = slack[0] * (2 * self.left.shape[1] * torch.finfo(torch.float32).eps)
        if not math.isfinite(float(slack[0].max() * slack[1].max())):
            return None
        right, columns, height = self.right.t(), len(self.right), max(1, TILE // len(self.right))
        buffer, room = torch.empty(height, columns), torch.empty(height * (columns + 1), dtype=torch.int64)
        found = [room[:0]]
        for first in range(0, len(self.left), height):
            rows = self.left[first : first + height]
            tile = torch.mm(rows, right, out=buffer[: len(rows)])
            count = call(_library().screen, tile, first, len(rows), columns, *slack, limit, room, threads())
            found.append(room[:count].clone())
            if sum(map(len, found)) > most + len(index):  # a byte and more for each active one
                return None
        others = rewire.inactive(index, torch.cat(found))
        return others if len(others) <= most else None


def _library() -> Library:
    library = native()
    assert library is not None
    return library
