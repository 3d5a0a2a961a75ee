"""Sparse tensors to their values and a support that several share, and back. No files here."""

from __future__ import annotations

import hashlib
import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._packing import Json, leaves, unused
from ._safetensors import raw
from ._sparse_values import Positions, SparseValues, Stored, bits_of, cheapest, positions_of, read_positions
from .errors import CheckpointError


def nonzero_bits(tensor: Tensor) -> Tensor:
    """Mask of the entries that are not bitwise zero (-0.0 is not)."""
    return (raw(tensor) != 0).view(tensor.shape)


@dataclass(frozen=True)
class _Group:
    """Tensors on one support."""

    index: Positions
    shape: torch.Size
    tensors: dict[str, SparseValues]


def compress(
    tensors: Mapping[str, Tensor | SparseValues], masks: Mapping[str, Any], seeds: Mapping[str, int]
) -> tuple[dict[str, Tensor], Json, Json]:
    """Replace tensors that are sparse by their values on a support, where that is lossless and smaller.

    masks: name of a dense tensor -> mask of its shape: a boolean tensor or a `Support`. Names given the same object
        share one stored support, as do `SparseValues` with the same index.
    seeds: name of a tensor -> seed of the generator that may have drawn its support.

    Returns the tensors to store; ``{name: {"shape", "values", "support"[, "fill"]}}`` of the sparse ones; and
    ``{support: {"stored", "count"[, "tensor"][, "seed", "digest"]}}``.

    Raises:
        CheckpointError: a name is unknown, or a mask has another shape than its tensor.
    """
    stored = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    known = _Known({name: tensor for name, tensor in stored.items() if name not in masks})
    sparse: Json = {}
    supports: Json = {}
    taken = ChainMap[str, Any](stored, dict(tensors))
    for group in _groups(tensors, masks):
        numel, names = math.prod(group.shape), list(group.tensors)
        seed = next((seeds[name] for name in names if name in seeds), None)
        chosen = known.find(group.index, numel) or cheapest(group.index, numel, seed)
        left_out = numel - len(group.index)
        if sum(left_out * t.values.element_size() for t in group.tensors.values()) <= chosen.bytes:
            stored |= {name: t.dense() for name in names if isinstance(t := tensors[name], SparseValues)}
            continue
        supports[names[0]] = {"stored": chosen.kind, "count": len(group.index)} | chosen.about
        if chosen.kind != "seed" and "tensor" not in chosen.about:
            place = unused(f"{names[0]}::{chosen.kind}", taken)
            stored[place] = torch.from_numpy(chosen.make())
            supports[names[0]]["tensor"] = place
        for name, tensor in group.tensors.items():
            stored.pop(name, None)
            place = unused(f"{name}::values", taken)
            stored[place] = tensor.values
            sparse[name] = {"shape": list(group.shape), "values": place, "support": names[0]}
            if tensor.fill:
                sparse[name]["fill"] = tensor.fill
    return stored, sparse, supports


def _groups(tensors: Mapping[str, Tensor | SparseValues], masks: Mapping[str, Any]) -> list[_Group]:
    """Tensors by the support that they are given with; those that are not zero off it are left out."""
    groups: dict[tuple[int, torch.Size], _Group] = {}
    by_mask: dict[int, tuple[Positions, torch.Size]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, SparseValues):
            empty = _Group(tensor.index.numpy(), tensor.shape, {})
            groups.setdefault((id(tensor.index), tensor.shape), empty).tensors[name] = tensor
    for name, given in masks.items():
        if name not in tensors:
            raise CheckpointError(f"a mask is given for {name}, but the state has no such tensor")
        tensor = tensors[name]
        if id(given) not in by_mask:
            by_mask[id(given)] = positions_of(given)
        index, shape = by_mask[id(given)]
        if tensor.shape != shape:
            raise CheckpointError(
                f"the mask of {name} has shape {tuple(shape)}, the tensor has {tuple(tensor.shape)}: "
                "it belongs to another model"
            )
        if isinstance(tensor, Tensor):
            flat = raw(tensor)
            active = flat[torch.from_numpy(index)]
            if int(flat.count_nonzero()) == int(active.count_nonzero()):
                values = SparseValues(shape, torch.from_numpy(index), active.view(tensor.dtype))
                groups.setdefault((id(given), shape), _Group(index, shape, {})).tensors[name] = values
    return list(groups.values())


