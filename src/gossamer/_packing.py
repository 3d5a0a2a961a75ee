"""Nested state to flat tensors and JSON, and sparse tensors to values and a shared support. No files here."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._safetensors import DTYPES, raw
from .errors import CheckpointError

Json = Any
_INT32_MAX = 2**31 - 1


def pack(tree: Any) -> tuple[dict[str, Tensor], Json]:
    """Split nested state into tensors, named by their path ("model/fc.weight"), and a JSON skeleton.

    The tree may hold dicts (str and int keys, order kept), lists, tuples, Counters, str, int, float (inf and nan
    too), bool, None and plain tensors. Dict subclasses come back as dict; one tensor met twice is held once.

    Raises:
        CheckpointError: anything else; the message names the path.

    >>> pack({"step": 3, "w": torch.ones(2)})
    ({'w': tensor([1., 1.])}, {'step': 3, 'w': {'$tensor': 'w'}})
    """
    packer = _Packer()
    try:
        skeleton = packer.encode(tree, ())
    except RecursionError:
        raise CheckpointError("the state is nested too deeply to be saved, or contains itself") from None
    return packer.tensors, skeleton


def unpack(tensors: Mapping[str, Tensor], skeleton: Json) -> Any:
    """Undo `pack`.

    >>> unpack(*pack({1: (2.5, None)}))
    {1: (2.5, None)}
    """
    if isinstance(skeleton, list):
        return [unpack(tensors, item) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if not (len(skeleton) == 1 and next(iter(skeleton)).startswith("$")):
        return {key: unpack(tensors, value) for key, value in skeleton.items()}
    kind, body = next(iter(skeleton.items()))
    if kind == "$tensor":
        return tensors[body]
    if kind == "$float":
        return struct.unpack(">d", bytes.fromhex(body))[0]
    if kind == "$tuple":
        return tuple(unpack(tensors, item) for item in body)
    if kind == "$dict":
        return {key: unpack(tensors, value) for key, value in body}
    if kind == "$counter":
        return Counter({key: unpack(tensors, value) for key, value in body})
    raise CheckpointError(f"the file holds an unknown kind of value, {kind!r}: a newer gossamer wrote it")


def _leaves(skeleton: Json) -> Iterator[str]:
    """Names of the tensors in a skeleton, in order, repeated as they are."""
    if isinstance(skeleton, list):
        for item in skeleton:
            yield from _leaves(item)
    elif isinstance(skeleton, dict):
        for key, value in skeleton.items():
            yield from [value] if key == "$tensor" else _leaves(value)


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[tuple[Any, ...], str] = {}

    def encode(self, node: Any, path: tuple[Any, ...]) -> Json:
        """JSON of `node`; what JSON does not know becomes a dict with one key that starts with "$"."""
        if node is None or type(node) in (bool, int, str):
            return node
        if type(node) is float:
            return node if math.isfinite(node) else {"$float": struct.pack(">d", node).hex()}
        if type(node) in (list, tuple):
            items = [self.encode(item, (*path, i)) for i, item in enumerate(node)]
            return items if type(node) is list else {"$tuple": items}
        if isinstance(node, dict):
            return self._encode_dict(node, path)
        if type(node) in (Tensor, nn.Parameter):
            return {"$tensor": self._add(node.detach(), path)}
        raise CheckpointError(f"cannot save {_where(path)}, {_refusal(node)}")

    def _encode_dict(self, node: dict[Any, Any], path: tuple[Any, ...]) -> Json:
        odd = next((key for key in node if type(key) not in (str, int)), None)
        if odd is not None:
            raise CheckpointError(f"cannot save {_where(path)}: its key {odd!r} is neither a str nor an int")
        pairs = [(key, self.encode(value, (*path, key))) for key, value in node.items()]
        if isinstance(node, Counter):
            return {"$counter": pairs}
        plain = all(isinstance(key, str) and not key.startswith("$") for key in node)
        return dict(pairs) if plain else {"$dict": pairs}

    def _add(self, tensor: Tensor, path: tuple[Any, ...]) -> str:
        problem = _unsavable(tensor)
        if problem:
            raise CheckpointError(f"cannot save {_where(path)}, {problem}")
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and same in self._seen:
            return self._seen[same]
        text = "/".join(map(str, path)).encode("utf-8", "backslashreplace").decode() or "tensor"
        name = unused(text, self.tensors)
        self.tensors[name] = tensor
        self._seen[same] = name
        return name


def unused(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, or `name` with as many "~" as make it new."""
    while name in taken or name == "__metadata__":
        name += "~"
    return name


