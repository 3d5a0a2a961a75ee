"""The saved state of a sparsifier: its form, and whether it fits, are checked before anything is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import CheckpointError
from .method import Method
from .rewiring import shapes
from .site_kinds import AnySite
from .targets import canonical
from .topology import Constant, Support, Units

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
    "traits": Mapping,
    "memory": Mapping,
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
    traits = {canonical(name): _traits(name, state["traits"].get(name, {})) for name in state["supports"]}
    memory = {group: _memory(group, values) for group, values in state["memory"].items()}
    held = _held(state.get("held", {}), supports)
    return {**state, "supports": supports, "trainables": trainables, "traits": traits, "memory": memory, "held": held}


def _held(value: Any, supports: Mapping[str, Support]) -> dict[str, int]:
    """The counts that first supports came with; none in states of methods whose allocation decides."""
    counts = {canonical(str(name)): count for name, count in value.items()} if isinstance(value, Mapping) else None
    if counts == {}:
        return {}
    if counts is None or counts.keys() != supports.keys():
        raise CheckpointError("the saved state is damaged: the counts of first supports are not those of its weights")
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count <= supports[name].numel:
            raise CheckpointError(f"the saved state is damaged: {name} started with {count!r} entries")
    return counts


def _traits(name: str, value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise CheckpointError(f"the saved state is damaged: what it keeps per entry of {name!r} are no tensors")
    return dict(value)


def _memory(group: Any, values: Any) -> dict[str, float]:
    numbers = isinstance(values, Mapping) and all(
        isinstance(key, str) and isinstance(value, int | float) and math.isfinite(value)
        for key, value in values.items()
    )
    if not isinstance(group, str) or not numbers:
        raise CheckpointError(f"the saved state is damaged: the rule's memory of {group!r} are no numbers")
    return {key: float(value) for key, value in values.items()}


def _support(name: str, value: Mapping[str, Any]) -> Support:
    try:
        return Support.from_state(value)
    except CheckpointError as error:
        raise CheckpointError(f"the saved support of {name}: {error}") from None
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"the saved support of {name} is damaged: {error}") from None


def check_fits(state: Mapping[str, Any], method: Method, total_steps: int | None, sites: Mapping[str, AnySite]) -> None:
    """Raise CheckpointError if what `read_state` returned is of another model, method, density or training length."""
    for key, mine in (("method", method.name), ("total_steps", total_steps)):
        if state[key] != mine:
            raise CheckpointError(f"the saved {key} is {state[key]!r}, this sparsifier's is {mine!r}")
    supports = state["supports"]
    if supports.keys() != sites.keys():
        odd = sorted(supports.keys() ^ sites.keys())
        raise CheckpointError(f"the state belongs to another model or other targets: {', '.join(odd[:5])} differ")
    for name, site in sites.items():
        site.check_state(supports[name], state["trainables"].get(name), state["traits"][name])
    _check_counts({name: support.count for name, support in supports.items()}, method, sites, state["step"])
    _check_reach(supports, {name: traits.get("reach") for name, traits in state["traits"].items()}, method, sites)


def _check_counts(held: Mapping[str, int], method: Method, sites: Mapping[str, AnySite], step: int) -> None:
    constant = isinstance(method.density, Constant)
    counts = method.counts(shapes(sites), 0 if constant else _last_rewiring(method, step))
    total, expected = sum(held.values()), sum(counts.values())
    if total > expected if method.budget == "at most" else total != expected:
        raise CheckpointError(
            f"the saved supports hold {total} entries, this method keeps {expected}: the state was saved with another "
            "density"
        )
    odd = [name for name in held if held[name] != counts[name]]
    if odd and method.budget == "each" and constant:
        raise CheckpointError(
            f"the saved support of {odd[0]} holds {held[odd[0]]} entries, this method keeps {counts[odd[0]]}: the "
            "state was saved with another allocation"
        )


def _last_rewiring(method: Method, step: int) -> int:
    """When a scheduled density was last applied, 0 for never."""
    latest = step if method.at == "after" else step - 1
    return next((t for t in range(latest, 0, -1) if method.clock.due(t)), 0)


def _check_reach(
    supports: Mapping[str, Support],
    reach: Mapping[str, Tensor | None],
    method: Method,
    sites: Mapping[str, AnySite],
) -> None:
    counts, trained = method.reach_counts(shapes(sites), 0), 0
    for name, site in sites.items():
        mask = reach[name]
        if mask is not None and (counts is None or bool((supports[name].mask.to(mask.device) & ~mask).any())):
            raise CheckpointError(f"the saved state is damaged: what is trained of {name} does not fit its support")
        trained += site.shape.numel() if mask is None else int(mask.sum())
    constant = isinstance(method.density, Constant) and isinstance(getattr(method.inactive, "reach", None), Constant)
    if counts is None or not constant:
        return
    expected = sum(counts.values())
    # Where units differ in size, at edges, the best ones of one count are not all among those of a larger count; what
    # is active is trained nevertheless.
    beside = sum(support.count for support in supports.values()) if isinstance(method.structure, Units) else 0
    if not expected <= trained <= expected + beside:
        raise CheckpointError(
            f"the saved state trains {trained} entries, this method {expected}: it was saved with another density of "
            "what is trained"
        )
