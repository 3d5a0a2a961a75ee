"""The saved state of a learned method's controller: its form, and whether it fits, are checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import CheckpointError
from .gated import GatedWeight
from .reparametrise import Learned
from .state import read_state
from .targets import canonical

LEARNED_VERSION = 1
_KEYS = {
    "version": int,
    "seed": int,
    "step": int,
    "finalized_at": int | None,
    "momenta": Mapping,
    "base_rates": Mapping,
    "static": Mapping | None,
}


def check_learned_state(
    state: Any, method: Learned, total_steps: int | None, weights: Mapping[str, GatedWeight]
) -> dict[str, Any]:
    """Return the state with canonical names and real supports (under "supports", empty while gates are soft).

    Raises:
        CheckpointError: it is no such state, damaged, or of another model, method, density or length of training.
    """
    if not isinstance(state, Mapping) or "momenta" not in state:
        raise CheckpointError(
            "this is no state of a LearnedSparsifier; pass what LearnedSparsifier.state_dict() returned"
        )
    for key, kind in _KEYS.items():
        value = state.get(key)
        if key not in state or not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"the saved state is damaged: {key} is {type(value).__name__}")
    if state["version"] != LEARNED_VERSION:
        raise CheckpointError(
            f"the saved state has version {state['version']}; this library reads version {LEARNED_VERSION}"
        )
    if state["step"] < 0 or (state["finalized_at"] is None) != (state["static"] is None):
        raise CheckpointError(f"the saved state is damaged: step {state['step']}, cut at {state['finalized_at']}")
    mine = {
        "method": method.name,
        "total_steps": total_steps,
        "density": method.density,
        "finalize": method.finalize,
    }
    for key, value in mine.items():
        if state.get(key) != value:
            raise CheckpointError(f"the saved {key} is {state.get(key)!r}, this sparsifier's is {value!r}")
    static = state["static"]
    supports = {} if static is None else read_state(static)["supports"]
    momenta = {canonical(name): value for name, value in state["momenta"].items()}
    rates = {canonical(name): value for name, value in state["base_rates"].items()}
    _check_names(supports if static is not None else rates, weights)
    for name, weight in weights.items():
        _check_weight(name, weight, momenta.get(name), rates.get(name), supports.get(name))
    return {**state, "supports": supports, "momenta": momenta, "base_rates": rates}


def _check_names(held: Mapping[str, Any], weights: Mapping[str, GatedWeight]) -> None:
    if held.keys() != weights.keys():
        odd = sorted(held.keys() ^ weights.keys())
        raise CheckpointError(f"the state belongs to another model or other targets: {', '.join(odd[:5])} differ")


def _check_weight(name: str, weight: GatedWeight, momentum: Any, rate: Any, support: Any) -> None:
    if momentum is not None and not (isinstance(momentum, Tensor) and momentum.shape == weight.s.shape):
        raise CheckpointError(f"the saved momentum of the gates of {name} does not fit them")
    if rate is not None and not isinstance(rate, float):
        raise CheckpointError(f"the saved state is damaged: the first learning rate of {name} is {rate!r}")
    if support is not None and tuple(support.shape) != tuple(weight.parameter.shape):
        raise CheckpointError(
            f"the saved support of {name} has shape {tuple(support.shape)}, the weight has "
            f"{tuple(weight.parameter.shape)}: this state belongs to another model"
        )
