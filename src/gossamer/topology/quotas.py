"""Quotas: how a group's growth is divided over its weights. This is what moves parameters between layers.

A quota gives shares, proportional to what each weight is to grow; `spread` turns them into whole numbers that add up
and fit. The drop is each weight's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import ConfigError, DivergedError
from .entries import Entries
from .selection import count_true

QuotaFn = Callable[[Sequence[Entries], Sequence[int], Sequence[Tensor]], Sequence[float]]
_LEAST = 1e-6  # of the target: gains below count as this, so that a weight of zeros does not take all there is


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


def gain_below(target: float = 1.0) -> Quota:
    """Return the quota of how far each weight's gain of gradients is below a target: ``max(0, -log(b / target))``.

    ``b = ||W||^2 / W.shape[0]``, over the active entries, is the sum of the squared singular values of the layer's
    linear map over its number of outputs: what the map multiplies E||gradient||^2 by on the way back, where the
    gradient of its outputs is white. A linear weight is (out, in). A convolution (out, in / groups, *kernel) has, at
    S positions, out S outputs and for each a row with one kernel in it: S ||W||^2 over out S, for every stride,
    dilation and number of groups. Zero padding cuts kernels off at the border, so there b is an upper bound; of a
    transposed convolution, stored by its inputs, it is the gain of the activations. A gain below a millionth of the
    target, 0 included, counts as that.

    Before that, a weight that kept fewer entries than its matrix has rows, or columns, regrows up to that many of what
    it dropped; without this, weights that need nothing would lose all entries but one. Where no weight is below the
    target each regrows what it dropped.

    What grows starts at 0 and so changes b only as it trains: the quota moves room to weights that pass on too little,
    it does not scale them.

    Args:
        target: 2 for ReLU nets without normalisation (a ReLU halves it again), else 1.

    Raises:
        ConfigError: the target is not a finite number above 0.
        DivergedError: when called, if a gain is not finite.

    Source: named as future work in Lee et al. 2020 (1906.06307); no published rule. It reads weights alone, no
    gradients of a batch and no running mean of them, so it has no state.
    """
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < math.inf:
        raise ConfigError(
            f"target={target!r}: this is the gain of gradients that layers should have, a finite number above 0; "
            "use 2 for ReLU nets without normalisation, else 1"
        )
    return Quota(f"gain below {target:g}", _GainBelow(float(target)))


@dataclass(frozen=True)
class _GainBelow:
    """The function of a `gain_below`: a value, so that quotas of one target are equal and pickle."""

    target: float

    def __call__(self, group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[float]:
        needs = [max(0.0, -math.log(max(_gain(entries) / self.target, _LEAST))) for entries in group]
        if not any(needs):
            return dropped
        lacks = [_lack(mask, n) for mask, n in zip(kept, dropped, strict=True)]
        rest = (sum(dropped) - sum(lacks)) / math.fsum(needs)
        return [lack + rest * need for lack, need in zip(lacks, needs, strict=True)]


def _lack(kept: Tensor, dropped: int) -> int:
    """How many of what it dropped a weight regrows in any case."""
    rows = kept.shape[0]
    floor = max(rows, kept.numel() // max(1, rows))
    return max(0, min(floor - count_true(kept), dropped))


def _gain(entries: Entries) -> float:
    chosen = entries.weight[entries.active].double()
    return _finite(float(chosen.square().sum()) / max(1, entries.weight.shape[0]), "gain")


def _mean(values: Tensor, where: Tensor) -> float:
    chosen = values[where]
    return _finite(float(chosen.abs().double().mean()) if chosen.numel() else 0.0, "mean")


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise DivergedError(f"the {what} of a quota is not finite: training has diverged; lower the learning rate")
    return value
