"""The saved state of a sparsifier: its form, and whether it fits, are checked before anything is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import CheckpointError
from .method import Method
from .rewiring import shapes
from .sites import DenseSite
from .targets import canonical
from .topology import Constant, Support

VERSION = 1
_KEYS = {
    "version": int,
    "method": str,
    "seed": int,
    "step": int,
    "total_steps": int | None,
    "selections": int,
    "supports": Mapping,
    "trainables": Mapping,
}


def read_state(state: Any) -> dict[str, Any]:
    """Return the state with canonical names and real supports.

    Raises:
        CheckpointError: it is no sparsifier state, of another version, or damaged.
    """
    if not isinstance(state, Mapping) or "supports" not in state:
        raise CheckpointError("this is no state of a Sparsifier; pass what Sparsifier.state_dict() returned")
    for key, kind in _KEYS.items():
        value = state.get(key)
        if key not in state or not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"the saved state is damaged: {key} is {type(value).__name__}")
    if state["version"] != VERSION:
        raise CheckpointError(f"the saved state has version {state['version']}; this library reads version {VERSION}")
    if state["step"] < 0 or state["selections"] < 0:
        raise CheckpointError(f"the saved state is damaged: step {state['step']}, selections {state['selections']}")
    supports: dict[str, Support] = {}
    for name, value in state["supports"].items():
        if not isinstance(name, str) or not isinstance(value, Mapping):
            raise CheckpointError(f"the saved state is damaged: the support of {name!r} is {type(value).__name__}")
        supports[canonical(name)] = _support(name, value)
    trainables: dict[str, Tensor] = {}
    for name, value in state["trainables"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            raise CheckpointError(f"the saved state is damaged: the trainable weights of {name!r} are no real tensor")
        trainables[canonical(name)] = value
    return {**state, "supports": supports, "trainables": trainables}


def _support(name: str, value: Mapping[str, Any]) -> Support:
    try:
        return Support.from_state(value)
    except CheckpointError as error:
        raise CheckpointError(f"the saved support of {name}: {error}") from None
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"the saved support of {name} is damaged: {error}") from None


def check_fits(
    state: Mapping[str, Any], method: Method, total_steps: int | None, sites: Mapping[str, DenseSite]
) -> None:
    """Raise CheckpointError if what `read_state` returned is of another model, method, density or training length."""
    for key, mine in (("method", method.name), ("total_steps", total_steps)):
        if state[key] != mine:
            raise CheckpointError(f"the saved {key} is {state[key]!r}, this sparsifier's is {mine!r}")
    supports = state["supports"]
    if supports.keys() != sites.keys():
        odd = sorted(supports.keys() ^ sites.keys())
        raise CheckpointError(f"the state belongs to another model or other targets: {', '.join(odd[:5])} differ")
    for name, site in sites.items():
        site.check_state(supports[name], state["trainables"].get(name))
    if isinstance(method.density, Constant):  # counts of a scheduled density depend on when it was last applied
        _check_counts({name: support.count for name, support in supports.items()}, method, sites, state["step"])


def _check_counts(held: Mapping[str, int], method: Method, sites: Mapping[str, DenseSite], step: int) -> None:
    counts = method.counts(shapes(sites), step)
    if sum(held.values()) != sum(counts.values()):
        raise CheckpointError(
            f"the saved supports hold {sum(held.values())} entries, this method keeps {sum(counts.values())}: the "
            "state was saved with another density"
        )
    moving = method.scope == "global" or getattr(method.rule, "quota", None) is not None
    odd = [name for name in held if held[name] != counts[name]]
    if odd and not moving:
        raise CheckpointError(
            f"the saved support of {odd[0]} holds {held[odd[0]]} entries, this method keeps {counts[odd[0]]}: the "
            "state was saved with another allocation"
        )