class _Known:
    """Finds 1-D integer tensors of the tree by content: a controller's state often holds the supports already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        kinds = (torch.uint8, torch.int32, torch.int64)
        fitting = {n: t for n, t in tensors.items() if t.ndim == 1 and t.dtype in kinds}
        self._sizes = {(t.dtype, len(t)) for t in fitting.values()}
        self._names = {self._key(t): n for n, t in fitting.items()}

    def find(self, index: Positions, numel: int) -> Stored | None:
        """The support as bits or index, if the tree holds it as such: it then costs nothing more."""
        for kind, dtype, size in (
            ("bits", torch.uint8, -(-numel // 8)),
            ("index", torch.int32, len(index)),
            ("index", torch.int64, len(index)),
        ):
            if (dtype, size) in self._sizes:
                wide = bits_of(index, numel) if kind == "bits" else index
                name = self._names.get(self._key(torch.from_numpy(wide).to(dtype)))
                if name is not None:
                    return Stored(kind, 0, lambda: np.empty(0), {"tensor": name})
        return None

    @staticmethod
    def _key(tensor: Tensor) -> tuple[torch.dtype, bytes]:
        return tensor.dtype, hashlib.blake2b(raw(tensor).numpy().data, digest_size=32).digest()


def expand(stored: Mapping[str, Tensor], sparse: Json, supports: Json) -> dict[str, Tensor | SparseValues]:
    """Undo `compress`; `stored` may keep the supports' own tensors.

    Raises:
        CheckpointError: values and support do not fit each other.
    """
    out: dict[str, Tensor | SparseValues] = dict(stored)
    read: dict[tuple[str, int], Tensor | None] = {}
    for name, entry in sparse.items():
        shape, values, support = torch.Size(entry["shape"]), stored[entry["values"]], supports[entry["support"]]
        numel, fill = math.prod(shape), entry.get("fill", 0.0)
        key = entry["support"], numel
        if key not in read:
            index = read_positions(support, stored.get(support.get("tensor")), numel)
            read[key] = None if index is None else torch.from_numpy(index)
        found = read[key]
        if found is None or values.shape != found.shape or min(shape, default=0) < 0 or type(fill) is not float:
            raise CheckpointError(
                f"the stored mask of {name} does not fit its {len(values)} values and shape {entry['shape']}"
            )
        out.pop(entry["values"], None)
        out[name] = SparseValues(shape, found, values, fill)
    return out


def listed(info: Mapping[str, Any], layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> list[dict[str, Any]]:
    """One row for each tensor of the tree, as `describe` returns them; layout: shape and type of each entry."""
    rows, names = [], dict.fromkeys(leaves(info["tree"]))
    counted = set(names)  # a support that is itself a tensor of the tree has its own row
    for name in names:
        entry = info["sparse"].get(name)
        held, dtype = layout[entry["values"] if entry else name]
        shape, count, stored = tuple(entry["shape"]) if entry else held, math.prod(held), "dense"
        size = count * dtype.itemsize
        if entry:
            support = info["supports"][entry["support"]]
            place, stored = support.get("tensor"), support["stored"]
            if place is not None:
                width = layout[place][1].itemsize
                stored += "" if stored == "bits" else str(8 * width)
                size += 0 if place in counted else math.prod(layout[place][0]) * width
                counted.add(place)
        row = {"name": name, "shape": shape, "dtype": str(dtype).removeprefix("torch."), "stored": stored}
        density = count / math.prod(shape) if math.prod(shape) else 1.0
        rows.append(row | {"count": count, "density": density, "bytes": size})
    return rows
