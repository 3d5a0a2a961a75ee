"""The pieces of a ticket search, for any loop: copy a model's state, prune its weights, set it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import distributed
from .errors import AttachError, ConfigError, DivergedError
from .masking import keep_on
from .targets import canonical, choose
from .topology import Entries, Select, Support, Unstructured

Targets = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None
Supports = Mapping[str, Support]  # weight name -> what is active


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
    for name, weight in _weights(model, supports).items():
        keep_on(supports[name].mask.to(weight.device), weight, out=weight)


@torch.no_grad()
def prune(model: nn.Module, supports: Supports, counts: Mapping[str, int]) -> dict[str, Support]:
    """Return the supports of the largest magnitudes among the active weights, exactly as many as `counts` says.

    counts: entries of each weight; or ``{"": entries of all}``, chosen by one threshold, at least one per weight. Of
    equal magnitudes the lower index is kept.

    Raises:
        DivergedError: a weight is not finite.
    """
    weights = _weights(model, supports)
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


def _weights(model: nn.Module, names: Supports) -> dict[str, Tensor]:
    parameters = {canonical(name): parameter.detach() for name, parameter in model.named_parameters()}
    return {name: parameters[name] for name in names}
