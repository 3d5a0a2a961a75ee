"""Checkpoints in one safetensors file, without pickle; sparse tensors are stored as values and a shared support.

The layout, and a reader of 30 lines that needs NumPy only, are in docs/checkpoint-format.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._packing import compress, expand, listed, nonzero_bits, pack, unpack
from ._safetensors import dtype_of, opened, replacing, sensible, write
from .distributed import is_sharded
from .errors import CheckpointError
from .learned import LearnedSparsifier
from .targets import canonical

if TYPE_CHECKING:
    from .sparsifier import Sparsifier

VERSION = 1
_SHOWN = 3  # names listed in a message


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
    tensors, tree = pack(state)
    about_tensors, about = pack(dict(metadata or {}))
    if about_tensors:
        raise CheckpointError(f"metadata holds a tensor ({next(iter(about_tensors))}); put tensors in the state")
    stored, sparse, supports = compress(tensors, masks or {})
    info = {"version": VERSION, "kind": kind, "metadata": about, "sparse": sparse, "supports": supports, "tree": tree}
    text = json.dumps(info, separators=(",", ":"), allow_nan=False)
    with replacing(Path(path)) as file:
        write(file, stored, {"format": "pt", "gossamer": text})


def load(path: str | Path) -> Contents:
    """Read a file written by `save`; every tensor is dense and on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of a newer format, or not a checkpoint of this library.
    """
    with opened(path) as file:
        info = _info(file, path)
        stored = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        state = unpack(expand(stored, info["sparse"], info["supports"]), info["tree"])
        return Contents(info["kind"], state, unpack({}, info["metadata"]))


def save_model(
    path: str | Path,
    model: nn.Module,
    sparsifier: Sparsifier | LearnedSparsifier | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the deployable model: its state dict, sparse weights stored sparse.

    Without `sparsifier`, a tensor is stored sparse by its exact zeros where that is smaller. Names are those of the
    plain model, without what DDP or `torch.compile` put before them.

    Raises:
        CheckpointError: as `save`; or a weight is not zero off its support, or its gates are soft.
    """
    state = _model_state(model)
    about: dict[str, Any] = {"model": type(model).__name__}
    if sparsifier is None:
        floats = {name: t for name, t in pack(state)[0].items() if t.is_floating_point()}
        masks: dict[str, Any] = {name: nonzero_bits(t) for name, t in floats.items()}
    else:
        masks = _zeros_of(sparsifier)
        if not masks:
            raise CheckpointError(
                "the gates of this model are soft, so no weight is zero yet; call sparsifier.finalize() first, or "
                "save_training() to go on later"
            )
        about |= {"method": sparsifier.method.name, "step": sparsifier.step}
        _check_sparse(state, masks)
    save(path, state, masks=masks, kind="model", metadata=about | dict(metadata or {}))


def load_model(path: str | Path, model: nn.Module | None = None) -> dict[str, Any]:
    """Return the plain dense state dict of a model or training file, and load it into `model` if one is given.

    Raises:
        CheckpointError: as `load`; or the file is of another model.
    """
    contents = load(path)
    if contents.kind not in ("model", "training"):
        raise CheckpointError(f"{path} is a {contents.kind} file; it was not written by save_model or save_training")
    with sensible(path):
        state = contents.state if contents.kind == "model" else contents.state["model"]
        if not isinstance(state, dict):
            raise TypeError("the state is no dict")
        if model is not None:
            model.load_state_dict(_fitting(model, state, path, contents.metadata))
    return state


