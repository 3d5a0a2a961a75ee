"""Rules: the next supports of a group of weights, from what is known of them now.

A group is one weight (scope "layer") or all of them (scope "global"); its members compete with each other. ``counts``
are the numbers of active entries that the weights are to have; in a group only their sum binds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, DivergedError
from . import scores
from .counting import spread
from .entries import Entries
from .schedules import Schedule, as_schedule
from .scores import Score
from .selection import count_true, select_top
from .structures import Structure

Quota = Callable[[Sequence[Entries], Sequence[int], Sequence[Tensor]], Sequence[float]]


class Rule(Protocol):
    """What a rule provides."""

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of `Entries` beyond ``weight`` and ``active``."""

    @property
    def needs_total(self) -> bool:
        """Whether it holds times that are fractions of training."""

    def resolve(self, total_steps: int | None) -> Rule:
        """Return the rule with times in steps."""

    def rewire(self, group: Sequence[Entries], counts: Sequence[int], structure: Structure, step: int) -> list[Tensor]:
        """Return a new mask for each weight of the group."""


@dataclass(frozen=True)
class Static:
    """The supports stay as they are."""

    needs = frozenset[str]()
    needs_total = False

    def resolve(self, total_steps: int | None) -> Static:
        """Return itself."""
        return self

    def rewire(self, group: Sequence[Entries], counts: Sequence[int], structure: Structure, step: int) -> list[Tensor]:
        """Return the active masks."""
        return [entries.active for entries in group]


@dataclass(frozen=True)
class Select:
    """The highest scores, active or not: the rule of live methods, whose inactive weights have a value too.

    Source: top-magnitude supports of the seed algorithm (Stosic and Stosic 2021, 2105.12920).
    """

    score: Score = scores.magnitude
    needs_total = False

    @property
    def needs(self) -> frozenset[str]:
        """What the score needs."""
        return self.score.needs

    def resolve(self, total_steps: int | None) -> Select:
        """Return itself."""
        return self

    def rewire(self, group: Sequence[Entries], counts: Sequence[int], structure: Structure, step: int) -> list[Tensor]:
        """Return the masks of the ``sum(counts)`` highest scores, ties to the active.

        Raises:
            DivergedError: a score is not finite.
        """
        values = [self.score(entries) for entries in group]
        for value in values:
            _require_finite(self.score, value)
        return structure.select(values, sum(counts), [entries.active for entries in group])


def own(group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[int]:
    """Quota: each weight regrows what it dropped."""
    return dropped


@dataclass(frozen=True)
class DropGrow:
    """Drop some active entries, grow as many elsewhere.

    With n active entries in the group and phi = ``fraction(step)``: keep the ``n - floor(phi n)`` highest drop scores
    of the *active* entries (floor as RigL); then fill up to ``sum(counts)`` with the highest grow scores of all that is
    not kept. Just-dropped entries are eligible again, and win ties. A drop score with ``split`` instead drops
    ``floor(phi n_s)`` of each of its groups s of each weight, and active entries in no group (SET: exact zeros); at
    phi = 0 it drops nothing.

    Args:
        drop: score by which entries are kept.
        grow: score by which entries are grown.
        fraction: phi, in [0, 1].
        quota: (group, dropped per weight, kept masks) -> share of each weight in the growth, proportional; capped at
            what a weight can hold and rounded exactly (see `spread`). None: growth competes over the whole group.

    Source: SET (Mocanu et al. 2018, 1707.04780), RigL (Evci et al. 2020, 1911.11134, Algorithm 1).
    """

    drop: Score
    grow: Score
    fraction: float | Schedule
    quota: Quota | None = None

    def __post_init__(self) -> None:
        """Check the fraction that training starts with, as far as it is known without ``total_steps``."""
        schedule = as_schedule(self.fraction)
        _check_fraction(getattr(schedule, "start_value", 0.0) if schedule.needs_total else schedule(0))

    @property
    def needs(self) -> frozenset[str]:
        """What both scores need."""
        return self.drop.needs | self.grow.needs

    @property
    def needs_total(self) -> bool:
        """Whether the fraction's schedule holds fractions of training."""
        return as_schedule(self.fraction).needs_total

    def resolve(self, total_steps: int | None) -> DropGrow:
        """Return the rule with the schedule's times in steps."""
        return replace(self, fraction=as_schedule(self.fraction).resolve(total_steps))

    def rewire(self, group: Sequence[Entries], counts: Sequence[int], structure: Structure, step: int) -> list[Tensor]:
        """Return the masks after one drop and one growth.

        Raises:
            ConfigError: the fraction is outside [0, 1].
            DivergedError: a score that matters (drop: of an active, grow: of a not kept entry) is not finite.
        """
        fraction = as_schedule(self.fraction)(step)
        _check_fraction(fraction)
        active = [entries.active for entries in group]
        kept = self._kept(group, active, fraction, sum(counts), structure)
        grow = [
            _forced(self.grow, self.grow(entries), ~keep, math.inf) for entries, keep in zip(group, kept, strict=True)
        ]
        if self.quota is None:
            return structure.select(grow, sum(counts), active)
        n_kept = [count_true(keep) for keep in kept]
        dropped = [count_true(mask) - n for mask, n in zip(active, n_kept, strict=True)]
        room = [keep.numel() - n for keep, n in zip(kept, n_kept, strict=True)]
        grown = spread(self.quota(group, dropped, kept), room, sum(counts) - sum(n_kept))
        return [
            structure.select([score], n + more, [mask])[0]
            for score, n, more, mask in zip(grow, n_kept, grown, active, strict=True)
        ]

    def _kept(
        self, group: Sequence[Entries], active: list[Tensor], fraction: float, total: int, structure: Structure
    ) -> list[Tensor]:
        values = [
            _forced(self.drop, self.drop(entries), mask, -math.inf) for entries, mask in zip(group, active, strict=True)
        ]
        split = self.drop.split
        if split is not None and fraction > 0:
            active = [
                _kept_of_groups([members & entries.active for members in split(entries)], value, fraction)
                for entries, value in zip(group, values, strict=True)
            ]
            if sum(map(count_true, active)) <= total:
                return active
            values = [torch.where(mask, value, -math.inf) for value, mask in zip(values, active, strict=True)]
            fraction = 0.0
        n = sum(map(count_true, active))
        return structure.select(values, min(n - math.floor(fraction * n), total), active)


def _kept_of_groups(groups: Sequence[Tensor], value: Tensor, fraction: float) -> Tensor:
    """Return the mask of what is kept when each group drops its own share."""
    kept = torch.zeros_like(value, dtype=torch.bool)
    for members in groups:
        inside = value[members]
        n = inside.numel()
        kept.masked_scatter_(members, select_top([inside], n - math.floor(fraction * n))[0])
    return kept


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ConfigError(f"the fraction of active weights to drop must be in [0, 1], got {fraction!r}")


def _forced(score: Score, value: Tensor, matters: Tensor, otherwise: float) -> Tensor:
    """Return the score where it matters and ``otherwise`` elsewhere; what matters must be finite."""
    _require_finite(score, torch.where(matters, value, 0.0))
    return torch.where(matters, value, otherwise)


def _require_finite(score: Score, value: Tensor) -> None:
    if value.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(value))).all()):
        raise DivergedError(f"the score {score.name!r} is not finite: training has diverged; lower the learning rate")
