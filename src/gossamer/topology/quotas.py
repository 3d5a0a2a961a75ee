"""Quotas: how a group's growth is divided over its weights. This is what moves parameters between layers.

A quota gives shares, proportional to what each weight is to grow; `spread` turns them into whole numbers that add up
and fit. The drop is each weight's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import DivergedError
from .entries import Entries
from .selection import count_true

QuotaFn = Callable[[Sequence[Entries], Sequence[int], Sequence[Tensor]], Sequence[float]]


@dataclass(frozen=True)
class Quota:
    """A named quota.

    Args:
        name: how it is printed.
        fn: (entries of the group before the rewiring, number dropped per weight, kept masks) -> share of each weight.
        needs: what it reads of `Entries` beyond ``weight`` and ``active``.
        exact: whether the shares are counts that each weight is to get, if need be by growing what it just dropped.
    """

    name: str
    fn: QuotaFn = field(repr=False)
    needs: frozenset[str] = frozenset()
    exact: bool = False

    def __call__(self, group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[float]:
        """Return the share of each weight, not negative."""
        return self.fn(group, dropped, kept)


def quota(*needs: str, exact: bool = False) -> Callable[[QuotaFn], Quota]:
    """Make a `Quota` from a function; ``needs`` and ``exact`` as in `Quota`.

    >>> @quota()
    ... def evenly(group, dropped, kept):
    ...     return [1] * len(group)
    >>> evenly.name
    'evenly'
    """

    def make(fn: QuotaFn) -> Quota:
        made = Quota(fn.__name__, fn, frozenset(needs), exact)
        object.__setattr__(made, "__doc__", fn.__doc__)
        fn.__qualname__ = f"{fn.__qualname__}.fn"  # the module's name holds the Quota: pickle by reference
        return made

    return make


@quota(exact=True)
def own(group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[int]:
    """Each weight regrows what it dropped: no reallocation."""
    return dropped


@quota()
def survivors(group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[int]:
    """In proportion to what each weight kept. Source: DSR (Mostafa and Wang 2019, 1902.05967)."""
    return [count_true(mask) for mask in kept]


@quota("momentum")
def mean_momentum(group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[float]:
    """In proportion to the mean ``|momentum|`` of each weight's active entries.

    Source: SNFS (Dettmers and Zettlemoyer 2019, 1907.04840).
    """
    return [_mean(entries.require("momentum"), entries.active) for entries in group]


@quota("grad")
def mean_gradient(group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[float]:
    """In proportion to the mean ``|gradient|`` of each weight's active entries."""
    return [_mean(entries.require("grad"), entries.active) for entries in group]


def _mean(values: Tensor, where: Tensor) -> float:
    chosen = values[where]
    mean = float(chosen.abs().double().mean()) if chosen.numel() else 0.0
    if not math.isfinite(mean):
        raise DivergedError("the mean of a quota is not finite: training has diverged; lower the learning rate")
    return mean