def _where(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path)) or "the state itself"


def _refusal(node: Any) -> str:
    if isinstance(node, Tensor):
        hint = "; gather it first, e.g. with full_tensor()" if hasattr(node, "full_tensor") else ""
        return f"a tensor of class {type(node).__name__}: only plain tensors can be saved{hint}"
    base = next((kind for kind in (int, float, str, tuple) if isinstance(node, kind)), None)
    hint = f"; write {base.__name__}(...)" if base else ""
    return (
        f"a {type(node).__module__}.{type(node).__qualname__}: a checkpoint holds dicts, lists, tuples, strings, "
        f"numbers, None and tensors{hint}"
    )


def _unsavable(tensor: Tensor) -> str:
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}: save .to_dense() or its parts"
    if tensor.is_meta:
        return "a tensor on the meta device: it has no values"
    if tensor.dtype not in DTYPES:
        return f"a tensor of {tensor.dtype}, which the file format does not know"
    return ""


def nonzero_bits(tensor: Tensor) -> Tensor:
    """Mask of the entries that are not bitwise zero (-0.0 is not)."""
    return (raw(tensor) != 0).view(tensor.shape)


def compress(tensors: Mapping[str, Tensor], masks: Mapping[str, Any]) -> tuple[dict[str, Tensor], Json, Json]:
    """Replace masked tensors by their values on a support, where that is lossless and smaller.

    masks: tensor name -> mask of its shape: a boolean tensor, or an object with `.mask`. Names given the same object
        share one stored support.

    Returns the tensors to store; ``{name: {"shape", "values", "support"}}`` of the sparse ones; and
    ``{support: {"stored": "bits" or "index", "tensor", "count"}}``.

    Raises:
        CheckpointError: a name is unknown, or a mask has another shape than its tensor.
    """
    stored, sparse, supports = dict(tensors), {}, {}
    known = _Known({name: tensor for name, tensor in tensors.items() if name not in masks})
    for given, names in _grouped(tensors, masks):
        mask = _mask(given)
        _check_shapes(tensors, names, mask)
        lossless = [name for name in names if not bool((nonzero_bits(tensors[name]) & ~mask).any())]
        chosen = _encoding(mask, known)
        left_out = mask.numel() - chosen.count
        if sum(left_out * tensors[name].element_size() for name in lossless) <= chosen.cost:
            continue
        support = lossless[0]
        place = chosen.existing or unused(f"{support}::{chosen.kind}", stored)
        stored.setdefault(place, chosen.tensor)
        supports[support] = {"stored": chosen.kind, "tensor": place, "count": chosen.count}
        for name in lossless:
            del stored[name]
            values = unused(f"{name}::values", stored)
            stored[values] = raw(tensors[name])[mask.reshape(-1)].view(tensors[name].dtype)
            sparse[name] = {"shape": list(mask.shape), "values": values, "support": support}
    return stored, sparse, supports


def _grouped(tensors: Mapping[str, Tensor], masks: Mapping[str, Any]) -> list[tuple[Any, list[str]]]:
    groups: dict[int, tuple[Any, list[str]]] = {}
    for name, given in masks.items():
        if name not in tensors:
            raise CheckpointError(f"a mask is given for {name}, but the state has no such tensor")
        groups.setdefault(id(given), (given, []))[1].append(name)
    return list(groups.values())


def _check_shapes(tensors: Mapping[str, Tensor], names: list[str], mask: Tensor) -> None:
    for name in names:
        if tensors[name].shape != mask.shape:
            raise CheckpointError(
                f"the mask of {name} has shape {tuple(mask.shape)}, the tensor has {tuple(tensors[name].shape)}: "
                "it belongs to another model"
            )