def save_training(
    path: str | Path,
    *,
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer],
    sparsifier: Sparsifier | LearnedSparsifier | None = None,
    extra: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write everything an exact resume needs, in one file.

    extra: whatever else the loop keeps: step, schedulers' and scaler's state dicts, random states, history.

    Raises:
        CheckpointError: as `save`; or a weight is not zero off its support.
    """
    every = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    state = {
        "model": _model_state(model),
        "optimizers": [optimizer.state_dict() for optimizer in every],
        "optimizer_types": [type(optimizer).__name__ for optimizer in every],
        "sparsifier": None if sparsifier is None else sparsifier.state_dict(),
        "extra": extra,
    }
    masks: dict[str, Any] = {}
    if sparsifier is not None:
        supports = _zeros_of(sparsifier)
        _check_sparse(state["model"], supports)
        masks = {f"model/{name}": support for name, support in supports.items()}
        parameters = {canonical(name): p for name, p in model.named_parameters()}
        by_identity = {id(parameters[name]): support for name, support in supports.items()}
        for number, optimizer in enumerate(every):
            masks |= _slot_masks(f"optimizers/{number}", optimizer, state["optimizers"][number], by_identity)
    about = {"model": type(model).__name__} | dict(metadata or {})
    save(path, state, masks=masks, kind="training", metadata=about)


def load_training(
    path: str | Path,
    *,
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer],
    sparsifier: Sparsifier | LearnedSparsifier | None = None,
) -> Any:
    """Restore what `save_training` wrote and return its `extra`; the run continues bit for bit.

    Raises:
        CheckpointError: as `load`; or the file is of another model, optimizer or sparsifier. Nothing is changed then.
    """
    contents = load(path)
    if contents.kind != "training":
        raise CheckpointError(f"{path} is a {contents.kind} file; resuming needs one written by save_training")
    every = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    with sensible(path):
        state = contents.state
        with _in_form_of(state["sparsifier"], sparsifier):
            return _take_over(state, model, every, sparsifier, path, contents.metadata)


def _take_over(
    state: Mapping[str, Any],
    model: nn.Module,
    every: Sequence[Optimizer],
    sparsifier: Sparsifier | LearnedSparsifier | None,
    path: str | Path,
    about: Mapping[str, Any],
) -> Any:
    """Load all parts of a training state, or none; return its `extra`."""
    weights = _fitting(model, state["model"], path, about)
    _check_optimizers(every, state["optimizers"], state["optimizer_types"], path)
    if (state["sparsifier"] is None) != (sparsifier is None):
        holds, given = ("no", "one") if sparsifier is not None else ("a", "none")
        raise CheckpointError(f"{path} holds {holds} sparsifier's state, but {given} is given to load it into")
    extra, before = state["extra"], [(optimizer.state, optimizer.param_groups) for optimizer in every]
    try:
        for optimizer, saved in zip(every, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if sparsifier is not None:
            sparsifier.load_state_dict(state["sparsifier"])
    except BaseException:
        for optimizer, (slots, groups) in zip(every, before, strict=True):  # loading made new ones
            optimizer.state, optimizer.param_groups = slots, groups
        raise
    model.load_state_dict(weights)  # last, because it has been checked and the others check while they load
    return extra


def _in_form_of(state: Any, sparsifier: Sparsifier | LearnedSparsifier | None) -> AbstractContextManager[object]:
    """Inside, a learned method's model and optimizers have the parameters they had when `state` was saved."""
    if isinstance(sparsifier, LearnedSparsifier) and state is not None:
        return sparsifier.in_form_of(state)
    return nullcontext()


def _zeros_of(sparsifier: Sparsifier | LearnedSparsifier) -> dict[str, Any]:
    """The supports off which weights are exactly zero: none while the gates of a learned method are soft."""
    soft = isinstance(sparsifier, LearnedSparsifier) and not sparsifier.finalized
    return {} if soft else dict(sparsifier.supports)


