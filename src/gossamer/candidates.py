"""The entries of a weight that can be active after a rewiring: the active ones and the best of the others.

A rule that chooses among these alone finds the support that it would find among all entries: of the inactive ones it
takes those that score highest, ties to the lower position, and no more than it can grow. So no tensor of the size of
the dense weight is made: grow scores are computed tile by tile, and the best are kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .kernels import rewire
from .topology import DropGrow, Entries, PruneThen, Rule, Score, Select, as_schedule, select_top
from .topology.rules import require_finite
from .topology.selection import comparable, count_true
from .topology.thresholds import Memory

TILE = 1 << 20  # entries looked at at a time
_BLOCK = 16  # torch draws normal numbers by blocks of 16: a shorter tile would change the stream
_SCORED = "grow score"
_SAMPLED_ROWS = 64


@dataclass(frozen=True)
class Active:
    """The active entries of one weight and their flat positions, ascending."""

    positions: Tensor
    entries: Entries


def tiles(numel: int, size: int) -> list[tuple[int, int]]:
    """Cut 0..numel into ranges of `size`, a multiple of 16; the last holds 16 at least, if there are as many.

    Random numbers that are drawn range by range are then those of one draw of `numel`.

    >>> tiles(70, 32)
    [(0, 32), (32, 70)]
    """
    starts = list(range(0, max(numel - _BLOCK, 0) + 1, size))
    return list(zip(starts, [*starts[1:], numel], strict=True))


def row_tiles(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a weight into ranges of whole rows, of about as many entries as a tile."""
    numel = math.prod(shape)
    row = numel // shape[0]
    size = max(1, TILE // row) * row
    return [(at, min(at + size, numel)) for at in range(0, numel, size)]


def normals_at(positions: Tensor, numel: int, generator: torch.Generator) -> Tensor:
    """What `torch.randn` of `numel` numbers has at ascending positions."""
    parts = [torch.empty(0)]
    ranges = tiles(numel, TILE)
    ends = np.searchsorted(positions.numpy(), [end for _, end in ranges])
    first = 0
    for (begin, end), last in zip(ranges, ends.tolist(), strict=True):
        parts.append(torch.randn(end - begin, generator=generator)[positions[first:last] - begin])
        first = last
    return torch.cat(parts)


# -- how many can grow --


def most_grown(rule: Rule, group: Sequence[Entries], total: int, step: int, memory: Memory) -> int:
    """A bound on how many inactive entries become active in a rewiring of the group, whose active entries are given."""
    held = sum(entries.weight.numel() for entries in group)
    if isinstance(rule, PruneThen):
        return most_grown(rule.rule, group, min(total, held), step, memory)
    if isinstance(rule, DropGrow):
        return max(0, total - held) + _most_dropped(rule, group, held, step, memory)
    if isinstance(rule, Select):
        return max(0, total - sum(_not_worse_than_inactive(rule.score, entries) for entries in group))
    return 0


def _most_dropped(rule: DropGrow, group: Sequence[Entries], held: int, step: int, memory: Memory) -> int:
    if rule.threshold is not None:
        limit = rule.threshold.value(memory)
        return sum(count_true(rule.drop(entries) < limit) for entries in group)
    fraction = as_schedule(rule.fraction or 0.0)(step)
    if fraction == 0:
        return 0
    apart = sum(_in_no_part(rule.drop, entries) for entries in group)  # these go whatever the fraction
    return math.ceil(fraction * held) + apart


def _in_no_part(score: Score, entries: Entries) -> int:
    parts = score.split(entries) if score.split is not None else [entries.active]
    return entries.weight.numel() - sum(map(count_true, parts))


def _not_worse_than_inactive(score: Score, entries: Entries) -> int:
    """How many active entries win over any inactive one: these are all alike, and lose ties."""
    inactive = Entries(entries.weight.new_zeros(1), torch.zeros(1, dtype=torch.bool, device=entries.weight.device))
    return count_true(score(entries) >= score(inactive))


# -- the candidates --


def with_known_scores(rule: Rule) -> Rule:
    """The rule, taking the grow score of candidates as it was found in the whole weight."""
    if isinstance(rule, PruneThen):
        return PruneThen(dataclasses.replace(rule.rule, grow=_known(rule.rule.grow)))
    return dataclasses.replace(rule, grow=_known(rule.grow)) if isinstance(rule, DropGrow) else rule


def _known(score: Score) -> Score:
    def look_up(entries: Entries) -> Tensor:
        return entries.slots[_SCORED] if _SCORED in entries.slots else score(entries)

    return dataclasses.replace(score, fn=look_up)


def grow_score(rule: Rule) -> Score | None:
    """By what the rule grows; None if it does not tell inactive entries apart."""
    rule = rule.rule if isinstance(rule, PruneThen) else rule
    return rule.grow if isinstance(rule, DropGrow) else None


def gather(
    active: Active,
    shape: Sequence[int],
    most: int,
    grow: Score | None,
    gradient: Callable[[int, int], Tensor] | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Entries]:
    """Flat positions, ascending, and entries of the candidates: all active ones and the `most` best inactive ones.

    most: at least as many as the rule can grow in this weight, see `most_grown`.
    grow: by what it grows; None takes the first inactive entries. gradient: (begin, end) -> the gradient of these flat
        positions, whole rows; the gradient at active entries is that of `active`.

    Raises:
        DivergedError: the score of an inactive entry is not finite.
    """
    numel = math.prod(shape)
    scan = _Scan(active, shape, grow or _ALIKE, gradient, generator)
    best = _Best(min(most, numel - len(active.positions)))
    known = torch.zeros_like(active.entries.weight)
    if most:
        known, best = scan.best(best.most)
    found = best.result()
    old, new = rewire.merge(active.positions, found.positions)

    def merged(mine: Tensor, others: Tensor | float) -> Tensor:
        both = mine.new_empty(len(old) + len(new))
        both.numpy()[old.numpy()] = mine.numpy()  # several times faster than torch's own
        both[new] = torch.as_tensor(others, dtype=mine.dtype)
        return both

    given = active.entries
    entries = Entries(
        weight=merged(given.weight, 0.0),
        active=merged(given.active, False),
        grad=None if given.grad is None else merged(given.grad, found.grads),
        age=None if given.age is None else merged(given.age, 0),
        slots={} if grow is None else {_SCORED: merged(known, found.scores)},
    )
    return merged(active.positions, found.positions), entries


_ALIKE = Score("position", lambda entries: torch.zeros_like(entries.weight))


@dataclass(frozen=True)
class _Scan:
    """A walk over the grow scores of a whole weight, tile by tile."""

    active: Active
    shape: Sequence[int]
    grow: Score
    gradient: Callable[[int, int], Tensor] | None
    generator: torch.Generator | None

    def best(self, most: int) -> tuple[Tensor, _Best]:
        """The grow scores of the active entries, and the best inactive ones."""
        start = None if self.generator is None else self.generator.get_state()
        best = _Best(most, self._guess(most))
        known = self._walk(best)
        if best.found < most and best.limit > -math.inf:  # the guess was too high
            if self.generator is not None and start is not None:
                self.generator.set_state(start)
            best = _Best(most)
            known = self._walk(best)
        return known, best

    def _guess(self, most: int) -> float:
        """What somewhat more than the `most` best scores probably exceed, from those of a few rows."""
        rows, numel = self.shape[0], math.prod(self.shape)
        sampled = range(0, rows, max(1, rows // _SAMPLED_ROWS))
        if self.gradient is None or self.grow.needs != {"grad"} or numel < TILE:
            return -math.inf
        row = numel // rows
        grad = torch.cat([self.gradient(at * row, (at + 1) * row) for at in sampled])
        score = self.grow(Entries(torch.zeros_like(grad), torch.zeros_like(grad, dtype=torch.bool), grad))
        rank = min(len(score), math.ceil(1.3 * most * len(score) / numel) + 16)
        limit = float(score.topk(rank).values[-1])
        return limit if math.isfinite(limit) else -math.inf

    def _walk(self, best: _Best) -> Tensor:
        """Offer all inactive entries to `best`; return the grow scores of the active ones."""
        given, known = self.active.entries, []
        ranges = tiles(math.prod(self.shape), TILE) if self.gradient is None else row_tiles(self.shape)
        longest = max(end - begin for begin, end in ranges)
        weight, mask = given.weight.new_zeros(longest), torch.zeros(longest, dtype=torch.bool)
        last = 0
        for begin, end in ranges:
            first, last = last, int(np.searchsorted(self.active.positions.numpy(), end))
            here = self.active.positions[first:last] - begin
            weight[here], mask[here] = given.weight[first:last], True
            grad = None if self.gradient is None else self.gradient(begin, end)
            if grad is not None and given.grad is not None:
                grad[here] = given.grad[first:last]
            tile = Entries(weight[: end - begin], mask[: end - begin], grad=grad, generator=self.generator)
            score = self.grow(tile)
            known.append(score[here])
            best.offer(self.grow, score, here, grad, begin)
            weight[here], mask[here] = 0.0, False
        return torch.cat(known)


@dataclass
class _Best:
    """The `most` highest of the scores offered so far, in ascending positions; ties go to the lower position.

    limit: what a later entry must exceed.
    """

    most: int
    limit: float = -math.inf
    positions: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)

    @property
    def found(self) -> int:
        """How many are held, `most` or more if there are."""
        return sum(map(len, self.positions))

    def offer(self, grow: Score, score: Tensor, active: Tensor, grad: Tensor | None, begin: int) -> None:
        """Take a tile of scores, whose first position is `begin`; `active` are numbers in the tile.

        Raises:
            DivergedError: the score of an inactive entry is not finite.
        """
        if not self.most:
            return
        (values,) = comparable([score])
        found = rewire.above(values, self.limit, active)
        if found is None:  # of the active entries only some matter
            values = values.index_fill(0, active, 0.0)
            require_finite(grow, values)
            found = rewire.above(values, self.limit, active)
            assert found is not None
        self.positions.append(found + begin)
        self.scores.append(values[found])
        self.grads.append(torch.empty(0) if grad is None else grad[found])
        if self.found > 2 * self.most:
            self._shrink()

    def _shrink(self) -> None:
        positions, scores, grads = (torch.cat(part) for part in (self.positions, self.scores, self.grads))
        (keep,) = select_top([scores], self.most)
        self.positions, self.scores = [positions[keep]], [scores[keep]]
        self.grads = [grads[keep] if len(grads) else grads]
        self.limit = float(self.scores[0].min())

    def result(self) -> _Found:
        """What is left; gradients are empty if there were none."""
        if self.found > self.most:
            self._shrink()
        empty = torch.empty(0)
        return _Found(
            torch.cat([empty.long(), *self.positions]),
            torch.cat([empty, *self.scores]),
            torch.cat([empty, *self.grads]),
        )


@dataclass(frozen=True)
class _Found:
    positions: Tensor
    scores: Tensor
    grads: Tensor
