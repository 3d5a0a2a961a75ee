"""Whether a saved state belongs to the model and optimizers at hand: found out before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ._sparse_state import entries, offsets_in
from ._sparse_values import SparseValues
from .distributed import is_sharded
from .errors import CheckpointError

_SHOWN = 3  # names listed in a message


def check_fits(model: nn.Module, state: Mapping[str, Any], path: str | Path, about: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the saved names and shapes are those of the model; about: metadata of the file."""
    held, mine = about.get("offsets", {}), offsets_in(model)
    other = [
        f"{name} {held[name]} (here {offset})" for name, offset in mine.items() if held.get(name, offset) != offset
    ]
    if other:
        raise CheckpointError(f"{path} was trained with other offsets than this model has: {_first(other)}")
    own = entries(model)
    odd = {
        "it lacks": [name for name in own if name not in state],
        "it has in addition": [name for name in state if name not in own],
        "of another shape are": [
            f"{name} {tuple(state[name].shape)} (here {tuple(entry.shape)})"
            for name, entry in own.items()
            if entry.shape is not None and name in state and getattr(state[name], "shape", None) != entry.shape
        ],
    }
    if any(odd.values()):
        source = f" (of model {about['model']})" if "model" in about else ""
        parts = [f"{what} {_first(names)}" for what, names in odd.items() if names]
        raise CheckpointError(f"{path}{source} does not fit this {type(model).__name__}: {'; '.join(parts)}")


def check_sparse(state: Mapping[str, Any], supports: Mapping[str, Any]) -> dict[str, Any]:
    """Return the supports of those weights that are dense tensors, which are checked to be zero off them.

    Raises:
        CheckpointError: a weight is not there, of another shape or count, sharded, or not zero off its support.
    """
    for name, support in supports.items():
        weight = state.get(name)
        sparse = isinstance(weight, SparseValues)
        if weight is None or weight.shape != support.shape or (sparse and len(weight.index) != support.count):
            raise CheckpointError(
                f"the sparsifier is of another model: this one has no {name} {tuple(support.shape)} with "
                f"{support.count} active entries"
            )
        if sparse:
            continue
        if is_sharded(weight):
            raise CheckpointError(
                f"{name} is sharded over ranks: gather with torch.distributed.checkpoint.state_dict."
                "get_model_state_dict(full_state_dict=True) and pass that to save()"
            )
        if bool((weight.detach()[~support.mask.to(weight.device)] != 0).any()):
            raise CheckpointError(
                f"{name} is not zero off its support: an optimizer step did not finish or something else changed "
                "the weights; call sparsifier.restore() before saving"
            )
    return {name: support for name, support in supports.items() if isinstance(state[name], Tensor)}


def check_optimizers(every: Sequence[Optimizer], saved: Any, types: Sequence[str], path: str | Path) -> None:
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


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
