"""Checkpoints in one safetensors file, without pickle; sparse tensors are stored as values and a shared support.

The layout, and a reader of 30 lines that needs NumPy only, are in docs/checkpoint-format.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ._compression import nonzero_bits
from ._files import Contents, describe, load, read_state, save, write_state
from ._fitting import check_fits, check_optimizers, check_sparse
from ._packing import densified, pack
from ._safetensors import sensible
from ._sparse_state import model_state, numbered, offsets_in, own_slots, own_state, slots_state
from .errors import CheckpointError
from .learned import LearnedSparsifier
from .method import Method
from .seeding import generator_for
from .targets import canonical
from .topology import Static, scores

if TYPE_CHECKING:
    from .sparsifier import Sparsifier

__all__ = ["Contents", "describe", "load", "load_model", "load_training", "save", "save_model", "save_training"]


def save_model(
    path: str | Path,
    model: nn.Module,
    sparsifier: Sparsifier | LearnedSparsifier | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the deployable model: its state dict, sparse weights stored sparse.

    Without `sparsifier`, a dense tensor is stored sparse by its exact zeros where that is smaller. Names are those of
    the plain model, without what DDP or `torch.compile` put before them. A sparse layer at `fc` is saved as
    `fc.weight`, as that of a masked model is, so a file can be loaded into either. Of offsets the file holds names,
    alphas and seeds, no matrix.

    Raises:
        CheckpointError: as `save`; or a weight is not zero off its support, or its gates are soft.
    """
    state, _ = model_state(model)
    about = _about(model)
    masks: dict[str, Any] = {}
    if sparsifier is None:
        tensors = {name: t for name, t in pack(state)[0].items() if isinstance(t, Tensor)}
        masks = {name: nonzero_bits(t) for name, t in tensors.items() if t.is_floating_point()}
    else:
        supports = _zeros_of(sparsifier)
        if not supports:
            raise CheckpointError(
                "the gates of this model are soft, so no weight is zero yet; call sparsifier.finalize() first, or "
                "save_training() to go on later"
            )
        about |= {"method": sparsifier.method.name, "step": sparsifier.step}
        masks = check_sparse(state, supports)
    seeds = {} if sparsifier is None else _seeds(sparsifier)
    write_state(path, state, masks, seeds, "model", about | dict(metadata or {}))


def load_model(path: str | Path, model: nn.Module | None = None) -> dict[str, Any]:
    """Return the plain dense state dict of a model or training file, and load it into `model` if one is given.

    Sparse layers of `model` take over the support of the file, and of them `values` and `index` are returned, not the
    dense weight, which is never made. A weight that was stored dense has no support: the layer keeps its own if that
    holds all of the weight, else it takes that of the exact non-zeros. The dict tells
    ``load_state_dict`` the offsets of the file, as that of ``state_dict()`` does.

    Raises:
        CheckpointError: as `load`; or the file is of another model.
    """
    contents = read_state(path)
    if contents.kind not in ("model", "training"):
        raise CheckpointError(f"{path} is a {contents.kind} file; it was not written by save_model or save_training")
    with sensible(path):
        state = contents.state if contents.kind == "model" else contents.state["model"]
        if not isinstance(state, dict):
            raise TypeError("the state is no dict")
        if model is None:
            return _telling(densified(state), contents.metadata)
        check_fits(model, state, path, contents.metadata)
        own = densified(own_state(model, state, _supports_in(contents))[0])
        model.load_state_dict(own)
        return _telling({canonical(name): value for name, value in own.items()}, contents.metadata)


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
    weights, arranged = model_state(model)
    state = {
        "model": weights,
        "optimizers": [slots_state(optimizer, arranged) for optimizer in every],
        "optimizer_types": [type(optimizer).__name__ for optimizer in every],
        "sparsifier": None if sparsifier is None else sparsifier.state_dict(),
        "extra": extra,
    }
    masks: dict[str, Any] = {}
    if sparsifier is not None:
        supports = check_sparse(weights, _zeros_of(sparsifier))
        masks = {f"model/{name}": support for name, support in supports.items()}
        parameters = {canonical(name): p for name, p in model.named_parameters()}
        by_identity = {id(parameters[name]): support for name, support in supports.items()}
        for number, optimizer in enumerate(every):
            masks |= _slot_masks(f"optimizers/{number}", optimizer, state["optimizers"][number], by_identity)
    write_state(path, state, masks, {}, "training", _about(model) | dict(metadata or {}))


