"""A tensor as its values at some positions, and the ways in which a file can hold the positions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._safetensors import raw
from .errors import CheckpointError
from .topology import Support

Positions = NDArray[np.int64]
_INT32_MAX = 2**31 - 1
_TILE = 1 << 20  # entries, or bytes of bits, that are unfolded at a time
_LARGEST_DRAWN = 1 << 26  # entries; drawing takes time by the size of the weight, not by its count


@dataclass(frozen=True, eq=False)
class SparseValues:
    """A tensor that is `fill` but for `values` (1-D) at `index` (1-D, int64, CPU: ascending flat positions)."""

    shape: torch.Size
    index: Tensor
    values: Tensor
    fill: float = 0.0

    def dense(self) -> Tensor:
        """The tensor itself, on the CPU."""
        values = self.values.detach().cpu()
        flat = torch.zeros(math.prod(self.shape), dtype=values.dtype)
        if self.fill:
            flat.fill_(self.fill)
        raw(flat)[self.index] = raw(values)
        return flat.view(self.shape)

    def at(self, index: Tensor) -> Tensor:
        """Values at ascending flat positions, not all of which need be in `self.index`."""
        if index is self.index or torch.equal(index, self.index):
            return self.values
        found = torch.full((len(index),), self.fill, dtype=self.values.dtype)
        place = torch.searchsorted(self.index, index)
        held = place < len(self.index)
        held[held.clone()] = self.index[place[held]] == index[held]
        raw(found)[held] = raw(self.values)[place[held]]
        return found


class Stored(NamedTuple):
    """One way to hold positions in a file: what its header says beside "stored", and the entry, if there is one.

    bytes: of the entry; making it is put off until this way is chosen.
    """

    kind: str
    bytes: int
    make: Callable[[], NDArray[Any]]
    about: dict[str, Any]


def cheapest(index: Positions, numel: int, seed: int | None) -> Stored:
    """The way that takes the fewest bytes; of equal ones the first of seed, bits, gaps of 8 and 16 bits, index.

    seed: of the generator that may have drawn the support, see `drawn`; None if there was none.
    """
    return min(_ways(index, numel, seed), key=lambda way: way.bytes)


def _ways(index: Positions, numel: int, seed: int | None) -> Iterator[Stored]:
    if seed is not None and numel <= _LARGEST_DRAWN and np.array_equal(drawn(seed, numel, len(index)), index):
        yield Stored("seed", 0, lambda: np.empty(0, np.uint8), {"seed": seed, "digest": digest(index)})
    yield Stored("bits", -(-numel // 8), lambda: bits_of(index, numel), {})
    left_out = np.diff(index, prepend=-1) - 1
    for narrow in (np.uint8, np.uint16):
        size = _gap_codes(left_out, narrow) * np.dtype(narrow).itemsize
        yield Stored("gaps", size, lambda narrow=narrow: _gaps(left_out, narrow), {})  # type: ignore[misc]
    wide = np.int32 if numel <= _INT32_MAX else np.int64
    yield Stored("index", index.size * np.dtype(wide).itemsize, lambda: index.astype(wide), {})


def read_positions(about: Mapping[str, Any], entry: Tensor | None, numel: int) -> Positions | None:
    """Ascending flat positions of a stored support, or None if what is stored is none of `numel` entries.

    Raises:
        CheckpointError: the support is stored in a way that this library does not know.
    """
    kind = about["stored"]
    if kind == "seed":
        return _drawn_again(about, numel)
    if entry is None or entry.ndim != 1:
        return None
    if kind == "bits":
        return _of_bits(entry.numpy(), numel) if entry.dtype == torch.uint8 else None
    if kind == "gaps":
        return _of_gaps(entry.numpy(), numel) if entry.dtype in (torch.uint8, torch.uint16) else None
    if kind == "index":
        return _of_index(entry.numpy(), numel) if entry.dtype in (torch.int32, torch.int64) else None
    raise CheckpointError(f"the file holds a support stored as {kind!r}: a newer gossamer wrote it")


def _of_index(entry: NDArray[Any], numel: int) -> Positions | None:
    index = entry.astype(np.int64)
    inside = not len(index) or 0 <= index[0] <= index[-1] < numel
    return index if inside and bool((np.diff(index) > 0).all()) else None


# -- bits: one per position, in the order of numpy.packbits --


def bits_of(index: Positions, numel: int) -> NDArray[np.uint8]:
    """One bit for each of `numel` positions, tile by tile."""
    bits = np.zeros(-(-numel // 8), np.uint8)
    ends = np.searchsorted(index, np.arange(_TILE, numel + _TILE, _TILE))
    for tile, part in enumerate(np.split(index, ends[:-1])):
        flags = np.zeros(min(_TILE, numel - tile * _TILE), np.bool_)
        flags[part - tile * _TILE] = True
        packed = np.packbits(flags)
        bits[tile * _TILE // 8 :][: len(packed)] = packed
    return bits


def _of_bits(bits: NDArray[np.uint8], numel: int) -> Positions | None:
    if len(bits) != -(-numel // 8):
        return None
    parts = [
        np.flatnonzero(np.unpackbits(bits[start : start + _TILE])) + 8 * start for start in range(0, len(bits), _TILE)
    ]
    index = np.concatenate([np.empty(0, np.int64), *parts])
    return index if not len(index) or index[-1] < numel else None


# -- gaps: a code below the largest skips that many positions and marks the next; the largest only skips its number --


def _gap_codes(left_out: Positions, narrow: type[np.unsignedinteger[Any]]) -> int:
    return len(left_out) + int((left_out // np.iinfo(narrow).max).sum())


def _gaps(left_out: Positions, narrow: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """left_out: inactive positions before each active one, since the one before."""
    skip = np.iinfo(narrow).max
    skips, rest = np.divmod(left_out, skip)
    codes = np.full(_gap_codes(left_out, narrow), skip, narrow)
    codes[np.arange(len(left_out)) + np.cumsum(skips)] = rest
    return codes


def _of_gaps(codes: NDArray[Any], numel: int) -> Positions | None:
    skip = np.iinfo(codes.dtype).max
    marks = codes < skip
    index = (np.cumsum(codes + marks.astype(np.int64)) - 1)[marks]
    return index if not len(index) or index[-1] < numel else None


# -- seed: the generator that drew it draws it again --


def drawn(seed: int, numel: int, count: int) -> Positions:
    """The `count` of `numel` positions at which torch.rand draws the highest numbers, ties to the lower position.

    seed: as given to `torch.Generator.manual_seed`, of which the lower 32 bits count. The numbers are made by NumPy's
    frozen `RandomState`, the same Mersenne twister, so that a file stays readable should torch's generator change.
    """
    stream, floor = np.random.RandomState(seed & 0xFFFFFFFF), -1
    number, place = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, numel, _TILE):
        fresh = stream.randint(0, 2**32, min(_TILE, numel - start), dtype=np.uint32) & 0xFFFFFF  # torch keeps 24 bits
        near = np.flatnonzero(fresh > floor)
        number, place = np.concatenate([number, fresh[near]]), np.concatenate([place, near + start])
        if len(number) > 2 * count + _TILE or start + _TILE >= numel:
            best = np.sort(np.argsort(-number, kind="stable")[:count])
            number, place = number[best], place[best]
            floor = int(number.min(initial=1 << 24)) if len(number) == count else -1
    return place


def _drawn_again(about: Mapping[str, Any], numel: int) -> Positions | None:
    seed, count = about["seed"], about["count"]
    if type(seed) is not int or type(count) is not int or not 0 <= count <= numel <= _LARGEST_DRAWN:
        return None
    index = drawn(seed, numel, count)
    return index if digest(index) == about["digest"] else None


def digest(index: Positions) -> str:
    """A hash of ascending positions, as eight bytes in hexadecimal."""
    return hashlib.blake2b(index.astype("<i8").tobytes(), digest_size=8).hexdigest()


def positions_of(given: Any) -> tuple[Positions, torch.Size]:
    """Ascending flat positions and the shape of a mask or `Support`.

    Raises:
        CheckpointError: it is neither.
    """
    if isinstance(given, Support):
        return given.index.cpu().numpy(), given.shape
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        return np.flatnonzero(given.detach().cpu().numpy()), given.shape
    raise CheckpointError(f"a mask is {type(given).__name__}; expected a boolean tensor or a Support")
