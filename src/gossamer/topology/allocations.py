"""Allocations that are given, by name globs, as a function or by first supports, and looking one up."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, did_you_mean
from .counting import spread
from .proportional import (
    ALLOCATIONS,
    REFERENCES,
    Allocation,
    Proportional,
    Reference,
    Shapes,
    budget_of,
    check_density,
    uniform,
)


@dataclass(frozen=True)
class Explicit:
    """Densities (float) or counts (int) by name glob, first match wins; the others share the rest of the budget.

    Args:
        given: glob -> density (float in (0, 1]) or count (int >= 1): ``1`` is one entry, ``1.0`` the whole weight.
        rest: allocation, or its name, for the weights that no glob matches. If there are none, what is given must
            add up to the overall density, up to rounding.

    >>> shapes = {"a": (10, 10), "b": (10, 10), "head": (2, 10)}
    >>> Explicit({"head": 1.0})(shapes, 0.25)
    {'a': 18, 'b': 17, 'head': 20}
    """

    given: Mapping[str, float | int]
    rest: Allocation | str = uniform
    name = "explicit"

    def __post_init__(self) -> None:
        """Check the values; look up ``rest``."""
        for glob, value in self.given.items():
            if isinstance(value, bool) or not isinstance(value, int):
                check_density(value)
            elif value < 1:
                raise ConfigError(f"allocation of {glob!r}: a count must be at least 1, got {value}")
        object.__setattr__(self, "rest", resolve_allocation(self.rest))

    def __call__(self, shapes: Shapes, density: float) -> dict[str, int]:
        """Return counts that add up to ``round(density * N)``.

        Raises:
            ConfigError: a glob matches nothing, a value does not fit its weight, or the budget cannot be met.
        """
        budget = budget_of(shapes, density)
        targets = self._targets(shapes)
        others = {name: shape for name, shape in shapes.items() if name not in targets}
        if not others:
            return self._closed(shapes, targets, budget)
        counts = {name: max(1, round(target)) for name, target in targets.items()}
        left, room = budget - sum(counts.values()), sum(map(math.prod, others.values()))
        if not len(others) <= left <= room:
            raise ConfigError(
                f"density {density:g} is {budget} entries; the allocation names {budget - left} of them, and the "
                f"other {len(others)} weights hold {len(others)} to {room}, not {left}"
            )
        counts |= resolve_allocation(self.rest)(others, left / room)
        return {name: counts[name] for name in shapes}

    def _targets(self, shapes: Shapes) -> dict[str, float]:
        """Return what the globs ask for, before rounding."""
        for glob in self.given:
            if not any(fnmatch.fnmatchcase(name, glob) for name in shapes):
                raise ConfigError(
                    f"allocation names {glob!r}, which matches no sparse weight{did_you_mean(glob, shapes)}"
                )
        targets: dict[str, float] = {}
        for name, shape in shapes.items():
            value = next((v for glob, v in self.given.items() if fnmatch.fnmatchcase(name, glob)), None)
            size = math.prod(shape)
            if isinstance(value, int) and value > size:
                raise ConfigError(
                    f"allocation of {name} is {value}, but it has {size} entries; write 1.0 for all of them"
                )
            if value is not None:
                targets[name] = value if isinstance(value, int) else value * size
        return targets

    def _closed(self, shapes: Shapes, targets: Mapping[str, float], budget: int) -> dict[str, int]:
        """Return the counts when every weight is named: rounding moves none by a whole entry."""
        counts = {name: max(1, math.floor(targets[name])) for name in shapes}
        short = sorted((n for n in counts if counts[n] < targets[n]), key=lambda n: counts[n] - targets[n])
        missing = budget - sum(counts.values())
        if not 0 <= missing <= len(short):
            total = sum(map(math.prod, shapes.values()))
            raise ConfigError(
                f"allocation names every weight and adds up to density {sum(targets.values()) / total:.6g}, not to the "
                f"overall {budget / total:.6g}; make them agree, or leave some weights unnamed"
            )
        for name in short[:missing]:
            counts[name] += 1
        return counts


@dataclass(frozen=True)
class Custom:
    """A user's function, checked: whole counts within ``[1, N_l]`` that add up to ``round(density * N)``."""

    fn: Callable[[Shapes, float], Mapping[str, int]]

    @property
    def name(self) -> str:
        """Name of the function."""
        return str(getattr(self.fn, "name", None) or getattr(self.fn, "__name__", type(self.fn).__name__))

    def __call__(self, shapes: Shapes, density: float) -> dict[str, int]:
        """Return the function's counts.

        Raises:
            ConfigError: it broke one of these laws.
        """
        budget, counts = budget_of(shapes, density), dict(self.fn(shapes, density))
        if counts.keys() != shapes.keys():
            raise ConfigError(f"allocation {self.name!r} must return a count for exactly the weights it was given")
        for layer, count in counts.items():
            size = math.prod(shapes[layer])
            if isinstance(count, bool) or not isinstance(count, int) or not min(1, size) <= count <= size:
                raise ConfigError(f"allocation {self.name!r} gives {layer} {count!r}: expected an int from 1 to {size}")
        if sum(counts.values()) != budget:
            raise ConfigError(
                f"allocation {self.name!r} adds up to {sum(counts.values())}; density {density:g} asks for {budget}"
            )
        return counts


@dataclass(frozen=True)
class Held:
    """The counts that first supports have, whatever found them; at another density, in proportion to them.

    A weight that has none keeps none. density: the one that they stand for; a structure may have rounded counts, which
    then need not add up to it. Symbols as above.
    """

    counts: Mapping[str, int]
    density: float
    name = "held"

    def __call__(self, shapes: Shapes, density: float) -> dict[str, int]:
        """Return the count of every weight."""
        held = {name: self.counts[name] for name in shapes}
        if density == self.density:
            return held
        sizes = [math.prod(shape) for shape in shapes.values()]
        total = round(check_density(density) * sum(sizes))
        return dict(zip(shapes, spread([*held.values()], sizes, total), strict=True))


def resolve_allocation(allocation: Any) -> Allocation:
    """Return an allocation: a name is looked up, a mapping becomes `Explicit`, a function becomes `Custom`.

    Raises:
        ConfigError: unknown name, or none of these.

    >>> resolve_allocation("erk").name
    'erk'
    """
    if isinstance(allocation, str):
        known = {**ALLOCATIONS, **REFERENCES}
        if allocation not in known:
            raise ConfigError(f"unknown allocation {allocation!r}{did_you_mean(allocation, known)}")
        return known[allocation]
    if isinstance(allocation, Proportional | Reference | Explicit | Custom | Held):
        return allocation
    if isinstance(allocation, Mapping):
        return Explicit(dict(allocation))
    if callable(allocation):
        return Custom(allocation)
    raise ConfigError(
        f"allocation is {allocation!r}: expected a name, a mapping of globs to densities or counts, or a function"
    )