def load_training(
    path: str | Path,
    *,
    model: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer],
    sparsifier: Sparsifier | LearnedSparsifier | None = None,
) -> Any:
    """Restore what `save_training` wrote and return its `extra`; the run continues bit for bit.

    A model with sparse layers can go on with the file of a masked one, and the reverse, to rounding.

    Raises:
        CheckpointError: as `load`; or the file is of another model, optimizer or sparsifier. Nothing is changed then.
    """
    contents = read_state(path)
    if contents.kind != "training":
        raise CheckpointError(f"{path} is a {contents.kind} file; resuming needs one written by save_training")
    every = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    with sensible(path), _in_form_of(contents.state["sparsifier"], sparsifier):
        return _take_over(contents, model, every, sparsifier, path)


def _telling(state: dict[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict; of a model with offsets with metadata, by which its layers refuse the state of another offset."""
    if not about.get("offsets"):
        return state
    told = OrderedDict(state)
    told._metadata = {path: {"offset": offset} for path, offset in about["offsets"].items()}  # type: ignore[attr-defined]
    return told


def _about(model: nn.Module) -> dict[str, Any]:
    offsets = offsets_in(model)
    return {"model": type(model).__name__} | ({"offsets": offsets} if offsets else {})


def _take_over(
    contents: Contents,
    model: nn.Module,
    every: Sequence[Optimizer],
    sparsifier: Sparsifier | LearnedSparsifier | None,
    path: str | Path,
) -> Any:
    """Load all parts of a training state, or none; return its `extra`."""
    state = contents.state
    check_fits(model, state["model"], path, contents.metadata)
    check_optimizers(every, state["optimizers"], state["optimizer_types"], path)
    if (state["sparsifier"] is None) != (sparsifier is None):
        holds, given = ("no", "one") if sparsifier is not None else ("a", "none")
        raise CheckpointError(f"{path} holds {holds} sparsifier's state, but {given} is given to load it into")
    weights, arranged = own_state(model, state["model"], _supports_in(contents))
    pairs = zip(every, state["optimizers"], strict=True)
    slots = [densified(own_slots(optimizer, saved, arranged)) for optimizer, saved in pairs]
    weights, extra, controller = densified((weights, state["extra"], state["sparsifier"]))
    loaded = _loaded(every, slots)
    if sparsifier is not None:
        sparsifier.load_state_dict(controller)
    model.load_state_dict(weights)  # after what checks while it loads
    for optimizer, (held, groups) in zip(every, loaded, strict=True):  # last: sparse layers move their present slots
        optimizer.state, optimizer.param_groups = held, groups
    return extra


def _loaded(every: Sequence[Optimizer], saved: Sequence[Any]) -> list[tuple[Any, Any]]:
    """State and groups that loading gives each optimizer; they still have their own."""
    before, loaded = [(optimizer.state, optimizer.param_groups) for optimizer in every], []
    try:
        for optimizer, state in zip(every, saved, strict=True):
            optimizer.load_state_dict(state)
            loaded.append((optimizer.state, optimizer.param_groups))
    finally:
        for optimizer, (slots, groups) in zip(every, before, strict=True):
            optimizer.state, optimizer.param_groups = slots, groups
    return loaded


def _in_form_of(state: Any, sparsifier: Sparsifier | LearnedSparsifier | None) -> AbstractContextManager[object]:
    """Inside, a learned method's model and optimizers have the parameters they had when `state` was saved."""
    if isinstance(sparsifier, LearnedSparsifier) and state is not None:
        return sparsifier.in_form_of(densified(state))
    return nullcontext()


def _zeros_of(sparsifier: Sparsifier | LearnedSparsifier) -> dict[str, Any]:
    """The supports off which weights are exactly zero: none while the gates of a learned method are soft."""
    soft = isinstance(sparsifier, LearnedSparsifier) and not sparsifier.finalized
    return {} if soft else dict(sparsifier.supports)


def _seeds(sparsifier: Sparsifier | LearnedSparsifier) -> dict[str, int]:
    """Seeds of the generators that may have drawn the supports: those of static methods that begin at random."""
    method = sparsifier.method
    if not isinstance(method, Method) or not isinstance(method.rule, Static) or method.init is not scores.random:
        return {}
    generators = {name: generator_for(sparsifier.seed, name, "init") for name in sparsifier.supports}
    return {name: generator.initial_seed() & 0xFFFFFFFF for name, generator in generators.items()}


def _supports_in(contents: Contents) -> dict[str, Any]:
    """Weight name -> state of its support, in a training file of a sparsifier that has them."""
    saved = contents.state["sparsifier"] if contents.kind == "training" else None
    return {canonical(name): support for name, support in (saved or {}).get("supports", {}).items()}


def _slot_masks(
    prefix: str, optimizer: Optimizer, saved: Mapping[str, Any], supports: Mapping[int, Any]
) -> dict[str, Any]:
    """Paths of the optimizer state that is aligned with a masked weight."""
    return {
        f"{prefix}/state/{number}/{slot}": supports[id(parameter)]
        for parameter, number in numbered(optimizer, saved)
        if id(parameter) in supports
        for slot, value in saved["state"].get(number, {}).items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }
