"""Nested state in one file: saved, loaded, described. What the state means is no matter here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ._compression import compress, expand, listed
from ._packing import densified, pack, unpack
from ._safetensors import dtype_of, opened, replacing, sensible, write
from .errors import CheckpointError

VERSION = 2
_READABLE = (1, 2)  # 2 adds gaps, seeds and fill


@dataclass(frozen=True)
class Contents:
    """What a file holds. kind: "model", "training" or "state"; metadata: as given when it was saved."""

    kind: str
    state: Any
    metadata: dict[str, Any]


def save(
    path: str | Path,
    state: Any,
    *,
    masks: Mapping[str, Any] | None = None,
    kind: str = "state",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write nested state to `path`; the old file is there, whole, until the new one is.

    state: dicts, lists, tuples, strings, numbers, None and tensors, nested; restored bit for bit by `load`.
    masks: path of a tensor in `state`, as "model/fc.weight" -> its boolean mask or `Support`. Such a tensor is
        stored as values where it is +0 off the mask and that is smaller. Paths given the same mask object (a
        weight and its optimizer slots) share one stored support.
    metadata: about the file, shown by `describe`; like `state`, but without tensors.

    Of several who save to one path at a time, the last one stays. A run killed while saving may leave a
    ``.<name>.<random>.tmp``, which can be deleted.

    Raises:
        CheckpointError: state that cannot be saved, masks that do not fit, or the file cannot be written.
    """
    write_state(path, state, masks or {}, {}, kind, metadata or {})


def write_state(
    path: str | Path,
    state: Any,
    masks: Mapping[str, Any],
    seeds: Mapping[str, int],
    kind: str,
    metadata: Mapping[str, Any],
) -> None:
    """As `save`, of state that may hold `SparseValues`; seeds: see `compress`."""
    tensors, tree = pack(state)
    about_tensors, about = pack(dict(metadata))
    if about_tensors:
        raise CheckpointError(f"metadata holds a tensor ({next(iter(about_tensors))}); put tensors in the state")
    stored, sparse, supports = compress(tensors, masks, seeds)
    info = {"version": VERSION, "kind": kind, "metadata": about, "sparse": sparse, "supports": supports, "tree": tree}
    text = json.dumps(info, separators=(",", ":"), allow_nan=False)
    with replacing(Path(path)) as file:
        write(file, stored, {"format": "pt", "gossamer": text})


def load(path: str | Path) -> Contents:
    """Read a file written by `save`; every tensor is dense and on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of a newer format, or not a checkpoint of this library.
    """
    contents = read_state(path)
    with sensible(path):
        return replace(contents, state=densified(contents.state))


def read_state(path: str | Path) -> Contents:
    """As `load`, but sparse tensors are `SparseValues`."""
    with opened(path) as file:
        info = _info(file, path)
        stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        state = unpack(expand(stored, info["sparse"], info["supports"]), info["tree"])
        return Contents(info["kind"], state, unpack({}, info["metadata"]))


def describe(path: str | Path) -> dict[str, Any]:
    """What is in a file, from its header alone: no tensor is read.

    Returns ``{"kind", "version", "metadata", "rows", "totals"}``. A row is ``{"name", "shape", "dtype", "stored",
    "count", "density", "bytes"}``. stored: "dense", or the form of the support: "bits", "gaps8", "gaps16", "index32",
    "index64" or "seed". count: of stored entries. bytes: in the file, a support's own bytes being counted with the
    first tensor that uses it. Totals: "entries", "count", "bytes" (sums
    of the rows), "dense_bytes" (all tensors stored dense) and "file_bytes".

    Raises:
        CheckpointError: as `load`.
    """
    with opened(path) as file:
        info = _info(file, path)
        pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        layout = {name: (tuple(p.get_shape()), dtype_of(p.get_dtype())) for name, p in pieces.items()}
        rows = listed(info, layout)
        about = unpack({}, info["metadata"])
        totals = {
            "entries": sum(math.prod(row["shape"]) for row in rows),
            "count": sum(row["count"] for row in rows),
            "bytes": sum(row["bytes"] for row in rows),
            "dense_bytes": sum(math.prod(row["shape"]) * getattr(torch, row["dtype"]).itemsize for row in rows),
            "file_bytes": Path(path).stat().st_size,
        }
    return {"kind": info["kind"], "version": info["version"], "metadata": about, "rows": rows, "totals": totals}


def _info(file: Any, path: str | Path) -> dict[str, Any]:
    """The library's own part of the header."""
    about = file.metadata() or {}
    if "gossamer" not in about:
        raise CheckpointError(
            f"{path} is a safetensors file, but not written by gossamer; read it with safetensors.torch.load_file"
        )
    info = json.loads(about["gossamer"])
    if info["version"] not in _READABLE:
        raise CheckpointError(
            f"{path} has format version {info['version']}, this gossamer reads versions up to {VERSION}; "
            "read it with the gossamer that wrote it or a newer one"
        )
    if not (isinstance(info["kind"], str) and isinstance(info["metadata"], dict)):
        raise TypeError("kind is no string or metadata no dict")
    return info