def expand(stored: Mapping[str, Tensor], sparse: Json, supports: Json) -> dict[str, Tensor]:
    """Undo `compress`; `stored` may keep the supports' own tensors.

    Raises:
        CheckpointError: values and support do not fit each other.
    """
    out = dict(stored)
    for name, entry in sparse.items():
        shape, values, support = entry["shape"], out.pop(entry["values"]), supports[entry["support"]]
        index = _positions(support["stored"], stored[support["tensor"]], math.prod(shape))
        if index is None or len(index) != len(values):
            raise CheckpointError(f"the stored mask of {name} does not fit its {len(values)} values and shape {shape}")
        dense = torch.zeros(math.prod(shape), dtype=values.dtype)
        raw(dense)[index] = raw(values)
        out[name] = dense.view(shape)
    return out


def listed(info: Mapping[str, Any], layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> list[dict[str, Any]]:
    """One row for each tensor of the tree, as `describe` returns them; layout: shape and type of each entry."""
    rows, names = [], dict.fromkeys(_leaves(info["tree"]))
    counted = set(names)  # a support that is itself a tensor of the tree has its own row
    for name in names:
        entry = info["sparse"].get(name)
        held, dtype = layout[entry["values"] if entry else name]
        shape, count, stored = tuple(entry["shape"]) if entry else held, math.prod(held), "dense"
        size = count * dtype.itemsize
        if entry:
            support = info["supports"][entry["support"]]
            place, stored = support["tensor"], support["stored"]
            if place not in counted:
                counted.add(place)
                size += math.prod(layout[place][0]) * layout[place][1].itemsize
        row = {"name": name, "shape": shape, "dtype": str(dtype).removeprefix("torch."), "stored": stored}
        density = count / math.prod(shape) if math.prod(shape) else 1.0
        rows.append(row | {"count": count, "density": density, "bytes": size})
    return rows


def _positions(kind: str, place: Tensor, numel: int) -> Tensor | None:
    """Flat indices of a stored support, or None if it does not describe `numel` entries."""
    if kind == "bits":
        bits = np.unpackbits(place.numpy())
        fits = len(bits) == -(-numel // 8) * 8 and not bits[numel:].any()
        return torch.from_numpy(np.flatnonzero(bits)) if fits else None
    index = place.long()
    inside = not len(index) or 0 <= int(index[0]) <= int(index[-1]) < numel
    return index if inside and bool((index.diff() > 0).all()) else None


class _Encoding:
    """One way to store a support; `existing` names an equal tensor of the tree, which costs nothing more."""

    def __init__(self, kind: str, tensor: Tensor, count: int, existing: str | None) -> None:
        self.kind, self.tensor, self.count, self.existing = kind, tensor, count, existing
        self.cost = 0 if existing else tensor.nbytes


def _encoding(mask: Tensor, known: _Known) -> _Encoding:
    flat = mask.reshape(-1).numpy()
    index = torch.from_numpy(np.flatnonzero(flat))
    bits = torch.from_numpy(np.packbits(flat))
    narrow = index if mask.numel() > _INT32_MAX else index.int()
    ways = [("bits", bits), ("index", narrow), ("index", index)]
    return min((_Encoding(k, t, len(index), known.find(t)) for k, t in ways), key=lambda way: way.cost)


class _Known:
    """Finds 1-D integer tensors of the tree by content: a controller's state often holds the supports already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        kinds = (torch.uint8, torch.int32, torch.int64)
        fitting = {n: t for n, t in tensors.items() if t.ndim == 1 and t.dtype in kinds}
        self._names = {self._key(t): n for n, t in fitting.items()}

    def find(self, tensor: Tensor) -> str | None:
        return self._names.get(self._key(tensor)) if self._names else None

    @staticmethod
    def _key(tensor: Tensor) -> tuple[torch.dtype, bytes]:
        return tensor.dtype, hashlib.blake2b(raw(tensor).numpy().data, digest_size=32).digest()


def _mask(given: Any) -> Tensor:
    mask = given if isinstance(given, Tensor) else getattr(given, "mask", None)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise CheckpointError(f"a mask is {type(given).__name__}; expected a boolean tensor or a Support")
    return mask.detach().cpu()
