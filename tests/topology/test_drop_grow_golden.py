"""Quotas, thresholds, grace, revival, pruning first, constant fan-in: values worked out by hand, and refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.errors import ConfigError, DivergedError
from gossamer.topology import (
    Adaptive,
    Below,
    DropGrow,
    Entries,
    FanIn,
    FanInDropGrow,
    PruneThen,
    Select,
    Unstructured,
    mean_gradient,
    mean_momentum,
    own,
    scores,
    survivors,
)

FREE = Unstructured()
MAGNITUDE = DropGrow(scores.magnitude, scores.gradient, 0.4)


def held(masks: Sequence[Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks]


def line(weight: Sequence[float], n_active: int, **fields: Any) -> Entries:
    """The first entries are active."""
    w = torch.tensor(weight)
    named = {key: torch.tensor(value) for key, value in fields.items()}
    generator = torch.Generator().manual_seed(1)
    return Entries(w, torch.arange(len(w)) < n_active, generator=generator, **named)


def some(below: int, above: int, room: int, **fields: Any) -> Entries:
    """A weight with so many active entries of 0.1 and of 1.0."""
    return line([0.1] * below + [1.0] * above + [0.0] * room, below + above, **fields)


def test_dsr_golden() -> None:
    """Dropped (5, 15), remaining (60, 20): growth (15, 5); N = 16, delta = .1: 20 > 17.6, so H halves."""
    group = [some(5, 60, 100), some(15, 20, 100)]
    threshold, memory = Adaptive(16, start=0.5), {}
    rule = DropGrow(scores.magnitude, scores.random, threshold=threshold, quota=survivors, revive=False)
    masks = rule.rewire(group, [65, 35], FREE, 1, memory)
    assert held(masks) == [75, 25]
    assert memory == {"threshold": 0.25}
    for entries, mask in zip(group, masks, strict=True):
        dropped = entries.weight.abs() == torch.tensor(0.1)
        assert not (mask & dropped).any(), "not at positions just dropped"
        assert mask[entries.weight == 1.0].all()


@pytest.mark.parametrize(
    ("target", "expected"), [(16, 0.25), (19, 0.5), (22, 0.5), (23, 1.0), (0.16, 0.25), (0.3, 1.0)]
)
def test_the_threshold_halves_and_doubles_outside_the_tolerance(target: float, expected: float) -> None:
    memory: dict[str, float] = {}
    Adaptive(target, start=0.5).adapt(20, 100, memory)
    assert memory == {"threshold": expected}


def test_the_threshold_never_leaves_the_finite_numbers() -> None:
    threshold, memory = Adaptive(10), {}
    for _ in range(3000):
        threshold.adapt(100, 200, memory)
    assert threshold.value(memory) > 0
    for _ in range(3000):
        threshold.adapt(0, 200, memory)
    assert threshold.value(memory) < math.inf


def momenta(values: Sequence[float], n_active: int, room: int) -> Entries:
    """A weight with the given mean momentum on its active entries."""
    active = torch.arange(n_active + room) < n_active
    moment = (
        torch.where(active, values[0], values[1])
        * torch.tensor([1.0, -1.0]).repeat((n_active + room + 1) // 2)[: n_active + room]
    )
    return Entries(torch.linspace(1, 2, n_active + room) * active, active, momentum=moment)


@pytest.mark.parametrize(("room", "expected"), [(100, (30, 10)), (0, (20, 20))])
def test_snfs_golden(room: int, expected: tuple[int, int]) -> None:
    """Shares (.75, .25) of 40: (30, 10); if the first weight holds 20 only, the other takes the excess: (20, 20)."""
    group = [momenta((0.75, 0.1), 40, room), momenta((0.25, 0.1), 40, 100)]
    rule = DropGrow(scores.magnitude, scores.momentum, 0.5, quota=mean_momentum)
    assert held(rule.rewire(group, [40, 40], FREE, 1)) == [20 + n for n in expected]


def test_shares_by_gradient_and_growth_where_there_is_no_share() -> None:
    group = [some(2, 2, 9, grad=[3.0] * 13), some(2, 2, 9, grad=[1.0] * 13)]
    rule = DropGrow(scores.magnitude, scores.gradient, 0.5, quota=mean_gradient)
    assert held(rule.rewire(group, [4, 4], FREE, 1)) == [5, 3]
    still = [some(2, 2, 9, grad=[0.0] * 13), some(2, 2, 20, grad=[0.0] * 24)]
    assert held(rule.rewire(still, [4, 4], FREE, 1)) == [3, 5]  # by room


def test_deepr_drops_what_crossed_zero_and_nothing_else() -> None:
    e = line([0.1, -0.1, 0.0, 0.2, -0.0, 0.0, 0.0, 0.0], 5, sign=[1, 1, -1, -1, 1, 1, 1, 1])
    rule = DropGrow(scores.sign_flip, scores.random, threshold=Below(0.0), revive=False)
    (mask,) = rule.rewire([e], [5], FREE, 1)
    assert mask[:5].tolist() == [True, False, True, False, True]
    assert int(mask[5:].sum()) == 2


def test_what_was_just_dropped_is_the_last_resort() -> None:
    e = line([3.0, 2.0, 1.0, 0.5, 0.0], 4, grad=[9.0, 9.0, 9.0, 9.0, 0.1])
    one = replace(MAGNITUDE, fraction=0.25, revive=False).rewire([e], [4], FREE, 1)[0]
    two = replace(MAGNITUDE, fraction=0.5, revive=False).rewire([e], [4], FREE, 1)[0]
    assert one.int().tolist() == [1, 1, 1, 0, 1]
    assert two.int().tolist() == [1, 1, 1, 0, 1]  # one place is free, one dropped entry comes back
    revived = replace(MAGNITUDE, fraction=0.25).rewire([e], [4], FREE, 1)[0]
    assert revived.int().tolist() == [1, 1, 1, 1, 0]


def test_grace_protects_the_young_and_drops_fewer_if_it_must() -> None:
    e = line([3.0, 0.1, 0.2, 1.0, 0.0, 0.0], 4, age=[9, 1, 1, 9, 0, 0], grad=[0.0, 0.0, 0.0, 0.0, 1.0, 2.0])
    old = replace(MAGNITUDE, fraction=0.5).rewire([e], [4], FREE, 1)[0]
    kind = replace(MAGNITUDE, fraction=0.5, grace=2).rewire([e], [4], FREE, 1)[0]
    kinder = replace(MAGNITUDE, fraction=0.75, grace=2).rewire([e], [4], FREE, 1)[0]
    over = replace(MAGNITUDE, fraction=0.5, grace=1).rewire([e], [4], FREE, 1)[0]
    assert old.int().tolist() == over.int().tolist() == [1, 0, 0, 1, 1, 1]
    assert kind.int().tolist() == kinder.int().tolist() == [0, 1, 1, 0, 1, 1]


def test_pruning_comes_first_over_all_weights_then_each_rewires_by_itself() -> None:
    """From 3 + 3 to 4 in all: .1 and .2 go; then each drops half of its own, rounded down, and regrows as many."""
    group = [
        line([0.1, 0.2, 3.0, 0.0], 3, grad=[0.0, 0.0, 0.0, 1.0]),
        line([2.0, 4.0, 5.0, 0.0, 0.0], 3, grad=[0.0, 0.0, 0.0, 0.5, 9.0]),
    ]
    masks = PruneThen(replace(MAGNITUDE, fraction=0.5)).rewire(group, [2, 2], FREE, 1)
    assert [mask.int().tolist() for mask in masks] == [[0, 0, 1, 0], [0, 1, 1, 0, 1]]


def test_srigl_golden() -> None:
    """3 neurons of 4 inputs, 6 active, fan-in 2, phi = 1/3: k = 2, salient are the 4 largest |w| and 2 largest |g|.

    Neuron 2 has none, so it is ablated; two are left, with a fan-in of 3, filled up by |g|.
    """
    weight = torch.tensor([[0.9, 0.8, 0.0, 0.0], [0.7, 0.6, 0.0, 0.0], [0.1, 0.2, 0.0, 0.0]])
    grad = torch.tensor([[0.0, 0.0, 5.0, 1.0], [0.0, 0.0, 2.0, 6.0], [0.0, 0.0, 1.0, 1.0]])
    e = Entries(weight, weight != 0, grad=grad)
    (mask,) = FanInDropGrow(replace(MAGNITUDE, fraction=1 / 3), 0.3).rewire([e], [6], FanIn(exact=True), 1)
    assert mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]


def test_an_ablated_neuron_may_revive_by_its_gradient() -> None:
    weight = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.0, 0.0, 0.0]])
    grad = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 2.0, 1.0]])
    e = Entries(weight, weight != 0, grad=grad)
    (mask,) = FanInDropGrow(replace(MAGNITUDE, fraction=1 / 3), 1).rewire([e], [6], FanIn(exact=True), 1)
    assert mask.int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 0]]


def test_competition_never_empties_a_weight_not_even_by_a_second_one() -> None:
    """Four places, the largest four in one weight: the others keep their best, one by one."""
    group = [line([0.1, 0.05], 2), line([0.5], 1), line([1.0, 2.0, 3.0, 4.0], 4)]
    masks = Select().rewire(group, [1, 1, 2], FREE, 1)
    assert [mask.int().tolist() for mask in masks] == [[1, 0], [1], [0, 0, 1, 1]]
    three = Select().rewire(group, [1, 1, 1], FREE, 1)
    assert held(three) == [1, 1, 1]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: DropGrow(scores.magnitude, scores.random), "give exactly one of them"),
        (lambda: DropGrow(scores.magnitude, scores.random, 0.3, threshold=Below()), "give exactly one of them"),
        (lambda: DropGrow(scores.magnitude, scores.random, 0.3, quota=lambda *a: [1]), "expected a Quota"),
        (lambda: DropGrow(scores.signed_magnitude, scores.random, threshold=Below()), "a threshold has none"),
        (lambda: DropGrow(scores.magnitude, scores.random, 0.3, grace=-1), "grace is a time"),
        (lambda: DropGrow(scores.magnitude, scores.random, 0.3, grace=1.5), "grace is a time"),
        (lambda: Adaptive(0), "target = 0"),
        (lambda: Adaptive(True), "target=True"),
        (lambda: Adaptive(1.0), "a share of the active ones"),
        (lambda: Adaptive(5, start=0.0), "a threshold above 0"),
        (lambda: Adaptive(5, tolerance=1.0), "a tolerance in"),
        (lambda: FanInDropGrow(replace(MAGNITUDE, quota=own)), "drop, grow and fraction alone"),
        (lambda: FanInDropGrow(replace(MAGNITUDE, grace=1)), "drop, grow and fraction alone"),
        (lambda: FanInDropGrow(MAGNITUDE, 1.5), "min_salient = 1.5"),
        (lambda: FanInDropGrow(MAGNITUDE, True), "min_salient=True"),
        (lambda: FanInDropGrow(MAGNITUDE, 0), "min_salient = 0"),
    ],
)
def test_rules_that_cannot_be(build: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        build()
    assert "\n" not in str(error.value)


def test_times_that_are_fractions_of_training_are_resolved() -> None:
    rule = replace(MAGNITUDE, grace=0.1)
    assert rule.needs_total
    assert "age" in rule.needs
    assert rule.resolve(50).grace == 5
    assert PruneThen(rule).resolve(50).rule.grace == 5
    assert PruneThen(rule).needs_total
    assert FanInDropGrow(MAGNITUDE).resolve(50) == FanInDropGrow(MAGNITUDE.resolve(50))


def test_momenta_that_are_not_finite_are_no_shares() -> None:
    bad = some(2, 2, 2, momentum=[math.nan] * 6)
    rule = DropGrow(scores.magnitude, scores.random, 0.5, quota=mean_momentum)
    with pytest.raises(DivergedError, match="not finite"):
        rule.rewire([bad, some(2, 2, 2, momentum=[1.0] * 6)], [4, 4], FREE, 1)
