"""A method's choices in words: one row of the table that compares methods. Read off its parts, not written by hand."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from .foresight import Saliency
from .inactive import Live, Zero
from .topology import (
    NM,
    Clock,
    Constant,
    Schedule,
    Select,
    Static,
    as_schedule,
)

if TYPE_CHECKING:
    from .method import Method

_LONG = 1_000_000  # steps: no time of a method is rounded away
RECOMMENDATIONS = ("rewire", "dense gradients", "discard")


@dataclass(frozen=True)
class Choices:
    """One row of the table of methods.

    init: first support. drop, grow: by what. where: within what growth competes. when: how often. inactive: value of
    the inactive weights. gradient: what they receive. newborn: value and optimizer slots of weights that become active.
    budget: how many are active. structure: which sets are allowed. omits: which of the three recommendations of the
    seed paper it does not follow: rewire, dense gradients (update all weights), discard (intermediate values).
    """

    init: str
    drop: str
    grow: str
    where: str
    when: str
    inactive: str
    gradient: str
    newborn: str
    budget: str
    structure: str
    omits: tuple[str, ...]

    @classmethod
    def header(cls) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(field.name for field in fields(cls))

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        *texts, omits = astuple(self)
        return (*texts, ", ".join(omits) or "none")


def describe(method: Method) -> Choices:
    """Return the row of a composition."""
    rule, inactive = method.rule, method.inactive
    drop, grow = rule.words
    if isinstance(rule, Select) and isinstance(inactive, Zero):  # what is zero cannot win: it prunes
        grow = "-"
    return Choices(
        init=_init(method),
        drop=drop,
        grow=grow,
        where=_where(method),
        when=_when(method.clock, method.at) if not isinstance(rule, Static) else "never",
        inactive=_inactive(inactive),
        gradient=_gradient(method),
        newborn=_newborn(inactive) if grow != "-" else "-",
        budget=_budget(method),
        structure=method.structure.name,
        omits=_omits(method, grow),
    )


def _init(method: Method) -> str:
    if as_schedule(method.density).resolve(_LONG)(0) == 1:
        return "dense"
    if isinstance(method.init, Saliency) and method.init.scope == "global":
        return f"{method.init.name}, global"
    by = getattr(method.init, "name", "given")
    return f"{by}, {getattr(method.allocation, 'name', method.allocation)}"


def _where(method: Method) -> str:
    if method.rule.where is not None:
        return method.rule.where
    structure = method.structure
    if not isinstance(structure, NM):
        return method.scope
    return "tile of inputs and outputs" if structure.transposable else f"group of {structure.axis}"


def _when(clock: Clock, at: str) -> str:
    if clock.every == math.inf:
        return f"once, at {_time(clock.also[0])}" if clock.also else "never"
    every = "every step" if clock.every == 1 and isinstance(clock.every, int) else f"every {_time(clock.every)}"
    doubling = ", doubling" if clock.double_at else ""
    until = "" if clock.stop in (math.inf, 1.0) else f" until {_time(clock.stop)}"
    return f"{every}{doubling}{until}{', instead of the update' if at == 'replace' else ''}"


def _time(time: int | float) -> str:
    return f"{time:g} T" if isinstance(time, float) else f"{time} steps"


def _inactive(inactive: Zero | Live) -> str:
    if isinstance(inactive, Zero):
        return "zero"
    parts = [] if inactive.exploit is None else [type(inactive.exploit).__name__.lower()]
    parts += ["decay in the gradient"] if inactive.decay else []
    return ", ".join(["live", *parts])


def _gradient(method: Method) -> str:
    inactive = method.inactive
    if isinstance(inactive, Live):
        if inactive.reach is not None:
            return f"of the next in rank, to density {_value(inactive.reach)}"
        return "dense" if inactive.scale == 1 else f"dense x {inactive.scale:g}"
    if inactive.slots == "keep":
        return "dense, into the optimizer's slots"
    return "at rewirings" if "grad" in method.rule.needs else "none"


def _value(value: float | Schedule) -> str:
    return f"{as_schedule(value)(0):.3g}"


def _newborn(inactive: Zero | Live) -> str:
    if isinstance(inactive, Live):
        return "current value, slots kept"
    value = f"N(0, {inactive.newborn_std:g}^2)" if inactive.newborn_std else "0"
    return f"{value}, slots {'kept' if inactive.slots == 'keep' else inactive.newborn}"


def _budget(method: Method) -> str:
    over = {"each": "per layer", "total": "in all", "at most": "per layer, at most"}[method.budget]
    constant = isinstance(as_schedule(method.density), Constant)
    return f"{'constant' if constant else 'falling'} {over}"


def _omits(method: Method, grow: str) -> tuple[str, ...]:
    inactive = method.inactive
    live = inactive if isinstance(inactive, Live) else None
    follows = {
        "rewire": grow != "-",
        "dense gradients": live is not None and live.scale > 0 and live.reach is None,
        "discard": live is None or bool(live.exploit or live.decay),
    }
    return tuple(name for name in RECOMMENDATIONS if not follows[name])
