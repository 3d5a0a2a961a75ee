"""Thresholds: drop what scores below a value, instead of a fixed share of the active entries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from ..errors import ConfigError, check_number

Memory = dict[str, float]  # what a rule remembers of one group from one rewiring to the next; part of a saved state


class Threshold(Protocol):
    """What a threshold provides."""

    @property
    def name(self) -> str:
        """How it is printed."""

    def value(self, memory: Memory) -> float:
        """Return the value: active entries that score below it are dropped."""

    def adapt(self, dropped: int, active: int, memory: Memory) -> None:
        """Learn how many of how many active entries were dropped."""


@dataclass(frozen=True)
class Below:
    """A fixed value. 0 with the score `sign_flip` is DeepR's drop: what crossed zero."""

    limit: float = 0.0

    @property
    def name(self) -> str:
        """As ``below 0``."""
        return f"below {self.limit:g}"

    def value(self, memory: Memory) -> float:
        """Return the limit."""
        return self.limit

    def adapt(self, dropped: int, active: int, memory: Memory) -> None:
        """Nothing to learn."""


@dataclass(frozen=True)
class Adaptive:
    """H, halved when too many entries were dropped and doubled when too few.

    After each drop of K: ``K > (1 + delta) N => H <- H / 2``; ``K < (1 - delta) N => H <- 2 H``.

    Args:
        target: N, how many entries a rewiring should drop: an int, or a float in (0, 1), a share of the active ones.
        start: H at first. tolerance: delta.

    Source: DSR (Mostafa and Wang 2019, 1902.05967).

    >>> memory, threshold = {}, Adaptive(16, start=0.5)
    >>> threshold.adapt(20, 100, memory), threshold.value(memory)
    (None, 0.25)
    """

    target: int | float
    start: float = 1e-3
    tolerance: float = 0.1
    name = "below an adaptive limit"

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("target", "start", "tolerance"):
            check_number(name, getattr(self, name), "a setting of the adaptive threshold")
        share = isinstance(self.target, float)
        if isinstance(self.target, bool) or not (0 < self.target < 1 if share else self.target >= 1):
            raise ConfigError(
                f"target = {self.target!r}: expected how many entries to drop per rewiring, an int >= 1, or a share "
                "of the active ones, a float in (0, 1)"
            )
        if not (0 < self.start < math.inf and 0 <= self.tolerance < 1):
            raise ConfigError(
                f"start = {self.start!r}, tolerance = {self.tolerance!r}: expected a threshold above 0 and a "
                "tolerance in [0, 1)"
            )

    def value(self, memory: Memory) -> float:
        """Return H."""
        return memory.get("threshold", self.start)

    def adapt(self, dropped: int, active: int, memory: Memory) -> None:
        """Halve or double H."""
        wanted = self.target * active if isinstance(self.target, float) else self.target
        memory["threshold"] = self.value(memory)
        if dropped > (1 + self.tolerance) * wanted:
            memory["threshold"] = max(memory["threshold"] / 2, 1e-30)  # never 0, from where nothing doubles
        elif dropped < (1 - self.tolerance) * wanted:
            memory["threshold"] = min(2 * memory["threshold"], 1e30)  # never infinite
