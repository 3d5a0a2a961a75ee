"""A method is a value: how many, where at first, which participate, when, and what happens to the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from .errors import ConfigError
from .topology import (
    Allocation,
    Clock,
    FanIn,
    Rule,
    Schedule,
    Score,
    Select,
    Static,
    Structure,
    Support,
    Unstructured,
    as_schedule,
    check_density,
    resolve_allocation,
)


class Exploit(Protocol):
    """What pulls the inactive weights of a live method towards zero (seed paper, section 3.3)."""

    needs_total: bool

    def resolve(self, total_steps: int | None) -> Exploit:
        """Return a copy whose times are in steps."""

    def decay(self, step: int) -> float:
        """Fraction of each inactive weight removed after the update of `step` (0 = nothing, 1 = all)."""

    def frozen(self, step: int) -> bool:
        """Whether the support may no longer change after the update of `step`."""


@dataclass(frozen=True)
class Reset:
    """RESET: inactive weights become zero after every z-th update, ``(t + 1) % z == 0``.

    z is `every`, in optimizer steps. Optimizer state is kept, so momentum goes on moving them.

    >>> [Reset(2).decay(t) for t in range(4)]
    [0.0, 1.0, 0.0, 1.0]
    """

    every: int = 1000
    needs_total = False

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(
                f"Reset(every={self.every!r}): every is z, a whole number of optimizer steps >= 1; "
                "write exploit=None for no reset"
            )

    def resolve(self, total_steps: int | None) -> Reset:
        """Nothing to resolve: `every` is in steps."""
        return self

    def decay(self, step: int) -> float:
        """1 on every z-th step, else 0."""
        return 1.0 if (step + 1) % self.every == 0 else 0.0

    def frozen(self, step: int) -> bool:
        """Never: weights may be swapped between resets."""
        return False


@dataclass(frozen=True)
class Fix:
    """FIX: from ``t / T >= v`` on, inactive weights are zero, so the support no longer changes.

    v is `start`, a fraction of training, in [0, 1].

    >>> fix = Fix(0.5).resolve(4)
    >>> [fix.decay(t) for t in range(4)]
    [0.0, 0.0, 1.0, 1.0]
    """

    start: float = 0.5
    total_steps: int | None = None
    needs_total = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= 1.0:
            raise ConfigError(
                f"Fix(start={self.start!r}): start is v, a fraction of training between 0 and 1, e.g. Fix(0.5)"
            )

    def resolve(self, total_steps: int | None) -> Fix:
        """Return a copy that knows T."""
        return dataclasses.replace(self, total_steps=total_steps)

    def decay(self, step: int) -> float:
        """1 from step v*T on."""
        return 1.0 if self.frozen(step) else 0.0

    def frozen(self, step: int) -> bool:
        """From step v*T on."""
        if self.total_steps is None:
            raise ConfigError("Fix needs total_steps: pass total_steps=T to sparsify()")
        return step >= self.start * self.total_steps


@dataclass(frozen=True)
class Regularize:
    """REGULARIZE: every update is followed by ``n <- n - beta * n`` on the inactive weights n.

    beta is `decay_rate`, not multiplied by the learning rate; 2e-4 in the seed paper (after Zhou et al., 2021).
    """

    decay_rate: float = 2e-4
    needs_total = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay_rate <= 1.0:
            raise ConfigError(
                f"Regularize({self.decay_rate!r}): this is beta, the fraction removed per step, between 0 and 1"
            )

    def resolve(self, total_steps: int | None) -> Regularize:
        """Nothing to resolve."""
        return self

    def decay(self, step: int) -> float:
        """Beta, at every step."""
        return self.decay_rate

    def frozen(self, step: int) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Zero:
    """Inactive weights are zero and get no gradient.

    slots: "zero" also clears their optimizer slots; "keep" lets dense gradients flow into the slots (SNFS).
    newborn: slots of weights that just became active: "neutral" = first moments 0, second moments the mean of
        the surviving active ones, so that the first Adam update is not 3.16 lr; "zero" = literally zero.
    """

    slots: Literal["zero", "keep"] = "zero"
    newborn: Literal["neutral", "zero"] = "neutral"

    def __post_init__(self) -> None:
        _check_choice("Zero(slots=...)", self.slots, ("zero", "keep"))
        _check_choice("Zero(newborn=...)", self.newborn, ("neutral", "zero"))


@dataclass(frozen=True)
class Live:
    """Inactive weights keep a value beside the model and go on being trained.

    scale: s, the factor on what inactive weights receive; 1 = the dense gradient.
    scale_on: "gradient" or "update" (what the optimizer adds, decoupled weight decay included). None picks
        "gradient" for SGD and ASGD and "update" for optimizers that normalise the gradient and would undo s.
    exploit: Reset, Fix, Regularize or None.
    """

    scale: float = 1.0
    scale_on: Literal["gradient", "update"] | None = None
    exploit: Exploit | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, int | float) and 0.0 <= self.scale <= 1.0):
            raise ConfigError(
                f"scale={self.scale!r}: this is s, the share of the gradient that inactive weights receive, "
                "between 0 (none) and 1 (all of it)"
            )
        if self.scale_on is not None:
            _check_choice("scale_on", self.scale_on, ("gradient", "update"))
        if self.exploit is not None and not hasattr(self.exploit, "decay"):
            raise ConfigError(f"exploit={self.exploit!r}: expected gossamer.Reset(z), Fix(v), Regularize(beta) or None")


@dataclass(frozen=True)
class Given:
    """Initial supports handed in: weight name -> Support or boolean mask."""

    supports: Mapping[str, Support | Tensor] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A frozen composition of parts; `sparsify` runs it.

    density: fraction kept, in (0, 1], or a schedule of it.
    allocation: how the total is shared out over the weights.
    init: a score whose top entries are the first supports, or `Given`.
    rule: `Static`, `Select` or `DropGrow`; clock: when it acts.
    inactive: `Zero` or `Live`.
    scope: "layer" selects within each weight, "global" over all of them together.
    at: "after" rewires after the optimizer step; "replace" rewires instead of it (RigL).
    """

    name: str
    density: float | Schedule
    init: Score | Given
    rule: Rule = field(default_factory=Static)
    allocation: Allocation | str | Mapping[str, Any] = "erk"
    clock: Clock = field(default_factory=lambda: Clock(every=math.inf))
    inactive: Zero | Live = field(default_factory=Zero)
    structure: Structure = field(default_factory=Unstructured)
    scope: Literal["layer", "global"] = "layer"
    at: Literal["replace", "after"] = "after"

    def __post_init__(self) -> None:
        if not callable(self.density):
            check_density(self.density)
        object.__setattr__(self, "allocation", resolve_allocation(self.allocation))
        _check_choice("scope", self.scope, ("layer", "global"))
        _check_choice("at", self.at, ("replace", "after"))
        self._check_parts()

    def _check_parts(self) -> None:
        live, needs = isinstance(self.inactive, Live), self.rule.needs
        problem = None
        if self.at == "replace" and "grad" not in needs:
            problem = (
                'at="replace" consumes the gradient of a step, but the rule does not look at gradients; use at="after"'
            )
        elif self.at == "replace" and live:
            problem = 'at="replace" needs inactive weights that are zero; use at="after" with Live'
        elif live and not isinstance(self.rule, Select | Static):
            problem = (
                "Live keeps the value of inactive weights, drop-and-grow rules start newborns at 0; use Select or Zero"
            )
        elif "momentum" in needs and not (isinstance(self.inactive, Zero) and self.inactive.slots == "keep"):
            problem = 'the rule looks at momentum everywhere; use inactive=Zero(slots="keep")'
        elif self.scope == "global" and isinstance(self.structure, FanIn):
            problem = 'FanIn is a structure of one weight; use scope="layer"'
        if problem:
            raise ConfigError(f"method {self.name!r} cannot be composed: {problem}")

    @property
    def needs(self) -> frozenset[str]:
        """What the method reads: fields of `Entries`, and "total_steps" where it has fractions of training."""
        extra = {"total_steps"} if self._timed(lambda part: part.needs_total) else set()
        return self.rule.needs | extra

    def _timed(self, ask: Callable[[Any], bool]) -> bool:
        parts: list[Any] = [self.clock, self.rule, as_schedule(self.density)]
        if isinstance(self.inactive, Live) and self.inactive.exploit is not None:
            parts.append(self.inactive.exploit)
        return any(ask(part) for part in parts)

    def resolve(self, total_steps: int | None) -> Method:
        """Return a copy in which every fraction of training has become a step; raise if T is needed and absent."""
        if total_steps is not None and not (type(total_steps) is int and total_steps >= 1):
            raise ConfigError(f"total_steps={total_steps!r}: expected the number of optimizer steps, >= 1")
        if total_steps is None and "total_steps" in self.needs:
            raise ConfigError(
                f"method {self.name!r} has times that are fractions of training and needs total_steps: "
                "pass total_steps=<number of optimizer steps> to sparsify()"
            )
        inactive = self.inactive
        if isinstance(inactive, Live) and inactive.exploit is not None:
            inactive = dataclasses.replace(inactive, exploit=inactive.exploit.resolve(total_steps))
        clock = self.clock.resolve(total_steps)
        if self.at == "replace" and clock.every == 1:
            raise ConfigError(
                f"method {self.name!r} would rewire instead of every single update (every = {self.clock.every!r} of "
                f"{total_steps} steps is 1 step), so nothing would train; use every >= 2, or more steps"
            )
        return dataclasses.replace(
            self,
            density=as_schedule(self.density).resolve(total_steps),
            rule=self.rule.resolve(total_steps),
            clock=clock,
            inactive=inactive,
        )

    def counts(self, shapes: Mapping[str, Any], step: int) -> dict[str, int]:
        """Exact number of active entries per weight at `step`, as the structure allows."""
        allocation = resolve_allocation(self.allocation)
        counts = allocation(shapes, as_schedule(self.density)(step))
        return {name: self.structure.round(count, shapes[name]) for name, count in counts.items()}


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{what} is {value!r}; expected one of {', '.join(map(repr, choices))}")
