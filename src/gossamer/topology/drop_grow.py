"""Drop-and-grow rules: some active entries go, as many come elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ConfigError
from .counting import spread
from .entries import Entries
from .quotas import Quota
from .rules import Select, forced, keep_one, select_alive
from .schedules import Schedule, Time, as_schedule, check_time, is_fractional, to_step
from .scores import Score
from .selection import count_true, select_top
from .structures import Structure, Units
from .thresholds import Memory, Threshold


@dataclass(frozen=True)
class DropGrow:
    """Drop some active entries, grow as many elsewhere.

    **Drop**, with n active entries and phi = ``fraction(step)``: keep the ``n - floor(phi n)`` highest drop scores of
    the *active* entries (floor as RigL). A drop score with ``split`` instead drops ``floor(phi n_s)`` of each of its
    groups s of each weight, and active entries in no group (SET: exact zeros); at phi = 0 it drops nothing. With a
    ``threshold`` whatever scores below it goes. With a threshold, and among several, each weight keeps at least one.

    **Grow** up to ``sum(counts)``: the highest grow scores of all that is not kept.

    Of blocks and channels (`Units`) whole ones are dropped, as many as hold floor(phi n) entries at most, and grown.

    Without a quota all weights of the group compete, in dropping and in growing. With one, each weight drops its own
    share and the quota divides the growth: parameters move between weights.

    Args:
        drop: score by which entries are kept.
        grow: score by which entries are grown.
        fraction: phi, in [0, 1]; or
        threshold: what to drop instead of a fraction.
        quota: shares of the weights in the growth, capped at what a weight can hold and rounded exactly (`spread`).
        grace: an entry younger than this, in optimizer steps (or a fraction of training), is not dropped; then fewer
            than phi n may go. Protects newborn entries, which start at zero and are judged by magnitude.
        revive: whether just-dropped entries may grow again at once; they win ties, and keep value and slots. False
            makes them a last resort, when nothing else is left to grow.

    Source: SET (Mocanu et al. 2018, 1707.04780), RigL (Evci et al. 2020, 1911.11134, Algorithm 1). Grace is ours.
    """

    drop: Score
    grow: Score
    fraction: float | Schedule | None = None
    quota: Quota | None = None
    threshold: Threshold | None = None
    grace: Time = 0
    revive: bool = True
    fills = True
    final = None

    def __post_init__(self) -> None:
        """Check what is known without ``total_steps``."""
        if (self.fraction is None) == (self.threshold is None):
            raise ConfigError("DropGrow drops by a fraction or below a threshold: give exactly one of them")
        if self.fraction is not None:
            schedule = as_schedule(self.fraction)
            _check_fraction(getattr(schedule, "start_value", 0.0) if schedule.needs_total else schedule(0))
        if self.quota is not None and not isinstance(self.quota, Quota):
            raise ConfigError(f"quota = {self.quota!r}: expected a Quota such as gossamer.topology.own; see quota()")
        if self.threshold is not None and self.drop.split is not None:
            raise ConfigError(f"the score {self.drop.name!r} splits a fraction over groups; a threshold has none")
        check_time("grace", self.grace)

    @property
    def words(self) -> tuple[str, str]:
        """The names of the scores."""
        drop = self.drop.name + (f" {self.threshold.name}" if self.threshold else "")
        return drop, self.grow.name + ("" if self.revive else ", not the just dropped")

    @property
    def where(self) -> str | None:
        """The quota."""
        return None if self.quota is None else f"layer, shares by {self.quota.name.replace('_', ' ')}"

    @property
    def needs(self) -> frozenset[str]:
        """What scores, quota and grace need."""
        extra = {"age"} if self.grace else set()
        return self.drop.needs | self.grow.needs | extra | (self.quota.needs if self.quota else frozenset())

    @property
    def needs_total(self) -> bool:
        """Whether fraction or grace hold fractions of training."""
        return is_fractional(self.grace) or (self.fraction is not None and as_schedule(self.fraction).needs_total)

    def resolve(self, total_steps: int | None) -> DropGrow:
        """Return the rule with times in steps."""
        fraction = None if self.fraction is None else as_schedule(self.fraction).resolve(total_steps)
        return replace(self, fraction=fraction, grace=to_step("grace", self.grace, total_steps))

    def rewire(
        self,
        group: Sequence[Entries],
        counts: Sequence[int],
        structure: Structure,
        step: int,
        memory: Memory | None = None,
    ) -> list[Tensor]:
        """Return the masks after one drop and one growth.

        Raises:
            ConfigError: the fraction is outside [0, 1].
            DivergedError: a score that matters (drop: of an active, grow: of a not kept entry) is not finite.
        """
        active = [entries.active for entries in group]
        kept = self._kept(group, sum(counts), structure, step, {} if memory is None else memory)
        grow = [self._grow_score(entries, keep) for entries, keep in zip(group, kept, strict=True)]
        if self.quota is None:
            return structure.select(grow, sum(counts), active)
        grown = self._grown(self.quota, group, kept, sum(counts))
        return [
            structure.select([score], count_true(keep) + more, [mask])[0]
            for score, keep, more, mask in zip(grow, kept, grown, active, strict=True)
        ]

    def _grow_score(self, entries: Entries, keep: Tensor) -> Tensor:
        score = forced(self.grow, self.grow(entries), ~keep, math.inf)
        return score if self.revive else torch.where(entries.active & ~keep, -math.inf, score)

    def _grown(self, quota: Quota, group: Sequence[Entries], kept: Sequence[Tensor], total: int) -> list[int]:
        """How many each weight grows."""
        n_kept = [count_true(keep) for keep in kept]
        held = [count_true(entries.active) for entries in group]
        room = [keep.numel() - n for keep, n in zip(kept, n_kept, strict=True)]
        if not self.revive and not quota.exact:
            elsewhere = [keep.numel() - n for keep, n in zip(kept, held, strict=True)]
            room = elsewhere if sum(elsewhere) >= total - sum(n_kept) else room
        dropped = [before - n for before, n in zip(held, n_kept, strict=True)]
        return spread(quota(group, dropped, kept), room, total - sum(n_kept))

    # -- dropping --

    def _kept(
        self, group: Sequence[Entries], total: int, structure: Structure, step: int, memory: Memory
    ) -> list[Tensor]:
        young = [self._young(entries) for entries in group]
        values = [
            forced(self.drop, self.drop(entries), entries.active, -math.inf).masked_fill(protected, math.inf)
            for entries, protected in zip(group, young, strict=True)
        ]
        if self.threshold is not None:
            kept = self._above(self.threshold, group, values, structure, memory)
        else:
            fraction = as_schedule(self.fraction or 0.0)(step)
            _check_fraction(fraction)
            kept = self._share(group, values, young, fraction, structure)
        if (n := sum(map(count_true, kept))) <= total:
            return kept
        values = [torch.where(keep, value, -math.inf) for keep, value in zip(kept, values, strict=True)]
        return select_alive(structure, values, min(n, total), kept)

    def _young(self, entries: Entries) -> Tensor:
        if not self.grace:
            return torch.zeros_like(entries.active)
        return entries.active & (entries.require("age") < self.grace)

    def _share(
        self,
        group: Sequence[Entries],
        values: list[Tensor],
        young: list[Tensor],
        fraction: float,
        structure: Structure,
    ) -> list[Tensor]:
        active = [entries.active for entries in group]
        if self.drop.split is not None and fraction > 0:
            members = [[part & entries.active for part in self.drop.split(entries)] for entries in group]
            kept = [_kept_of_parts(p, value, fraction) for p, value in zip(members, values, strict=True)]
            kept = [keep | protected for keep, protected in zip(kept, young, strict=True)]
        elif self.quota is not None and len(group) > 1:  # each weight drops its own share
            kept = [
                self._keep_best([value], [mask], [protected], fraction, structure)[0]
                for value, mask, protected in zip(values, active, young, strict=True)
            ]
        else:
            return self._keep_best(values, active, young, fraction, structure)
        if len(group) == 1:
            return kept
        return [keep_one(structure, *each) for each in zip(kept, values, active, strict=True)]

    @staticmethod
    def _keep_best(
        values: list[Tensor], active: list[Tensor], young: list[Tensor], fraction: float, structure: Structure
    ) -> list[Tensor]:
        held = list(map(count_true, active))
        one = [len(held) > 1 and n > 0 for n in held]  # what each of several weights keeps in any case
        least = sum(max(count_true(protected), floor) for protected, floor in zip(young, one, strict=True))
        keep = max(sum(held) - math.floor(fraction * sum(held)), least)
        if isinstance(structure, Units):
            return [structure.keep(values[0], active[0], keep)]
        return select_alive(structure, values, keep, active)

    @staticmethod
    def _above(
        threshold: Threshold, group: Sequence[Entries], values: list[Tensor], structure: Structure, memory: Memory
    ) -> list[Tensor]:
        limit = threshold.value(memory)
        kept = []
        for entries, value in zip(group, values, strict=True):
            kept.append(keep_one(structure, entries.active & (value >= limit), value, entries.active))
        n = sum(count_true(entries.active) for entries in group)
        threshold.adapt(n - sum(map(count_true, kept)), n, memory)
        return kept


@dataclass(frozen=True)
class PruneThen:
    """First prune the group to ``sum(counts)`` by drop score, over all its weights; then rewire each weight by itself.

    With a falling density this is pruning with regeneration. Pruned entries may grow again in the same rewiring.

    Source: GraNet (Liu et al. 2021, 2106.10404).
    """

    rule: DropGrow
    where = "layer"
    fills = True

    def __post_init__(self) -> None:
        """Check what does not apply."""
        if self.rule.quota is not None or self.rule.threshold is not None:
            raise ConfigError(
                "PruneThen rewires each weight by itself, at the count that pruning left it: its rule drops a fraction "
                "and has no quota; leave quota and threshold out"
            )

    @property
    def words(self) -> tuple[str, str]:
        """Those of the rule."""
        drop, grow = self.rule.words
        return f"{drop}; first over all layers", grow

    @property
    def final(self) -> Select:
        """Pruning alone."""
        return Select(self.rule.drop)

    @property
    def needs(self) -> frozenset[str]:
        """What the rule needs."""
        return self.rule.needs

    @property
    def needs_total(self) -> bool:
        """Whether the rule does."""
        return self.rule.needs_total

    def resolve(self, total_steps: int | None) -> PruneThen:
        """Return it with times in steps."""
        return PruneThen(self.rule.resolve(total_steps))

    def rewire(
        self,
        group: Sequence[Entries],
        counts: Sequence[int],
        structure: Structure,
        step: int,
        memory: Memory | None = None,
    ) -> list[Tensor]:
        """Return the masks; raises as `DropGrow.rewire`."""
        drop, active = self.rule.drop, [entries.active for entries in group]
        values = [forced(drop, drop(entries), entries.active, -math.inf) for entries in group]
        pruned = select_alive(structure, values, min(sum(counts), sum(map(count_true, active))), active)
        return [
            self.rule.rewire([dataclasses.replace(entries, active=mask)], [count_true(mask)], structure, step)[0]
            for entries, mask in zip(group, pruned, strict=True)
        ]


def _kept_of_parts(parts: Sequence[Tensor], value: Tensor, fraction: float) -> Tensor:
    """Return the mask of what is kept when each part drops its own share."""
    kept = torch.zeros_like(value, dtype=torch.bool)
    for members in parts:
        inside = value[members]
        n = inside.numel()
        kept.masked_scatter_(members, select_top([inside], n - math.floor(fraction * n))[0])
    return kept


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ConfigError(f"the fraction of active weights to drop must be in [0, 1], got {fraction!r}")
