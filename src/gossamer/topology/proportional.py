"""Allocations: how a total number of weights is divided over the layers, in whole numbers that add up exactly.

An allocation maps (weight name -> shape, density) to (weight name -> count) with ``sum(count) == round(density * N)``,
``1 <= count_l <= N_l``. Symbols: ``N_l`` entries of weight l, N their sum, d the density, ``K = round(d N)``.
Those here are one formula: ``count_l`` proportional to a share and clipped to ``[1, N_l]``, where the others get what
was clipped (the loop that sets a layer of density above 1 aside and re-spends the excess), rounded by largest
remainder. Their `Proportional.reference` forms, spelled ``equal_per_layer:reference``, are those of published code that
neither re-spends nor rounds: totals fall short, and a count may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol

from ..errors import ConfigError
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


def budget_of(shapes: Shapes, density: float) -> int:
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
        count = budget_of(shapes, density)
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
