"""Rules: the next supports of a group of weights, from what is known of them now.

A group is one weight (scope "layer") or all of them (scope "global"); its members compete with each other. ``counts``
are the numbers of active entries that the weights are to have; in a group only their sum binds. Drop-and-grow rules are
in `drop_grow` and `fan_in`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DivergedError
from . import scores
from .entries import Entries
from .scores import Score
from .selection import count_true
from .structures import Structure
from .thresholds import Memory


class Rule(Protocol):
    """What a rule provides."""

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of `Entries` beyond ``weight`` and ``active``."""

    @property
    def needs_total(self) -> bool:
        """Whether it holds times that are fractions of training."""

    @property
    def words(self) -> tuple[str, str]:
        """What it drops by and what it grows by, for the table of methods; "-" where it does not."""

    @property
    def where(self) -> str | None:
        """Within what growth competes, in words; None: within the method's scope."""

    @property
    def fills(self) -> bool:
        """Whether counts are met exactly; otherwise they are upper bounds."""

    @property
    def final(self) -> Rule | None:
        """What rewires after the very last update, where newborn weights would never be trained; None: nothing."""

    def resolve(self, total_steps: int | None) -> Rule:
        """Return the rule with times in steps."""

    def rewire(
        self,
        group: Sequence[Entries],
        counts: Sequence[int],
        structure: Structure,
        step: int,
        memory: Memory | None = None,
    ) -> list[Tensor]:
        """Return a new mask for each weight of the group.

        memory: what the rule remembers of this group, empty at first; it may change it. None remembers nothing.
        """


@dataclass(frozen=True)
class Static:
    """The supports stay as they are."""

    needs = frozenset[str]()
    needs_total = False
    words = ("-", "-")
    where = "-"
    fills = True
    final = None

    def resolve(self, total_steps: int | None) -> Static:
        """Return itself."""
        return self

    def rewire(
        self,
        group: Sequence[Entries],
        counts: Sequence[int],
        structure: Structure,
        step: int,
        memory: Memory | None = None,
    ) -> list[Tensor]:
        """Return the active masks."""
        return [entries.active for entries in group]


@dataclass(frozen=True)
class Select:
    """The highest scores, active or not, ties to the active; in a group of several weights each keeps at least one.

    The rule of live methods, whose inactive weights have a value too. Where inactive weights are zero and the score is
    a magnitude, it prunes: what is inactive stays so.

    Source: top-magnitude supports of the seed algorithm (Stosic and Stosic 2021, 2105.12920); pruning: Han et al. 2015
    (1506.02626).
    """

    score: Score = scores.magnitude
    needs_total = False
    where = None
    fills = True

    @property
    def words(self) -> tuple[str, str]:
        """The score, twice."""
        return self.score.name, self.score.name

    @property
    def final(self) -> Select:
        """Itself."""
        return self

    @property
    def needs(self) -> frozenset[str]:
        """What the score needs."""
        return self.score.needs

    def resolve(self, total_steps: int | None) -> Select:
        """Return itself."""
        return self

    def rewire(
        self,
        group: Sequence[Entries],
        counts: Sequence[int],
        structure: Structure,
        step: int,
        memory: Memory | None = None,
    ) -> list[Tensor]:
        """Return the masks of the ``sum(counts)`` highest scores.

        Raises:
            DivergedError: a score is not finite.
        """
        values = [self.score(entries) for entries in group]
        for value in values:
            require_finite(self.score, value)
        return select_alive(structure, values, sum(counts), [entries.active for entries in group])


def select_alive(structure: Structure, values: Sequence[Tensor], count: int, active: Sequence[Tensor]) -> list[Tensor]:
    """``structure.select`` over the group, but each weight keeps its best entry if one would be left empty.

    An empty layer cuts the network in two; competition over all weights makes it happen.
    """
    masks = structure.select(values, count, active)
    if len(values) == 1 or all(count_true(mask) or not mask.numel() for mask in masks):
        return masks
    safe = []
    for value, known in zip(values, active, strict=True):
        (best,) = structure.select([value], min(1, value.numel()), [known])
        safe.append(torch.where(best & (value > -torch.inf), torch.inf, value))
    return structure.select(safe, count, active)


def keep_one(structure: Structure, keep: Tensor, value: Tensor, active: Tensor) -> Tensor:
    """Return the mask ``keep``; if it is empty, that of the best active entry."""
    if count_true(keep) or not count_true(active):
        return keep
    return structure.select([value], 1, [active])[0]


def forced(score: Score, value: Tensor, matters: Tensor, otherwise: float) -> Tensor:
    """Return the score where it matters and ``otherwise`` elsewhere; what matters must be finite.

    Raises:
        DivergedError: it is not.
    """
    require_finite(score, torch.where(matters, value, 0.0))
    return torch.where(matters, value, otherwise)


def require_finite(score: Score, value: Tensor) -> None:
    """Raise DivergedError if a value of the score is not finite."""
    if value.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(value))).all()):
        raise DivergedError(f"the score {score.name!r} is not finite: training has diverged; lower the learning rate")
