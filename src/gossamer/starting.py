"""The supports that layers start with when a model is converted: those of a method, or given ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .analysis.sanity import Targets, first_supports
from .errors import ConfigError, TargetError
from .foresight import Saliency
from .method import Method
from .reparametrise import Learned
from .targets import choose, is_offset_layer
from .tickets import Tickets
from .topology import Support


def start_supports(
    model: nn.Module, what: object, targets: Targets, seed: int, total_steps: int | None
) -> dict[str, Support]:
    """The supports that `convert` starts layers with, full ones if the method starts dense; nothing changes."""
    if isinstance(what, Mapping):
        refuse_targets(targets)
        weights = [f"{path}.weight" if path else "weight" for path, m in model.named_modules() if is_offset_layer(m)]
        return _given(model, {inner_name(n) if n in weights else n: support for n, support in what.items()})
    if isinstance(what, Method) and what.starts_dense:
        return {row.name: Support.full(row.parameter.shape) for row in choose(model, targets) if row.sparse}
    if not isinstance(what, Method | Learned | Tickets | Saliency):  # the last three get an error of their own
        given = "None" if what is None else f"a {type(what).__name__}"
        raise ConfigError(
            f"what is {given}; expected a Method such as methods.static(0.1), or a mapping from weight names to "
            "Supports or bool masks"
        )
    return first_supports(model, what, total_steps=total_steps, targets=targets, seed=seed)  # type: ignore[arg-type]


def refuse_targets(targets: Targets) -> None:
    """Raise ConfigError: targets beside given supports."""
    if targets is not None:
        raise ConfigError("targets choose the weights of a method; given supports name theirs, leave targets out")


def _given(model: nn.Module, what: Mapping[str, Support | Tensor]) -> dict[str, Support]:
    """The given supports, checked against the weights that they name."""
    if not what:
        raise ConfigError("no supports are given; pass a method or weight name -> Support")
    supports = {}
    for row in choose(model, list(what)):
        if row.name not in what:
            continue
        given = what[row.name]
        if not isinstance(given, Support | Tensor):
            raise ConfigError(
                f"the support of {row.name} is a {type(given).__name__}; expected a Support or a bool mask"
            )
        support = given if isinstance(given, Support) else Support.from_mask(given)
        if not row.sparse:
            raise TargetError(f"{row.name} cannot be sparse: {row.reason}")
        if support.shape != row.parameter.shape:
            raise ConfigError(
                f"the given support of {row.name} has shape {tuple(support.shape)}, the weight has "
                f"{tuple(row.parameter.shape)}"
            )
        supports[row.name] = support
    return supports


def inner_name(name: str) -> str:
    """Of a weight when its layer has an offset."""
    return f"{name.removesuffix('weight')}sparse.weight"


def outer_name(name: Any) -> Any:
    """Of a weight before."""
    return f"{name.removesuffix('sparse.weight')}weight" if str(name).endswith("sparse.weight") else name
