"""Packed forms of weights, kept until the weight changes: micro-batches and recomputed forward passes share them.

A weight is known by its storage and by what of it is the weight: views of one storage, as tied weights are, have packs
of their own. Its state is its address and version. A storage that is gone is told from a new one at the same address.
Writes that raise no version (through ``weight.data``, by a collective, by a replayed CUDA graph) go unnoticed: `forget`
is for those who make them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Side = tuple[torch.dtype, bool, int]  # of the products; whether of the transposed matrix; the CUDA stream, 0 on a CPU
_serials = itertools.count()


@dataclass(frozen=True)
class Pack:
    """A matrix (rows, columns) packed for products with it.

    values, places: see `layout`; places is None where values hold both, as cuSPARSELt wants it.
    fault: None, or (rows,) zeros, which are NaN if the matrix was not 2:4 (nobody waited for the device to know).
    """

    values: Tensor
    places: Tensor | None = None
    fault: Tensor | None = None


@dataclass
class Held:
    """What is kept for one state of a weight.

    foregone: seconds that products of a side would have saved if the weight had been packed. serial: of no other state
    of any weight in this process.
    """

    storage: StorageWeakRef
    state: tuple[int, int]
    packs: dict[Side, Pack] = field(default_factory=dict)
    foregone: dict[Side, float] = field(default_factory=dict)
    captured: bool = False  # by a CUDA graph, whose replays may change the weight and raise no version
    serial: int = field(default_factory=_serials.__next__)


_held: dict[tuple[Any, ...], Held] = {}  # the first of a key is the storage


def held(weight: Tensor) -> Held:
    """What is kept for a weight as it is now; of one that has no version, made in inference mode, nothing is."""
    storage = weight.untyped_storage()
    state = weight.data_ptr(), -1 if weight.is_inference() else weight._version
    at = storage._cdata, weight.storage_offset(), weight.shape, weight.stride(), weight.dtype
    known = _held.get(at)
    if known is not None and known.state == state and not weight.is_inference():
        return known
    for key in [key for key, each in list(_held.items()) if each.storage.expired()]:
        _held.pop(key, None)
    made = Held(StorageWeakRef(storage), state, captured=known is not None and known.captured)
    _held[at] = made
    return made


def serial_of(weight: Tensor) -> int:
    """A number that is the same as long as a weight is: it may not be after a copy, in another process, and so on."""
    return held(weight).serial


def pack_of(weight: Tensor, side: Side, make: Callable[[], Pack], *, capturing: bool = False) -> Pack:
    """The packed form of a weight for one side.

    capturing: whether a CUDA graph records what is done. Its packs belong to it and are made in every pass; from then
    on they are so outside too, since a replay may change the weight.
    """
    known = held(weight)
    known.captured |= capturing
    if known.captured:
        return make()
    if side not in known.packs:
        known.packs[side] = make()
    return known.packs[side]


def forget(weight: Tensor) -> None:
    """Drop what is kept for a weight, and for others in its storage; not that a CUDA graph holds it."""
    storage = weight.untyped_storage()._cdata
    for at, known in list(_held.items()):
        if at[0] == storage and _held.pop(at, None) is not None and known.captured:
            _held[at] = Held(known.storage, known.state, captured=True)
