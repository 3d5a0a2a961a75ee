"""Allocations: how a total number of weights is divided over the layers, in whole numbers that add up exactly.

An allocation maps (weight name -> shape, density) to (weight name -> count) with ``sum(count) == round(density * N)``,
``1 <= count_l <= N_l``. Symbols: ``N_l`` entries of weight l, N their sum, d the density, ``K = round(d N)``. All but
`Explicit` are one formula: ``count_l`` proportional to a share and clipped to ``[1, N_l]``, where the others get what
was clipped (the loop that sets a layer of density above 1 aside and re-spends the excess), rounded by largest
remainder. Their `Proportional.reference` forms, spelled ``equal_per_layer:reference``, are those of published code that
neither re-spends nor rounds: totals fall short, and a count may be 0.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

from ..errors import ConfigError, did_you_mean
from .counting import spread

Shapes = Mapping[str, Sequence[int]]


class Allocation(Protocol):
    """What an allocation provides."""

    @property
    def name(self) -> str:
        """How it is printed."""

    def __call__(self, shapes: Shapes, density: float) -> dict[str, int]:
        """Return the count of every weight."""


def check_density(density: float) -> float:
    """Return ``density`` as a float in (0, 1].

    Raises:
        ConfigError: anything else.
    """
    number = isinstance(density, Real) and not isinstance(density, bool)
    if not number or not 0 < density <= 1:
        hint = ""
        if number and 1 < density <= 100:
            hint = f"; for {density:g} percent write {density / 100:g}"
        elif number and density == 0:
            hint = "; nothing would be left to train"
        raise ConfigError(
            f"density is the fraction of weights kept, above 0 and at most 1, got {density!r}{hint} "
            "(for a sparsity s, the fraction removed, write 1 - s)"
        )
    return float(density)


def _budget(shapes: Shapes, density: float) -> int:
    """Return K, after checking that every weight can have one entry."""
    if not shapes:
        raise ConfigError("there are no weights to allocate to; check targets")
    total = sum(map(math.prod, shapes.values()))
    count = round(check_density(density) * total)
    layers = sum(1 for shape in shapes.values() if math.prod(shape))
    if count < layers:
        raise ConfigError(
            f"density {density:g} of {total} weights is {count}, fewer than one for each of {layers} layers; "
            f"the smallest feasible density is {layers}/{total} = {layers / total:.3g}"
        )
    return count


@dataclass(frozen=True)
class Proportional:
    """Counts proportional to ``share(shape)``, each at most the layer's size and at least 1."""

    name: str
    share: Callable[[Sequence[int]], int] = field(repr=False)

    def __call__(self, shapes: Shapes, density: float) -> dict[str, int]:
        """Return the count of every weight.

        Raises:
            ConfigError: density outside (0, 1], or too small for one entry in each layer.
        """
        count = _budget(shapes, density)
        sizes = [math.prod(shape) for shape in shapes.values()]
        parts = spread([self.share(shape) for shape in shapes.values()], sizes, count, least=1)
        return dict(zip(shapes, parts, strict=True))

    @property
    def reference(self) -> Reference:
        """The same shares as the authors of DCTpS count them, with what they lose."""
        return Reference(self)


@dataclass(frozen=True)
class Reference:
    """Counts of the code of DCTpS: ``int(min(1, a_l / N_l) N_l)`` with ``a_l = K share_l / sum(share)``, ``K = d N``.

    What a layer cannot hold is lost; but for `equal_per_layer` it goes to the last layer, as far as that holds it.
    Whole entries are cut off, not rounded, so totals fall short of ``round(K)`` and a layer may get none.
    Source: Price and Tanner 2021 (2102.07655), their code. Positions are drawn over the whole layer, also with
    `equal_per_filter`. Deviation: their uniform allocation raises an error; here it is the same formula.
    """

    of: Proportional

    @property
    def name(self) -> str:
        """How it is printed, and spelled."""
        return f"{self.of.name}:reference"

    def __call__(self, shapes: Shapes, density: float) -> dict[str, int]:
        """Return the count of every weight.

        Raises:
            ConfigError: density outside (0, 1], or so small that nothing is left at all.
        """
        sizes, shares = [math.prod(shape) for shape in shapes.values()], [self.of.share(s) for s in shapes.values()]
        budget = check_density(density) * sum(sizes)
        wanted = [budget * share / sum(shares) for share in shares]
        if self.of is equal_per_layer:
            wanted = [min(size, want) for size, want in zip(sizes, wanted, strict=True)]
            wanted[-1] += budget - sum(wanted)
        counts = [int(min(1.0, w / size) * size) if size else 0 for w, size in zip(wanted, sizes, strict=True)]
        if not any(counts):
            raise ConfigError(
                f"allocation {self.name!r} leaves no entry at density {density:g}: each layer's share of {budget:.3g} "
                f"is below 1 and cut off; use a larger density, or {self.of.name!r}"
            )
        return dict(zip(shapes, counts, strict=True))


def _er_share(shape: Sequence[int]) -> int:
    return sum(shape[:2]) * math.prod(shape[2:])


def _one(shape: Sequence[int]) -> int:
    return 1


def _filters(shape: Sequence[int]) -> int:
    return shape[0] if shape else 1


def _erk_share(shape: Sequence[int]) -> int:
    return sum(shape) if shape else 1


uniform = Proportional("uniform", math.prod)
"""``d_l = d``: the same density in every layer."""

er = Proportional("er", _er_share)
"""Erdos-Renyi: ``d_l = eps (n_in + n_out) / (n_in n_out)``, at most 1, kernel ignored. Source: SET (1707.04780)."""

erk = Proportional("erk", _erk_share)
"""Erdos-Renyi-kernel: ``d_l = eps sum(shape) / prod(shape)``, at most 1. Source: RigL (1911.11134)."""

equal_per_layer = Proportional("equal_per_layer", _one)
"""EPL: K/L in every layer; a layer smaller than that is full. Source: DCTpS (2102.07655), with the excess re-spent."""

equal_per_filter = Proportional("equal_per_filter", _filters)
"""EPF: the same number per output filter (dimension 0), at most its fan-in; structure `FanIn` holds it in each filter.
Source: DCTpS (2102.07655), with the excess re-spent."""

ALLOCATIONS: Mapping[str, Allocation] = {
    made.name: made for made in (uniform, er, erk, equal_per_layer, equal_per_filter)
}
REFERENCES: Mapping[str, Allocation] = {
    made.name: made for made in (of.reference for of in (uniform, erk, equal_per_layer, equal_per_filter))
}


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
        budget = _budget(shapes, density)
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
        budget, counts = _budget(shapes, density), dict(self.fn(shapes, density))
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
