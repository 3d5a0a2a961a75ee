"""Saliency: first supports found by scoring the initial weights. A value, used as ``init=`` of any method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from ..errors import ConfigError, check_choice, check_flag
from .examples import Examples, Ones
from .objectives import Objective

Path = Literal["exponential", "linear"]
Positions = Literal["scores", "random"]
Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Saliency:
    """How the first supports are found: score, keep the best, and again on the network that is left.

    objective: what the scores come from. rounds: T, scorings. batches: of examples per gradient, new ones each round.
    schedule: density of round t: "exponential" d^(t/T), or "linear" 1 - (1 - d) t/T.
    revive: whether a weight that a round left out may come back; it is then scored with its initial value.
    scope: "global" ranks all weights together, which decides the counts of layers too; "layer" ranks within each
        weight, and the method's allocation decides the counts.
    positions: "random" keeps the counts of layers only and draws the positions anew.
    invert: keep the lowest scores instead of the highest (a sanity check).
    allow_collapse: go on if no path from input to output is left.
    examples: data of objectives that need some. ones: input of those that need none; also tells whether the network
        collapsed. label: its published name, by which a config spells it.
    """

    objective: Objective
    rounds: int = 1
    batches: int = 1
    schedule: Path = "exponential"
    revive: bool = False
    scope: Scope = "global"
    positions: Positions = "scores"
    invert: bool = False
    allow_collapse: bool = False
    examples: Examples | None = None
    ones: Ones | None = None
    label: str | None = None
    spellings: ClassVar[Mapping[str, Callable[..., Saliency]]] = {}

    def __post_init__(self) -> None:
        """Check the arguments."""
        whole = all(hasattr(self.objective, name) for name in ("name", "data", "score", "gradient"))
        if not whole or isinstance(self.objective, type):
            raise ConfigError(f"objective is {self.objective!r}: expected an objective such as Sensitivity()")
        for name, kind in (("examples", Examples), ("ones", Ones), ("label", str)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ConfigError(f"{name} is {type(value).__name__}: expected {kind.__name__}, or None")
        for name, what in (("rounds", "scorings"), ("batches", "batches of examples per gradient")):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} = {value!r}: expected a whole number of {what}, at least 1")
        check_choice("schedule", self.schedule, get_args(Path))
        check_choice("scope", self.scope, get_args(Scope))
        check_choice("positions", self.positions, get_args(Positions))
        for name in ("revive", "invert", "allow_collapse"):
            check_flag(name, getattr(self, name))

    @property
    def name(self) -> str:
        """How it is printed."""
        flags = [*(["inverted"] if self.invert else []), *(["layer counts only"] if self.positions == "random" else [])]
        return ", ".join([self.label or self.objective.name, *flags])

    def argument(self, name: str) -> Any:
        """A field of it or of its objective."""
        return getattr(self, name) if hasattr(self, name) else getattr(self.objective, name)

    def bound(self, examples: Examples | None = None, ones: Ones | None = None) -> Saliency:
        """Return a copy with data and inputs filled in where it has none."""
        return replace(self, examples=self.examples or examples, ones=self.ones or ones)

    def check_data(self) -> None:
        """Raise ConfigError if the objective has nothing to look at."""
        if self.objective.data == "examples" and self.examples is None:
            raise ConfigError(
                f"{self.name} scores weights on examples and has none; pass data=, an iterable of (inputs, target)"
            )
        if self.objective.data == "inputs" and self.ones is None:
            raise ConfigError(
                f"{self.name} sends ones through the network and must know the shape of one example; pass inputs=, "
                "e.g. inputs=(3, 32, 32)"
            )

    def kept(self, number: int, final: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
        """Counts after round `number` (from 1) for each key, never below the final ones."""
        share = number / self.rounds
        counts = {}
        for key, count in final.items():
            density = count / sizes[key]
            reached = density**share if self.schedule == "exponential" else 1 - (1 - density) * share
            counts[key] = count if number == self.rounds else max(count, round(reached * sizes[key]))
        return counts
