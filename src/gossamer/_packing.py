"""Nested state to flat tensors and JSON, and back. No files here."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._safetensors import DTYPES
from ._sparse_values import SparseValues
from .errors import CheckpointError

Json = Any


def pack(tree: Any) -> tuple[dict[str, Tensor | SparseValues], Json]:
    """Split nested state into tensors, named by their path ("model/fc.weight"), and a JSON skeleton.

    The tree may hold dicts (str and int keys, order kept), lists, tuples, Counters, str, int, float (inf and nan
    too), bool, None, plain tensors and `SparseValues`. Dict subclasses come back as dict; one tensor met twice is
    held once.

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


def unpack(tensors: Mapping[str, Any], skeleton: Json) -> Any:
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


def leaves(skeleton: Json) -> Iterator[str]:
    """Names of the tensors in a skeleton, in order, repeated as they are."""
    if isinstance(skeleton, list):
        for item in skeleton:
            yield from leaves(item)
    elif isinstance(skeleton, dict):
        for key, value in skeleton.items():
            yield from [value] if key == "$tensor" else leaves(value)


def densified(tree: Any) -> Any:
    """Return what `unpack` made with every sparse tensor dense; one that is in two places stays one."""
    made: dict[int, Tensor] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, SparseValues):
            if id(node) not in made:
                made[id(node)] = node.dense()
            return made[id(node)]
        if isinstance(node, list | tuple):
            return type(node)(visit(item) for item in node)
        if isinstance(node, dict):
            return type(node)({key: visit(value) for key, value in node.items()})
        return node

    return visit(tree)


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor | SparseValues] = {}
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
        if isinstance(node, SparseValues):
            _check_savable(node.values, path)
            return {"$tensor": self._new(node, path, (id(node),))}
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
        _check_savable(tensor, path)
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        return self._new(tensor, path, same if tensor.numel() else (id(tensor),))

    def _new(self, leaf: Tensor | SparseValues, path: tuple[Any, ...], same: tuple[Any, ...]) -> str:
        """Name of a leaf; one that has been met goes by its first name."""
        if same in self._seen:
            return self._seen[same]
        text = "/".join(map(str, path)).encode("utf-8", "backslashreplace").decode() or "tensor"
        name = unused(text, self.tensors)
        self.tensors[name] = leaf
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


def _check_savable(tensor: Tensor, path: tuple[Any, ...]) -> None:
    if tensor.layout != torch.strided:
        problem = f"of layout {tensor.layout}: save .to_dense() or its parts"
    elif tensor.is_meta:
        problem = "on the meta device: it has no values"
    elif tensor.dtype not in DTYPES:
        problem = f"of {tensor.dtype}, which the file format does not know"
    else:
        return
    raise CheckpointError(f"cannot save {_where(path)}, a tensor {problem}")
