"""Which coordinates of one weight participate: an immutable set of flat positions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from .selection import count_true

_Kind = Literal["mask", "bits", "index"]


class Support:
    """The set of active coordinates of one weight; immutable, compared by content.

    Built with `from_mask`, `from_index`, `full` or `from_state`. Stored as a bool mask, as packed bits or as a sorted
    index, whichever it was made from or `compact` chose; `.mask` and `.index` are built on demand.

    Attributes:
        shape: shape of the weight.
        count: number of active coordinates.

    >>> s = Support.from_mask(torch.tensor([[True, False], [False, True]]))
    >>> s
    Support(shape=(2, 2), count=2, density=0.5)
    >>> (~s).index
    tensor([1, 2])
    """

    __slots__ = ("_data", "_kind", "count", "shape")

    shape: torch.Size
    count: int
    _data: Tensor
    _kind: _Kind

    def __init__(self, shape: Sequence[int], count: int, data: Tensor, kind: _Kind) -> None:
        for name, value in (("shape", torch.Size(shape)), ("count", count), ("_data", data), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Support is immutable; build another one")

    def __reduce__(self) -> tuple[Any, ...]:
        return Support, (tuple(self.shape), self.count, self._data, self._kind)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Support:
        """Make a support of a bool tensor, which is kept, not copied: do not write to it afterwards.

        Raises:
            ConfigError: not a bool tensor.
        """
        if mask.dtype != torch.bool:
            raise ConfigError(f"a mask must be a bool tensor, got {mask.dtype}; use mask.bool()")
        return cls(mask.shape, count_true(mask), mask, "mask")

    @classmethod
    def from_index(cls, index: Tensor, shape: Sequence[int]) -> Support:
        """Make a support of flat positions (integers, any order, repetitions count once) of a weight of ``shape``.

        Raises:
            ConfigError: not integers, or a position out of range.
        """
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ConfigError(f"an index must hold integers, got {index.dtype}; use from_mask for a mask")
        index, numel = index.reshape(-1).long(), math.prod(shape)
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= numel):
            raise ConfigError(
                f"index {int(index.min())}..{int(index.max())} is out of range: a weight of shape {tuple(shape)} "
                f"has flat positions 0..{numel - 1}"
            )
        if not _increasing(index):
            index = torch.unique(index)
        return cls(shape, index.numel(), index, "index")

    @classmethod
    def full(cls, shape: Sequence[int], device: str | torch.device = "cpu") -> Support:
        """Make the support of a dense weight."""
        return cls(shape, math.prod(shape), torch.ones(tuple(shape), dtype=torch.bool, device=device), "mask")

    @property
    def numel(self) -> int:
        """Number of coordinates of the weight, active or not."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Active share of the coordinates, ``count / numel`` (0 for an empty weight)."""
        return self.count / self.numel if self.numel else 0.0

    @property
    def device(self) -> torch.device:
        """Where the storage lies."""
        return self._data.device

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self._data.numel() * self._data.element_size()

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the weight's shape."""
        if self._kind == "mask":
            return self._data
        if self._kind == "bits":
            return _unpack(self._data, self.numel).view(self.shape)
        flat = torch.zeros(self.numel, dtype=torch.bool, device=self.device)
        flat[self._data] = True
        return flat.view(self.shape)

    @property
    def index(self) -> Tensor:
        """Sorted int64 flat positions of the active coordinates."""
        if self._kind == "index":
            return self._data
        flat = self.mask.reshape(-1)
        if flat.device.type == "cpu":
            return torch.from_numpy(np.flatnonzero(flat.numpy()))
        return flat.nonzero().view(-1)

    def compact(self) -> Support:
        """Return the same set in whichever is smaller: one bit per coordinate, or 8 bytes per active one."""
        kind: _Kind = "index" if 8 * self.count < _nbits(self.numel) else "bits"
        if kind == self._kind:
            return self
        data = self.index if kind == "index" else _pack(self.mask)
        return Support(self.shape, self.count, data, kind)

    def to(self, device: str | torch.device) -> Support:
        """Return the same set stored on ``device``."""
        data = self._data.to(device)
        return self if data is self._data else Support(self.shape, self.count, data, self._kind)

    def digest(self) -> int:
        """Return a hash of the content in 63 bits, the same on every machine and in every storage."""
        if self._kind == "index":
            bits = _bits_of_index(self._data.cpu().numpy(), self.numel)
        else:
            bits = (self._data if self._kind == "bits" else _pack(self._data)).cpu().numpy()
        told = hashlib.blake2b(repr(tuple(self.shape)).encode(), digest_size=8)
        told.update(bits.tobytes())
        return int.from_bytes(told.digest(), "little") >> 1

    def issubset(self, other: Support) -> bool:
        """Whether every coordinate of this support is in ``other``."""
        return (self - other).count == 0

    def __and__(self, other: Support) -> Support:
        return Support.from_mask(self.mask & self._peer(other))

    def __or__(self, other: Support) -> Support:
        return Support.from_mask(self.mask | self._peer(other))

    def __xor__(self, other: Support) -> Support:
        return Support.from_mask(self.mask ^ self._peer(other))

    def __sub__(self, other: Support) -> Support:
        return Support.from_mask(self.mask & ~self._peer(other))

    def __invert__(self) -> Support:
        return Support.from_mask(~self.mask)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Support):
            return NotImplemented
        if (self.shape, self.count) != (other.shape, other.count):
            return False
        return torch.equal(self.mask, self._peer(other))

    def __hash__(self) -> int:
        return self.digest()

    def __repr__(self) -> str:
        return f"Support(shape={tuple(self.shape)}, count={self.count}, density={self.density:.4g})"

    def _peer(self, other: Support) -> Tensor:
        if self.shape != other.shape:
            raise ConfigError(f"supports of different weights: shapes {tuple(self.shape)} and {tuple(other.shape)}")
        return other.mask.to(self.device)

    def state(self) -> dict[str, Any]:
        """Return ``{"shape", "count", "bits" | "index"}`` of plain ints and one CPU tensor, as small as `compact`."""
        small = self.compact()
        return {"shape": list(self.shape), "count": self.count, small._kind: small._data.cpu()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Support:
        """Rebuild a support from `state`.

        Raises:
            CheckpointError: the state is incomplete or contradicts itself.
        """
        shape, count = state.get("shape"), state.get("count")
        if not isinstance(shape, list | tuple) or not all(map(_is_size, shape)) or not _is_size(count):
            raise CheckpointError(f"a support's state needs a shape and a count, got shape={shape!r}, count={count!r}")
        kinds = {"bits", "index"} & set(state)
        if len(kinds) != 1 or not isinstance(state[kind := kinds.pop()], Tensor):
            raise CheckpointError("a support's state needs one tensor, either 'bits' or 'index'")
        data, numel = state[kind], math.prod(shape)
        check = _check_bits if kind == "bits" else _check_index
        problem = check(data, numel, count)
        if problem:
            raise CheckpointError(f"a support of shape {tuple(shape)} and count {count} is damaged: {problem}")
        return cls(shape, count, data, "bits" if kind == "bits" else "index")


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _nbits(numel: int) -> int:
    return (numel + 7) // 8


def _increasing(index: Tensor) -> bool:
    return bool((index[1:] > index[:-1]).all())


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy())).to(mask.device)


