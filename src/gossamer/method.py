"""A method is a value: how many, where at first, which participate, when, and what happens to the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .choices import Choices, describe
from .errors import ConfigError, check_choice
from .foresight import Saliency
from .inactive import Action, Exploit, Fix, Langevin, Live, Regularize, Reset, Zero
from .topology import (
    NM,
    Allocation,
    Clock,
    Complementary,
    Constant,
    FanIn,
    FanInDropGrow,
    Held,
    Piecewise,
    Rule,
    Schedule,
    Score,
    Select,
    Static,
    Structure,
    Support,
    Units,
    Unstructured,
    as_schedule,
    check_density,
    resolve_allocation,
)

__all__ = [
    "Action",
    "Choices",
    "Exploit",
    "Fix",
    "Given",
    "Langevin",
    "Live",
    "Method",
    "Regularize",
    "Reset",
    "Zero",
]


@dataclass(frozen=True)
class Given:
    """Initial supports handed in: weight name -> Support or boolean mask. Their counts stand for the allocation."""

    supports: Mapping[str, Support | Tensor] = field(repr=False)


Init = Score | Given | Saliency

_FOREVER = 1 << 60  # a step after the end of every schedule


@dataclass(frozen=True, kw_only=True)
class Method:
    """A frozen composition of parts; `sparsify` runs it.

    density: fraction kept, in (0, 1], or a schedule of it.
    allocation: how the total is shared out over the weights.
    init: what the first supports are: the top entries of a score, as the allocation counts; what a `Saliency` of
        `gossamer.foresight` finds; or `Given`. The last two decide the counts of weights, unless the saliency's scope
        is "layer".
    rule: `Static`, `Select` or `DropGrow`; clock: when it acts.
    inactive: `Zero` or `Live`.
    scope: "layer" selects within each weight, "global" over all of them together.
    at: "after" rewires after the optimizer step; "replace" rewires instead of it (RigL).
    action: what is done to the active weights after every update, e.g. `Langevin`.
    """

    name: str
    density: float | Schedule
    init: Init
    rule: Rule = field(default_factory=Static)
    allocation: Allocation | str | Mapping[str, Any] = "erk"
    clock: Clock = field(default_factory=lambda: Clock(every=math.inf))
    inactive: Zero | Live = field(default_factory=Zero)
    structure: Structure = field(default_factory=Unstructured)
    scope: Literal["layer", "global"] = "layer"
    at: Literal["replace", "after"] = "after"
    action: Action | None = None

    def __post_init__(self) -> None:
        if not callable(self.density):
            check_density(self.density)
        object.__setattr__(self, "allocation", resolve_allocation(self.allocation))
        check_choice("scope", self.scope, ("layer", "global"))
        check_choice("at", self.at, ("replace", "after"))
        self._check_parts()

    def _check_parts(self) -> None:
        if not isinstance(self.init, Init):
            hint = ", such as gossamer.foresight.synflow(...)" if isinstance(self.init, Method) else ""
            raise ConfigError(f"init is {self.init!r}: expected a Saliency{hint}, a score or Given(supports)")
        problem = self._wrong_time() or self._wrong_inactive() or self._wrong_scope() or self._wrong_structure()
        if problem:
            raise ConfigError(f"method {self.name!r} cannot be composed: {problem}")

    def _wrong_time(self) -> str | None:
        if self.at == "after":
            return None
        if "grad" not in self.rule.needs:
            return (
                'at="replace" consumes the gradient of a step, but the rule does not look at gradients; use at="after"'
            )
        if isinstance(self.inactive, Live):
            return 'at="replace" needs inactive weights that are zero; use at="after" with Live'
        return None

    def _wrong_inactive(self) -> str | None:
        inactive, needs = self.inactive, self.rule.needs
        if "momentum" in needs and not (isinstance(inactive, Zero) and inactive.slots == "keep"):
            return 'the rule looks at momentum everywhere; use inactive=Zero(slots="keep")'
        if isinstance(inactive, Zero):
            return None
        if not isinstance(self.rule, Select | Static):
            return (
                "Live keeps the value of inactive weights, drop-and-grow rules start newborns at 0; use Select or Zero"
            )
        if self.action is not None:
            return f"{type(self.action).__name__} acts on the active weights of methods whose inactive ones are zero"
        numbers = isinstance(inactive.reach, int | float) and isinstance(self.density, int | float)
        if numbers and inactive.reach < self.density:  # type: ignore[operator]
            return (
                f"reach={inactive.reach!r} is the density of all trained weights; it cannot be below {self.density!r}"
            )
        return None

    def _wrong_scope(self) -> str | None:
        if self.scope == "global" and self.structure.single:
            return f'{self.structure.name} is a structure of one weight; use scope="layer"'
        if self.scope == "layer" and getattr(self.rule, "quota", None) is not None:
            return 'a quota moves entries between weights; use scope="global", or quota=None'
        return None

    def _wrong_structure(self) -> str | None:
        if isinstance(self.structure, NM) and isinstance(self.init, Saliency) and self.init.scope == "global":
            return (
                f"{self.structure.name} fixes the count of every weight, so scores rank within each; use scope='layer' "
                "for init, e.g. init=foresight.synflow(inputs, scope='layer'), on the command line "
                "init=synflow:scope=layer"
            )
        steps = isinstance(self.density, int | float | Constant | Piecewise)
        if isinstance(self.structure, NM | Complementary) and not steps:
            return f"{self.structure.name} has one density, which cannot change gradually; use one-shot, or Block"
        if isinstance(self.structure, NM | Complementary) and not isinstance(self.rule, Select | Static):
            return f"{self.structure.name} fixes the count of every group, so nothing can be dropped first; use Select"
        if isinstance(self.structure, Units) and getattr(getattr(self.rule, "drop", None), "split", None) is not None:
            return (
                f"its drop score takes a share of each sign, but {self.structure.name} come and go as a whole; use "
                "magnitude (split_signs=False)"
            )
        exact_fan_in = isinstance(self.structure, FanIn) and self.structure.exact
        if isinstance(self.rule, FanInDropGrow) and not exact_fan_in:
            return "FanInDropGrow keeps a constant fan-in; use structure=FanIn(exact=True)"
        if getattr(self.rule, "threshold", None) is not None and not isinstance(self.structure, Unstructured):
            return f"what a threshold leaves has no structure; use a fraction with {self.structure.name}"
        return None

    @property
    def needs(self) -> frozenset[str]:
        """What the method reads: fields of `Entries`, and "total_steps" where it has fractions of training."""
        extra = {"total_steps"} if self._timed(lambda part: part.needs_total) else set()
        return self.rule.needs | extra | (self.action.needs - {"generator"} if self.action else frozenset())

    @property
    def budget(self) -> Literal["each", "total", "at most"]:
        """What binds of `counts`: that of each weight, their sum, or that of each as an upper bound."""
        if not self.rule.fills:
            return "at most"
        return "total" if self.scope == "global" else "each"

    @property
    def choices(self) -> Choices:
        """What it chooses, in words."""
        return describe(self)

    @property
    def starts_dense(self) -> bool:
        """Whether a density that falls starts at 1."""
        density = as_schedule(self.density)
        return not isinstance(density, Constant) and density.resolve(_FOREVER)(0) == 1

    @property
    def stays_dense(self) -> bool:
        """Whether nothing is ever pruned, so that no weight gets the structure."""
        return as_schedule(self.density).resolve(_FOREVER)(_FOREVER) == 1

    def _timed(self, ask: Callable[[Any], bool]) -> bool:
        parts: list[Any] = [self.clock, self.rule, as_schedule(self.density)]
        if isinstance(self.inactive, Live):
            parts.append(self.inactive)
        return any(ask(part) for part in parts)

    def resolve(self, total_steps: int | None) -> Method:
        """Return a copy in which every fraction of training has become a step; raise if T is needed and absent."""
        if total_steps is not None and not (type(total_steps) is int and total_steps >= 1):
            raise ConfigError(f"total_steps={total_steps!r}: expected the number of optimizer steps, >= 1")
        if total_steps is None and "total_steps" in self.needs:
            raise ConfigError(
                f"method {self.name!r} has times that are fractions of training and needs total_steps: "
                "pass total_steps=<number of optimizer steps> to convert() and sparsify()"
            )
        inactive = self.inactive.resolve(total_steps) if isinstance(self.inactive, Live) else self.inactive
        clock = self.clock.resolve(total_steps)
        if self.at == "replace" and clock.every == 1:
            raise ConfigError(
                f"method {self.name!r} would rewire instead of every single update (every = {self.clock.every!r} of "
                f"{total_steps} steps is 1 step), so nothing would train; use every >= 2, or more steps"
            )
        density = as_schedule(self.density).resolve(total_steps)
        if isinstance(self.init, Saliency) and self.starts_dense:
            raise ConfigError(
                f"method {self.name!r} starts dense, so there is no first support for {self.init.name} to find; leave "
                "init out"
            )
        if total_steps is not None:
            self._check_last_density(density, clock, total_steps)
        rule = self.rule.resolve(total_steps)
        return dataclasses.replace(self, density=density, rule=rule, clock=clock, inactive=inactive)

    def _check_last_density(self, density: Schedule, clock: Clock, total_steps: int) -> None:
        """Raise if the density that training ends with is not the one that the schedule ends with."""
        if isinstance(density, Constant):
            return
        last = next((step for step in range(total_steps, 0, -1) if clock.due(step)), 0)
        reached, wanted = density(last), density(_FOREVER)
        if not math.isclose(reached, wanted):
            raise ConfigError(
                f"method {self.name!r} would end at density {reached:.4g}, not {wanted:.4g}: it rewires for the last "
                f"time at step {last} of {total_steps}, before its schedule has ended; let the schedule end within "
                "training, and the rewirings not before it"
            )

    def counts(self, shapes: Mapping[str, Any], step: int) -> dict[str, int]:
        """Exact number of active entries per weight at `step`, as the structure allows."""
        return self._counts(shapes, as_schedule(self.density)(step))

    def total(self, shapes: Mapping[str, Any], step: int) -> int:
        """Number of active entries in all at `step`, before a structure rounds the counts of weights."""
        return round(as_schedule(self.density)(step) * sum(math.prod(shape) for shape in shapes.values()))

    def check_structure(self, shapes: Mapping[str, Any]) -> None:
        """Raise ConfigError if weights of these shapes cannot have the structure when all is pruned."""
        self.counts(shapes, _FOREVER)

    @property
    def held(self) -> dict[str, int]:
        """The counts that the first supports came with, by weight name; empty where the allocation decides."""
        return dict(self.allocation.counts) if isinstance(self.allocation, Held) else {}

    def holding(self, counts: Mapping[str, int]) -> Method:
        """Return a copy whose allocation is the counts that its first supports came with."""
        return dataclasses.replace(self, allocation=Held(dict(counts), as_schedule(self.density)(0)))

    def reach_counts(self, shapes: Mapping[str, Any], step: int) -> dict[str, int] | None:
        """Number of trained entries per weight at `step`, not below `counts`; None where all are trained."""
        reach = self.inactive.reach if isinstance(self.inactive, Live) else None
        if reach is None:
            return None
        active, trained = self.counts(shapes, step), self._counts(shapes, as_schedule(reach)(step))
        return {name: max(active[name], trained[name]) for name in active}

    def _counts(self, shapes: Mapping[str, Any], density: float) -> dict[str, int]:
        counts = resolve_allocation(self.allocation)(shapes, density)
        if density == 1:  # before anything is pruned no structure holds
            return counts
        return {name: self.structure.round(count, shapes[name]) for name, count in counts.items()}