def describe(path: str | Path) -> dict[str, Any]:
    """What is in a file, from its header alone: no tensor is read.

    Returns ``{"kind", "version", "metadata", "rows", "totals"}``. A row is ``{"name", "shape", "dtype", "stored"
    ("dense", "bits" or "index"), "count", "density", "bytes"}``: count of stored entries; bytes in the file, a
    support's own bytes being counted with the first tensor that uses it. Totals: "entries", "count", "bytes" (sums
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
    if info["version"] != VERSION:
        raise CheckpointError(
            f"{path} has format version {info['version']}, this gossamer reads version {VERSION}; "
            "read it with the gossamer that wrote it or a newer one"
        )
    if not (isinstance(info["kind"], str) and isinstance(info["metadata"], dict)):
        raise TypeError("kind is no string or metadata no dict")
    return info


def _model_state(model: nn.Module) -> dict[str, Any]:
    return {canonical(name): value for name, value in model.state_dict().items()}


def _check_sparse(state: Mapping[str, Any], supports: Mapping[str, Any]) -> None:
    for name, support in supports.items():
        if name not in state or state[name].shape != support.shape:
            raise CheckpointError(f"the sparsifier is of another model: this one has no {name} {tuple(support.shape)}")
        if is_sharded(state[name]):
            raise CheckpointError(
                f"{name} is sharded over ranks: gather with torch.distributed.checkpoint.state_dict."
                "get_model_state_dict(full_state_dict=True) and pass that to save()"
            )
        weight = state[name].detach()
        if bool((weight[~support.mask.to(weight.device)] != 0).any()):
            raise CheckpointError(
                f"{name} is not zero off its support: an optimizer step did not finish or something else changed "
                "the weights; call sparsifier.restore() before saving"
            )


def _slot_masks(
    prefix: str, optimizer: Optimizer, saved: Mapping[str, Any], supports: Mapping[int, Any]
) -> dict[str, Any]:
    """Paths of the optimizer state that is aligned with a sparse weight."""
    masks = {}
    for group, numbers in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbers["params"], strict=True):
            if id(parameter) in supports:
                for slot, value in saved["state"].get(number, {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        masks[f"{prefix}/state/{number}/{slot}"] = supports[id(parameter)]
    return masks


def _check_optimizers(every: Sequence[Optimizer], saved: Any, types: Sequence[str], path: str | Path) -> None:
    """Raise unless number, parameters per group and hyperparameters are those of the given optimizers."""
    if len(saved) != len(every):
        raise CheckpointError(f"{path} holds {len(saved)} optimizers, {len(every)} are given")
    for optimizer, state, name in zip(every, saved, types, strict=True):
        start, mine = f"{path} holds the state of another optimizer ({name}) than this", type(optimizer).__name__
        own, held = ([len(g["params"]) for g in groups] for groups in (optimizer.param_groups, state["param_groups"]))
        if own != held:
            raise CheckpointError(f"{start} {mine}: its groups have {held} parameters, here {own}")
        for group, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True):
            lacking = sorted(optimizer.defaults.keys() - theirs.keys())
            more = sorted(theirs.keys() - group.keys()) if name != mine else []  # schedulers add keys
            if lacking or more:
                parts = [f"{what} {_first(keys)}" for what, keys in (("lacks", lacking), ("has", more)) if keys]
                raise CheckpointError(f"{start} {mine}: it {' and '.join(parts)}")


def _fitting(model: nn.Module, state: Mapping[str, Any], path: str | Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """`state` under the model's own names; raise if it is another model's."""
    own = {canonical(name): name for name in model.state_dict()}
    shapes = {canonical(name): value.shape for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    odd = {
        "it lacks": [name for name in own if name not in state],
        "it has in addition": [name for name in state if name not in own],
        "of another shape are": [
            f"{name} {tuple(state[name].shape)} (here {tuple(shape)})"
            for name, shape in shapes.items()
            if name in state and getattr(state[name], "shape", None) != shape
        ],
    }
    if any(odd.values()):
        source = f" (of model {about['model']})" if "model" in about else ""
        parts = [f"{what} {_first(names)}" for what, names in odd.items() if names]
        raise CheckpointError(f"{path}{source} does not fit this {type(model).__name__}: {'; '.join(parts)}")
    return {own[name]: value for name, value in state.items()}


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