def _unpack(bits: Tensor, numel: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=numel).view(np.bool_)).to(bits.device)


def _bits_of_index(index: np.ndarray[Any, Any], numel: int) -> np.ndarray[Any, Any]:
    bits = np.zeros(_nbits(numel), np.uint8)
    place = index >> 3
    first = np.flatnonzero(np.diff(place, prepend=-1))  # the index is sorted: one run per byte
    if len(index):
        bits[place[first]] = np.bitwise_or.reduceat((0x80 >> (index & 7)).astype(np.uint8), first)
    return bits


def _check_bits(bits: Tensor, numel: int, count: int) -> str:
    if bits.dtype != torch.uint8 or bits.shape != (_nbits(numel),):
        return f"expected {_nbits(numel)} bytes of bits, got {tuple(bits.shape)} of {bits.dtype}"
    unpacked = np.unpackbits(bits.cpu().numpy())
    if unpacked[numel:].any():
        return "bits are set beyond its last coordinate"
    found = int(np.count_nonzero(unpacked))
    return "" if found == count else f"{found} bits are set"


def _check_index(index: Tensor, numel: int, count: int) -> str:
    if index.dtype != torch.int64 or index.shape != (count,):
        return f"expected {count} int64 positions, got {tuple(index.shape)} of {index.dtype}"
    if count and (int(index[0]) < 0 or int(index[-1]) >= numel or not _increasing(index)):
        return "its positions are not increasing or out of range"
    return ""
