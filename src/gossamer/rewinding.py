"""The pieces of a ticket search, for any loop: copy a model's state, prune its weights, set it back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import distributed
from .errors import AttachError, ConfigError, DivergedError, check_seed
from .masking import keep_on
from .targets import canonical, choose
from .topology import Entries, Select, Support, Unstructured

Targets = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None
Supports = Mapping[str, Support]  # weight name -> what is active


def check_search(model: nn.Module, train: object, total_steps: int, seed: int) -> None:
    """Raise ConfigError unless these can be the arguments of a ticket search."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {model!r}; a search needs a torch.nn.Module")
    if not callable(train):
        raise ConfigError(f"train is {train!r}; a search needs a function train(model, attach, start, stop)")
    if type(total_steps) is not int or total_steps < 1:
        raise ConfigError(f"total_steps={total_steps!r}: expected the number of optimizer steps, >= 1")
    check_seed(seed)


def path_of(folder: object) -> Path | None:
    """Return what `folder` stands for; raise ConfigError if it cannot be a path."""
    if folder is None:
        return None
    if not isinstance(folder, str | Path) or "\0" in str(folder):
        raise ConfigError(f"folder={folder!r}: expected the path of a folder, such as 'runs/ticket'")
    return Path(folder)


def make_folder(folder: Path) -> None:
    """Make the folder of a search; raise ConfigError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {folder} as the folder of a search: {error.strerror}; give another") from error


def require_new(optimizers: Iterable[Optimizer]) -> None:
    """Raise if an optimizer has stepped: Adagrad has slots before that, and SGD without momentum has none after it."""
    for optimizer in optimizers:
        held = [state.get(slot) for state in optimizer.state.values() for slot in ("step", "n_iter", "momentum_buffer")]
        if any(bool(torch.as_tensor(value).any()) for value in held if value is not None):
            raise AttachError(
                f"attach() was given a used {type(optimizer).__name__}, whose state is of another training; build a "
                "new optimizer inside train()"
            )


def dense_supports(model: nn.Module, targets: Targets) -> dict[str, Support]:
    """Return full supports of the weights that `targets` choose.

    Raises:
        TargetError: there are none.
        AttachError: they are sharded or flattened, so that magnitudes cannot be compared on one rank.
    """
    distributed.refuse(model)
    chosen = [candidate for candidate in choose(model, targets) if candidate.sparse]
    for candidate in chosen:
        if distributed.is_sharded(candidate.parameter):
            raise AttachError(f"{candidate.name} is sharded (FSDP2), a ticket needs whole weights; search with DDP")
    return {c.name: Support.full(c.parameter.shape, c.parameter.device) for c in chosen}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return copies, on the CPU, of all that `model.state_dict()` holds, under plain names."""
    return {canonical(name): value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """Return a short text that tells states apart."""
    told = hashlib.blake2b(digest_size=8)
    for name, value in state.items():
        told.update(name.encode())
        told.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


@torch.no_grad()
def rewind(model: nn.Module, state: Mapping[str, Tensor], supports: Supports) -> None:
    """Set every parameter and buffer to what `snapshot` returned, and the weights to zero off their supports.

    Raises:
        ConfigError: the model has other parameters or buffers; nothing is changed.
    """
    own = {canonical(name): (name, value) for name, value in model.state_dict().items()}
    odd = sorted(own.keys() ^ state.keys()) or [n for n, (_, value) in own.items() if value.shape != state[n].shape]
    if odd:
        raise ConfigError(f"the weights to go back to are of another model: {', '.join(odd[:3])} differ")
    model.load_state_dict({own[name][0]: value for name, value in state.items()})
    for name, weight in weights_of(model, supports).items():
        keep_on(supports[name].mask.to(weight.device), weight, out=weight)


@torch.no_grad()
def prune(model: nn.Module, supports: Supports, counts: Mapping[str, int]) -> dict[str, Support]:
    """Return the supports of the largest magnitudes among the active weights, exactly as many as `counts` says.

    counts: entries of each weight; or ``{"": entries of all}``, chosen by one threshold, at least one per weight. Of
    equal magnitudes the lower index is kept.

    Raises:
        DivergedError: a weight is not finite.
    """
    weights = weights_of(model, supports)
    groups = {"": list(supports)} if "" in counts else {name: [name] for name in supports}
    kept: dict[str, Support] = {}
    for key, group in groups.items():
        masks = [supports[name].mask.to(weights[name].device) for name in group]
        entries = [
            Entries(torch.where(mask, weights[name], 0.0), mask) for name, mask in zip(group, masks, strict=True)
        ]
        try:
            chosen = Select().rewire(entries, [counts[key]], Unstructured(), step=0)
        except DivergedError as error:
            raise DivergedError(f"pruning {', '.join(group)}: {error}") from None
        kept |= {name: Support.from_mask(mask) for name, mask in zip(group, chosen, strict=True)}
    return kept


def pack_level(supports: Supports, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Return supports, and a snapshot where it is to be kept, as `gossamer.checkpoint.save` takes them."""
    packed = {name: support.state() for name, support in supports.items()}
    return {"supports": packed, "state": None if state is None else dict(state)}


def unpack_supports(saved: Mapping[str, Any]) -> dict[str, Support]:
    """Return the supports of what `pack_level` made."""
    return {name: Support.from_state(state) for name, state in saved["supports"].items()}


def weights_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the parameters of these plain names."""
    parameters = {canonical(name): parameter for name, parameter in model.named_parameters()}
    return {name: parameters[name] for name in names}
