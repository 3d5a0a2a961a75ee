"""Rules: exact counts, drops among the active only, golden examples, uniform growth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError, DivergedError
from gossamer.topology import (
    Constant,
    Cosine,
    DropGrow,
    Entries,
    FanIn,
    Linear,
    Rule,
    Schedule,
    Score,
    Select,
    Static,
    Structure,
    Unstructured,
    own,
    quota,
    scores,
)

FREE = Unstructured()
VALUES = st.sampled_from([0.0, 0.0, 0.1, -0.1, 0.5, -0.5, 1.0, -2.0])
DROPS = [scores.magnitude, scores.signed_magnitude]
GROWS = [scores.gradient, scores.random]
FRACTIONS = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])


def entries(weight: Sequence[float], active: Sequence[int], grad: Sequence[float] | None = None) -> Entries:
    w = torch.tensor(weight)
    return Entries(
        w,
        torch.tensor(active, dtype=torch.bool),
        grad=torch.zeros_like(w) if grad is None else torch.tensor(grad),
        generator=torch.Generator().manual_seed(1),
    )


@st.composite
def groups(draw: st.DrawFn, members: int | None = None) -> list[Entries]:
    made = []
    for _ in range(draw(st.integers(1, 3)) if members is None else members):
        n = draw(st.integers(1, 30))
        active = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        weight = [w * a for w, a in zip(draw(st.lists(VALUES, min_size=n, max_size=n)), active, strict=True)]
        made.append(entries(weight, active, draw(st.lists(VALUES, min_size=n, max_size=n))))
    return made


def n_active(group: Sequence[Entries]) -> list[int]:
    return [int(e.active.sum()) for e in group]


def kept_by_hand(group: Sequence[Entries], drop: Score, fraction: float) -> list[Tensor]:
    """Literal drop: sort the active entries, remove the first k; of several weights each keeps its best."""
    kept = [e.active.clone() for e in group]
    places = [(m, i) for m, e in enumerate(group) for i in e.active.nonzero().view(-1).tolist()]
    value = {(m, i): float(group[m].weight[i]) for m, i in places}
    places.sort(key=lambda p: (abs(value[p]), -p[0], -p[1]))
    best = {p[0]: p for p in places} if len(group) > 1 else {}
    if drop is scores.signed_magnitude:
        dropped = []
        for m in range(len(group)):
            for side in (1, -1):
                members = sorted((p for p in places if p[0] == m and value[p] * side > 0), key=lambda p: abs(value[p]))
                members.sort(key=lambda p: (abs(value[p]), -p[1]))
                dropped += members[: math.floor(fraction * len(members))]
        dropped += [p for p in places if value[p] == 0 and fraction > 0]
        emptied = [m for m in best if all(p in dropped for p in places if p[0] == m)]
        dropped = [p for p in dropped if p not in [best[m] for m in emptied]]
    else:
        others = [p for p in places if p not in best.values()]
        dropped = [*others, *sorted(best.values(), reverse=True)][: math.floor(fraction * len(places))]
    for m, i in dropped:
        kept[m][i] = False
    return kept


@pytest.mark.parametrize("drop", DROPS, ids=lambda s: s.name)
@pytest.mark.parametrize("grow", GROWS, ids=lambda s: s.name)
@settings(deadline=None)
@given(group=groups(), fraction=FRACTIONS)
def test_drop_grow_laws(group: list[Entries], fraction: float, drop: Score, grow: Score) -> None:
    counts = n_active(group)
    masks = DropGrow(drop, grow, fraction).rewire(group, counts, FREE, 1)
    assert sum(int(m.sum()) for m in masks) == sum(counts)
    for mask, keep, e in zip(masks, kept_by_hand(group, drop, fraction), group, strict=True):
        assert mask.shape == e.active.shape
        assert bool((mask | ~keep).all())  # what is kept stays; so only active entries were dropped
    if fraction == 0:
        assert all(torch.equal(mask, e.active) for mask, e in zip(masks, group, strict=True))


@settings(deadline=None)
@given(group=groups(1), fraction=FRACTIONS)
def test_growth_takes_the_largest_gradients(group: list[Entries], fraction: float) -> None:
    (e,) = group
    (mask,) = DropGrow(scores.magnitude, scores.gradient, fraction).rewire(group, n_active(group), FREE, 1)
    (keep,) = kept_by_hand(group, scores.magnitude, fraction)
    grown, left = e.require("grad").abs()[mask & ~keep], e.require("grad").abs()[~mask]
    assert not grown.numel() or not left.numel() or grown.min() >= left.max()


@pytest.mark.parametrize("drop", DROPS, ids=lambda s: s.name)
@settings(deadline=None)
@given(group=groups(3), fraction=FRACTIONS)
def test_own_quota_conserves_each_weight(group: list[Entries], fraction: float, drop: Score) -> None:
    masks = DropGrow(drop, scores.gradient, fraction, quota=own).rewire(group, n_active(group), FREE, 1)
    assert [int(m.sum()) for m in masks] == n_active(group)
    for mask, e in zip(masks, group, strict=True):
        (keep,) = kept_by_hand([e], drop, fraction)  # each weight drops its own share
        assert bool((mask | ~keep).all())


@settings(deadline=None)
@given(group=groups(), fraction=FRACTIONS, share=st.floats(0, 1), local=st.booleans())
def test_the_number_may_change(group: list[Entries], fraction: float, share: float, local: bool) -> None:
    counts = [round(share * e.weight.numel()) for e in group]
    rule = DropGrow(scores.signed_magnitude, scores.gradient, fraction, own if local else None)
    assert sum(int(m.sum()) for m in rule.rewire(group, counts, FREE, 1)) == sum(counts)


@settings(deadline=None)
@given(seed=st.integers(0, 100), rows=st.integers(1, 6), count=st.integers(1, 30), fraction=FRACTIONS)
@pytest.mark.parametrize("drop", DROPS, ids=lambda s: s.name)
def test_structure_is_kept(seed: int, rows: int, count: int, fraction: float, drop: Score) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, grad = torch.randn(2, rows, 8, generator=generator)
    count = min(count, weight.numel())
    (active,) = FanIn().select([torch.rand(rows, 8, generator=generator)], count)
    e = Entries(torch.where(active, weight, 0.0), active, grad=grad)
    (mask,) = DropGrow(drop, scores.gradient, fraction).rewire([e], [count], FanIn(), 1)
    assert FanIn().is_valid(mask)
    assert int(mask.sum()) == count
    if fraction == 0:
        assert torch.equal(mask, active)


# -- golden examples --------------------------------------------------------------------------------------------------

RIGL = ([0.5, -0.1, 0.3, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(("g4", "expected"), [(-3.0, [1, 0, 1, 0, 1, 0]), (-1.5, [1, 1, 1, 0, 0, 0])])
def test_rigl_golden(g4: float, expected: list[int]) -> None:
    e = entries(*RIGL, [1.0, 2.0, 0.1, 0.2, g4, 0.05])
    (mask,) = DropGrow(scores.magnitude, scores.gradient, 1 / 3).rewire([e], [3], FREE, 100)
    assert mask.int().tolist() == expected


def test_set_golden() -> None:
    values = [-0.5, -0.1, -0.02, 0.01, 0.03, 0.4, 0.6]
    e = entries([*values, 0.0, 0.0, 0.0], [1] * 7 + [0] * 3, [0.0] * 7 + [1.0, 3.0, 2.0])
    signed = DropGrow(scores.signed_magnitude, scores.gradient, 0.3).rewire([e], [7], FREE, 1)
    plain = DropGrow(scores.magnitude, scores.gradient, 0.3).rewire([e], [7], FREE, 1)
    assert signed[0].int().tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 1, 0]  # .01 alone
    assert plain[0].int().tolist() == [1, 1, 0, 0, 1, 1, 1, 0, 1, 1]  # .01 and -.02


def test_set_drops_exact_zeros_unless_nothing_is_to_be_dropped() -> None:
    e = entries([1.0, 0.0, -1.0, 0.0, 0.0], [1, 1, 1, 0, 0], [0.0, 0.0, 0.0, 1.0, 2.0])
    masks = [DropGrow(scores.signed_magnitude, scores.gradient, f).rewire([e], [3], FREE, 1)[0] for f in (0.1, 0.0)]
    assert [m.int().tolist() for m in masks] == [[1, 0, 1, 0, 1], [1, 1, 1, 0, 0]]


def test_fraction_is_rounded_down() -> None:
    e = entries([1.0, 2.0, 3.0, 0.0], [1, 1, 1, 0], [0.0, 0.0, 0.0, 9.0])
    (mask,) = DropGrow(scores.magnitude, scores.gradient, 0.33).rewire([e], [3], FREE, 1)
    assert torch.equal(mask, e.active)


def test_dropped_entries_win_ties_in_growth() -> None:
    e = entries([0.0, 0.0, 1.0, 2.0], [0, 0, 1, 1], [1.0, 1.0, 1.0, 1.0])
    (mask,) = DropGrow(scores.magnitude, scores.gradient, 0.5).rewire([e], [2], FREE, 1)
    assert torch.equal(mask, e.active)


def test_growth_competes_over_the_group_without_a_quota() -> None:
    group = [entries([1.0, 0.0], [1, 0], [0.0, 1.0]), entries([2.0, 3.0, 0.0], [1, 1, 0], [0.0, 0.0, 5.0])]
    masks = DropGrow(scores.magnitude, scores.gradient, 0.34).rewire(group, [1, 2], FREE, 1)
    assert [m.int().tolist() for m in masks] == [[1, 0], [0, 1, 1]]  # 1.0 is the last of its weight, so 2.0 goes


def test_quota_overflow_goes_where_there_is_room() -> None:
    group = [entries([1.0, 2.0], [1, 1]), entries([3.0, 4.0, 0.0, 0.0, 0.0, 0.0], [1, 1, 0, 0, 0, 0])]

    @quota()
    def first_only(group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> list[int]:
        assert list(dropped) == [1, 1]
        assert [k.int().tolist() for k in kept] == [[0, 1], [0, 1, 0, 0, 0, 0]]
        return [1, 0]

    rule = DropGrow(scores.magnitude, scores.gradient, 0.5, quota=first_only)
    assert [int(m.sum()) for m in rule.rewire(group, [3, 3], FREE, 1)] == [2, 4]


def test_schedule_decides_the_fraction() -> None:
    e = entries([0.1, 0.2, 0.0, 0.0], [1, 1, 0, 0], [0.0, 0.0, 1.0, 2.0])
    rule = DropGrow(scores.magnitude, scores.gradient, Cosine(1.0, end=0.5))
    assert rule.needs_total
    resolved = rule.resolve(20)
    assert not resolved.needs_total
    masks = [resolved.rewire([e], [2], FREE, step)[0].int().tolist() for step in (0, 5, 10)]
    assert masks == [[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]]


def test_random_growth_is_uniform() -> None:
    """Chi-square over the 40 candidates, just dropped or inactive, of which 10 grow; the 8 largest are kept."""
    n, runs, keep = 48, 3000, 8
    active = torch.arange(n) < 18
    weight = torch.where(active, torch.arange(n, 0, -1, dtype=torch.float32), 0.0)
    generator = torch.Generator().manual_seed(7)
    e = Entries(weight, active, generator=generator)
    rule = DropGrow(scores.magnitude, scores.random, 10 / 18)
    seen = torch.zeros(n)
    for _ in range(runs):
        seen += rule.rewire([e], [18], FREE, 1)[0]
    assert seen[:keep].tolist() == [runs] * keep
    free, expected = seen[keep:], runs * 10 / 40
    statistic = float(((free - expected) ** 2).sum() / (expected * (1 - 10 / 40)) * (39 / 40))
    assert 15 < statistic < 75  # 39 degrees of freedom: about 0.0005 on each side


# -- static and select ------------------------------------------------------------------------------------------------


def test_static_returns_what_is() -> None:
    e = entries([1.0, 0.0], [0, 1])
    assert Static().rewire([e], [2], FREE, 1)[0] is e.active
    assert Static().needs == frozenset()


def test_select_takes_the_largest_of_all() -> None:
    group = [entries([1.0, -5.0, 2.0], [1, 0, 0]), entries([3.0, -4.0], [1, 1])]
    masks = Select().rewire(group, [1, 2], FREE, 1)
    assert [m.int().tolist() for m in masks] == [[0, 1, 0], [1, 1]]


def test_select_gives_ties_to_the_active() -> None:
    e = entries([1.0, 1.0, 1.0, 0.0], [0, 0, 1, 1])
    assert Select().rewire([e], [2], FREE, 1)[0].int().tolist() == [1, 0, 1, 0]


RULES: list[Rule] = [Static(), Select(), Select(scores.saliency), DropGrow(scores.magnitude, scores.gradient, 0.3)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("structure", [FREE, FanIn()], ids=lambda s: s.name)
def test_rules_are_values(rule: Rule, structure: Structure) -> None:
    assert hash(rule) == hash(rule.resolve(100)) or rule != rule.resolve(100)
    assert not rule.needs_total
    e = Entries(torch.randn(4, 4), torch.eye(4, dtype=torch.bool), grad=torch.randn(4, 4))
    before = [t.clone() for t in (e.weight, e.active, e.require("grad"))]
    (mask,) = rule.rewire([e], [4], structure, 1)
    assert structure.is_valid(mask)
    assert all(torch.equal(a, b) for a, b in zip(before, (e.weight, e.active, e.require("grad")), strict=True))


def test_needs() -> None:
    assert Select(scores.saliency).needs == {"grad"}
    assert DropGrow(scores.magnitude, scores.random, 0.3).needs == {"generator"}
    assert DropGrow(scores.gradient, scores.random, 0.3).needs == {"generator", "grad"}


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, Constant(1.1), Cosine(1.1), Cosine(1.1, end=5)])
def test_bad_fraction(bad: float | Schedule) -> None:
    with pytest.raises(ConfigError):
        DropGrow(scores.magnitude, scores.gradient, bad)


def test_schedule_of_steps_and_fractions_is_accepted() -> None:
    late = DropGrow(scores.magnitude, scores.gradient, Cosine(0.3, start=5000, end=0.9))
    assert late.resolve(10_000).fraction == Cosine(0.3, start=5000, end=9000)


def test_schedule_that_leaves_the_range() -> None:
    rule = DropGrow(scores.magnitude, scores.gradient, Linear(0.5, 1.5, end=10))
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\], got 1.5"):
        rule.rewire([entries([1.0], [1])], [1], FREE, 10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    weight = entries([bad, 1.0, 0.0], [1, 1, 0])
    grad = entries([1.0, 1.0, 0.0], [1, 1, 0], [0.0, 0.0, bad])
    rule = DropGrow(scores.magnitude, scores.gradient, 0.5)
    for attempt in (
        lambda: Select().rewire([weight], [2], FREE, 1),
        lambda: rule.rewire([weight], [2], FREE, 1),
        lambda: rule.rewire([grad], [2], FREE, 1),
    ):
        with pytest.raises(DivergedError, match="not finite"):
            attempt()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_do_not_matter_may_be_anything(bad: float) -> None:
    rule = DropGrow(scores.magnitude, scores.gradient, 0.5)
    e = entries([1.0, 2.0, bad], [1, 1, 0], [1.0, bad, 3.0])  # entry 1 is kept, entry 2 is not active
    assert rule.rewire([e], [2], FREE, 1)[0].int().tolist() == [0, 1, 1]


def test_drop_ranks_the_active_only() -> None:
    """Active scores may all be below what inactive entries would get."""
    e = Entries(
        torch.tensor([-3.0, -1.0, -2.0, 0.0, 0.0]),
        torch.tensor([1, 1, 1, 0, 0], dtype=torch.bool),
        grad=torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]),
        sign=torch.ones(5),
    )
    (mask,) = DropGrow(scores.sign_flip, scores.gradient, 0.34).rewire([e], [3], FREE, 1)
    assert mask.int().tolist() == [0, 1, 1, 0, 1]
