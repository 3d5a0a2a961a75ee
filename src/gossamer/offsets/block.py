"""Discrete cosine transforms of short blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels.transforms import LinearMap
from ._maps import Transposed, along
from ._registry import named
from .centre import CentreTap
from .cost import linear_multiplications
from .dct import DCT, dct_matrix


@named
@dataclass(frozen=True)
class BlockDCT(CentreTap):
    """The DCT of every block of `block` neighbouring inputs, the outputs sorted by frequency, the lowest `rows` kept.

    With more outputs than inputs it is the transpose of that. Of a convolution it is the centre tap, since it could not
    read more entries of a patch than it has outputs without blurring the taps. All singular values are 1 for every
    shape: the last block may be shorter, and has a DCT of its own length.

    Deviation: a block-diagonal matrix of DCTs never mixes the blocks, however many layers follow each other, and
    cropped to few rows it ignores most inputs. Sorting by frequency is a fixed permutation that mends both: the next
    layer's blocks hold entries of several of this one's, and the lowest frequencies of all blocks are kept.

    Raises:
        ConfigError: block is no whole number from 1 on.
    """

    name = "block-dct"
    summary = "the DCT of short blocks, shuffled so that layers mix the blocks; at the centre tap of a kernel"
    cost = "q log block, q of the channels only"
    block: int = 16

    def __post_init__(self) -> None:
        """Check the argument."""
        if type(self.block) is not int or self.block < 1:
            raise ConfigError(f"block = {self.block!r}: expected a whole number of inputs, at least 1")

    def multiplications(self, rows: int, columns: int) -> float:
        """5/4 q log2 block."""
        size = max(rows, columns)
        return 1.25 * size * math.log2(min(self.block, size))

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        if rows > columns:
            return self.matrix(columns, rows).t().contiguous()
        sizes = _sizes(columns, self.block)
        whole = torch.block_diag(*(dct_matrix(size) for size in sizes))
        return whole[_by_frequency(sizes)[:rows]]

    def linear(self, rows: int, columns: int, seed: int = 0) -> LinearMap:
        """Block by block."""
        if rows > columns:
            return Transposed(Blocks(columns, rows, self.block))
        return Blocks(rows, columns, self.block)


class Blocks:
    """The map of `BlockDCT` for rows <= columns: all whole blocks at once, then a shorter last one."""

    def __init__(self, rows: int, columns: int, block: int) -> None:
        self.rows, self.columns = rows, columns
        sizes = _sizes(columns, block)
        highest = int(_frequencies(sizes)[_by_frequency(sizes)[rows - 1]])
        kept = [min(size, highest + 1) for size in sizes]
        self.order = _by_frequency(kept)[:rows]
        self.whole, self.count = DCT().linear(kept[0], sizes[0]), columns // sizes[0]
        self.last = DCT().linear(kept[-1], sizes[-1]) if columns % sizes[0] else None
        self.multiplications = self.count * linear_multiplications(self.whole)
        self.multiplications += linear_multiplications(self.last) if self.last else 0

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D x."""
        axis %= x.ndim
        used = self.count * self.whole.columns
        parts = [_in_blocks(x.narrow(axis, 0, used), axis, self.count, self.whole.apply)]
        if self.last:
            parts.append(self.last.apply(x.narrow(axis, used, self.last.columns).contiguous(), axis))
        return torch.cat(parts, axis).index_select(axis, self.order)

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D^T g."""
        axis %= g.ndim
        used, rest = self.count * self.whole.rows, self.last.rows if self.last else 0
        sorted_back = along(g.narrow(axis, 0, 0), axis, 0, used + rest)
        sorted_back.index_copy_(axis, self.order, g)
        parts = [_in_blocks(sorted_back.narrow(axis, 0, used), axis, self.count, self.whole.transpose)]
        if self.last:
            parts.append(self.last.transpose(sorted_back.narrow(axis, used, rest).contiguous(), axis))
        return torch.cat(parts, axis)


def _in_blocks(x: Tensor, axis: int, count: int, product: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The same product of each of `count` blocks along an axis."""
    blocks = x.unflatten(axis, (count, -1))
    if axis == x.ndim - 1:
        return product(blocks.contiguous(), -1).flatten(axis)
    y = product(blocks.flatten(0, 1), 1)
    return y.unflatten(0, (x.shape[0], count)).flatten(1, 2)


def _sizes(columns: int, block: int) -> list[int]:
    """Of the blocks: whole ones, then what is left."""
    block = min(block, columns)
    return [block] * (columns // block) + [columns % block] * (columns % block > 0)


def _frequencies(sizes: list[int]) -> Tensor:
    return torch.cat([torch.arange(size) for size in sizes])


def _by_frequency(sizes: list[int]) -> Tensor:
    """Order of the entries of all blocks by frequency, within one by block."""
    return _frequencies(sizes).argsort(stable=True)
