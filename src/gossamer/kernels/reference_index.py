"""The sparse index in NumPy: byte for byte what the native library builds (its layout: cpu/native/index.h)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError

MAGIC = 0x31305844494D5347
LARGEST_BLOCK = 32768
_SIZES = ["rows", "columns", "count", "row_block", "column_block"]
_OFFSETS = ["groups_at", "rows_at", "columns_at", "bytes"]
_HEADER = np.dtype([("magic", "<u8")] + [(name, "<i8") for name in [*_SIZES, "groups", "segments", *_OFFSETS]])
_BLOCK = np.dtype([("first", "<i8"), ("group", "<i4"), ("segment", "<i4")])
_GROUP = np.dtype([("values", "<u2"), ("rows", "<u2")])
_LOCAL = np.dtype("<u2")


class _Parts:
    """Views of the parts of an index; writing to them writes to its bytes."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.header = data[: _HEADER.itemsize].view(_HEADER)[0]
        groups_at, rows_at, columns_at, end = (int(self.header[name]) for name in _OFFSETS)
        self.blocks = data[_HEADER.itemsize : groups_at].view(_BLOCK)
        self.groups = data[groups_at:rows_at].view(_GROUP)
        self.rows = data[rows_at:columns_at].view(_LOCAL)
        self.columns = data[columns_at:end].view(_LOCAL)

    def size(self, name: str) -> int:
        """A number of the header."""
        return int(self.header[name])

    @property
    def column_blocks(self) -> int:
        """How many blocks lie side by side."""
        return -(-self.size("columns") // self.size("column_block"))

    def segments(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each row of each block, in storage order: its number of values, its block, its row in the block."""
        used = self.groups[: self.size("groups")]
        values = np.repeat(used["values"].astype(np.int64), used["rows"])
        blocks = np.repeat(np.arange(len(self.blocks) - 1), np.diff(self.blocks["segment"]))
        return values, blocks, self.rows[: self.size("segments")].astype(np.int64)

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of each stored value."""
        values, blocks, local = self.segments()
        rows = blocks // self.column_blocks * self.size("row_block") + local
        starts = blocks % self.column_blocks * self.size("column_block")
        return np.repeat(rows, values), np.repeat(starts, values) + self.columns


def _sensible(rows: int, columns: int, count: int, row_block: int, column_block: int) -> bool:
    sizes = 0 < rows <= 2**31 and 0 < columns <= 2**31 and 0 <= count <= rows * columns
    return sizes and 0 < row_block <= LARGEST_BLOCK and 0 < column_block <= LARGEST_BLOCK


def _layout(*sizes: int) -> tuple[int, int, int, int]:
    """Where groups, rows and columns begin, and the end; index.cpp says why there is room for all."""
    rows, columns, count, row_block, column_block = sizes
    column_blocks = -(-columns // column_block)
    blocks = -(-rows // row_block) * column_blocks
    segments = min(count, rows * column_blocks)
    distinct = int(math.sqrt(2.0 * count * blocks))
    groups = min(distinct + 1, segments, blocks * min(row_block, column_block))
    groups_at = _HEADER.itemsize + (blocks + 1) * _BLOCK.itemsize
    rows_at = groups_at + groups * _GROUP.itemsize
    columns_at = rows_at + segments * 2
    return groups_at, rows_at, columns_at, columns_at + count * 2


def index_bytes(*sizes: int) -> int:
    """Length of an index; sizes: rows, columns, count, rows and columns of a block."""
    return _layout(*sizes)[-1]


def build(flat: Tensor, shape: tuple[int, int], blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Index (uint8) and order (int64) of positions in a matrix: the i-th stored value is the one at ``flat[order[i]]``.

    Raises:
        ConfigError: the positions do not ascend strictly, or not all of them lie in the matrix.
    """
    (rows, columns), (row_block, column_block) = shape, blocks
    numbers = (rows, columns, flat.numel(), row_block, column_block)
    position = flat.numpy()
    outside = len(position) and (position[0] < 0 or position[-1] >= rows * columns)
    if not _sensible(*numbers) or outside or (np.diff(position) <= 0).any():
        raise ConfigError(
            f"positions must ascend strictly within 0..{rows * columns - 1} for a {rows} x {columns} matrix; sort them "
            "and drop repeated ones"
        )
    row, column = position // columns, position % columns
    column_blocks = -(-columns // column_block)
    number = row // row_block * column_blocks + column // column_block
    keys, member, lengths = np.unique(number * row_block + row % row_block, return_inverse=True, return_counts=True)
    number, local = keys // row_block, keys % row_block
    rank = np.lexsort((local, lengths, number))
    place = np.empty_like(rank)
    place[rank] = np.arange(len(rank))
    order = np.argsort(place[member], kind="stable")
    number, local, lengths = number[rank], local[rank], lengths[rank]
    starts = np.flatnonzero(np.diff(number, prepend=-1) | np.diff(lengths, prepend=-1))

    data = np.zeros(_layout(*numbers)[-1], np.uint8)
    data[: _HEADER.itemsize].view(_HEADER)[0] = (MAGIC, *numbers, len(starts), len(keys), *_layout(*numbers))
    parts = _Parts(data)
    segment = np.searchsorted(number, np.arange(len(parts.blocks)))
    parts.blocks["segment"] = segment
    parts.blocks["group"] = np.searchsorted(starts, segment)
    parts.blocks["first"] = np.concatenate([[0], np.cumsum(lengths)])[segment]
    parts.groups["values"][: len(starts)] = lengths[starts]
    parts.groups["rows"][: len(starts)] = np.diff(starts, append=len(keys))
    parts.rows[: len(keys)] = local
    parts.columns[:] = column[order] % column_block
    return torch.from_numpy(data), torch.from_numpy(order)


def sizes(index: Tensor) -> tuple[int, int, int]:
    """Rows and columns of the matrix, and how many values it has."""
    parts = _Parts(index.numpy())
    return parts.size("rows"), parts.size("columns"), parts.size("count")


def positions(index: Tensor, count: int) -> Tensor:
    """Flat position (int64) of each of the ``count`` stored values."""
    parts = _Parts(index.numpy())
    rows, columns = parts.entries()
    return torch.from_numpy(rows * parts.size("columns") + columns)


def check(index: Tensor, shape: tuple[int, int], count: int) -> int:
    """0 if these bytes are an index of this shape and count, otherwise the number of the check that failed."""
    data = index.numpy()
    if data.size < _HEADER.itemsize:
        return 1
    header = data[: _HEADER.itemsize].view(_HEADER)[0]
    if header["magic"] != MAGIC:
        return 1
    numbers = tuple(int(header[name]) for name in _SIZES)
    if numbers[:3] != (*shape, count):
        return 2
    if not _sensible(*numbers):
        return 3
    if tuple(int(header[name]) for name in _OFFSETS) != _layout(*numbers) or data.size != _layout(*numbers)[-1]:
        return 3
    parts = _Parts(data)
    if not _adds_up(parts):
        return 4
    return 0 if _in_order(parts) else 5


def _adds_up(parts: _Parts) -> bool:
    """Blocks, groups and rows add up."""
    groups, segments = parts.size("groups"), parts.size("segments")
    if not (0 <= groups <= len(parts.groups) and 0 <= segments <= len(parts.rows)):
        return False
    used = parts.groups[:groups]
    ends = parts.blocks["group"].astype(np.int64)
    if ends[0] != 0 or ends[-1] != groups or (np.diff(ends) < 0).any() or (used["rows"] == 0).any():
        return False
    lengths, members = used["values"].astype(np.int64), used["rows"].astype(np.int64)
    previous = np.concatenate([[0], lengths])[:groups]
    previous[ends[:-1][ends[:-1] < groups]] = 0
    if (lengths <= previous).any():
        return False
    values = np.concatenate([[0], np.cumsum(lengths * members)])
    rows = np.concatenate([[0], np.cumsum(members)])
    exact = (parts.blocks["first"] == values[ends]).all() and (parts.blocks["segment"] == rows[ends]).all()
    return bool(exact and values[-1] == parts.size("count") and rows[-1] == segments)


def _in_order(parts: _Parts) -> bool:
    """Rows ascend in a group and occur once in a block, columns ascend in a row, all of them in the matrix."""
    values, blocks, local = parts.segments()
    rows, columns = parts.entries()
    inside = (local < parts.size("row_block")).all() and (parts.columns < parts.size("column_block")).all()
    if not inside or (rows >= parts.size("rows")).any() or (columns >= parts.size("columns")).any():
        return False
    same_group = (np.diff(blocks) == 0) & (np.diff(values) == 0)
    if (np.diff(local)[same_group] <= 0).any() or len(np.unique(blocks * LARGEST_BLOCK + local)) < len(local):
        return False
    segment = np.repeat(np.arange(len(values)), values)
    same_row = np.diff(segment) == 0
    return not (np.diff(columns)[same_row] <= 0).any()
