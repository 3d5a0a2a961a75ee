"""Exact counts and valid structures after each of many rewirings, under every rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.topology import (
    NM,
    Adaptive,
    Below,
    DropGrow,
    Entries,
    FanIn,
    FanInDropGrow,
    PruneThen,
    Rule,
    Select,
    Static,
    Structure,
    Unstructured,
    mean_gradient,
    mean_momentum,
    own,
    quota,
    scores,
    survivors,
)

FREE = Unstructured()
SHAPES = [(4, 8), (3, 4), (2, 16)]
COARSE = torch.tensor([0.0, 0.0, 0.0, 0.5, -0.5, 1.0, -1.0])  # many exact zeros, tied scores

MAGNITUDE = DropGrow(scores.magnitude, scores.gradient, 0.4)
RULES: dict[str, Rule] = {
    "static": Static(),
    "select": Select(),
    "select saliency": Select(scores.saliency),
    "gradient": MAGNITUDE,
    "random": DropGrow(scores.magnitude, scores.random, 0.3),
    "all": DropGrow(scores.magnitude, scores.random, 1.0),
    "signed": DropGrow(scores.signed_magnitude, scores.random, 0.3),
    "signed, all": DropGrow(scores.signed_magnitude, scores.random, 1.0),
    "grace": replace(MAGNITUDE, grace=3),
    "signed, grace": DropGrow(scores.signed_magnitude, scores.random, 0.3, grace=2),
    "no revival": replace(MAGNITUDE, revive=False),
    "momentum": DropGrow(scores.momentum, scores.momentum, 0.4),
    "crossing": DropGrow(scores.sign_flip, scores.random, threshold=Below(0.0), revive=False),
    "below": DropGrow(scores.magnitude, scores.gradient, threshold=Below(0.7)),
    "below everything": DropGrow(scores.magnitude, scores.gradient, threshold=Below(9.0)),
    "adaptive": DropGrow(scores.magnitude, scores.random, threshold=Adaptive(0.2, 0.1), grace=2, revive=False),
    "prune first": PruneThen(MAGNITUDE),
    "prune first, signed": PruneThen(DropGrow(scores.signed_magnitude, scores.random, 0.3)),
}


@quota()
def backwards(group: Sequence[Entries], dropped: Sequence[int], kept: Sequence[Tensor]) -> Sequence[int]:
    """More for earlier weights, nothing for the last."""
    return list(range(len(group) - 1, -1, -1))


QUOTAS = [own, survivors, mean_momentum, mean_gradient, backwards]
ACROSS: dict[str, Rule] = RULES | {
    f"{name}, {shares.name}": replace(rule, quota=shares)
    for name in ("gradient", "all", "signed, all", "signed, grace", "crossing", "adaptive")
    if isinstance(rule := RULES[name], DropGrow)
    for shares in QUOTAS
}


class Weights:
    """A group of weights whose values, gradients and momenta are drawn anew, coarsely, before each rewiring."""

    def __init__(self, seed: int, counts: Sequence[int], shapes: Sequence[tuple[int, ...]], structure: Structure):
        self.generator, self.shapes, self.step = torch.Generator().manual_seed(seed), shapes, 0
        self.active = [
            structure.select([torch.rand(shape, generator=self.generator)], n)[0]
            for shape, n in zip(shapes, counts, strict=True)
        ]
        self.born = [torch.zeros(shape, dtype=torch.int64) for shape in shapes]

    def entries(self) -> list[Entries]:
        self.step += 1
        made = []
        for shape, active, born in zip(self.shapes, self.active, self.born, strict=True):
            w, g, m = COARSE[torch.randint(0, len(COARSE), (3, *shape), generator=self.generator)]
            sign = torch.where(torch.rand(shape, generator=self.generator) < 0.5, 1, -1)
            values: dict[str, Any] = {"grad": g, "momentum": m, "sign": sign, "age": self.step - born}
            made.append(Entries(torch.where(active, w, 0.0), active, generator=self.generator, **values))
        return made

    def assign(self, masks: Sequence[Tensor]) -> None:
        self.born = [
            torch.where(mask & ~old, self.step, born)
            for mask, old, born in zip(masks, self.active, self.born, strict=True)
        ]
        self.active = list(masks)


def held(masks: Sequence[Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks]


@pytest.mark.parametrize("rule", ACROSS)
@settings(deadline=None, max_examples=2)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.05, 0.3, 0.9, 1.0]))
def test_the_total_is_exact_after_each_of_200_rewirings(rule: str, seed: int, density: float) -> None:
    """Reference page, section 11, tests 1 and 2, over the whole group; and no weight is ever left empty."""
    counts = [max(1, round(density * math.prod(shape))) for shape in SHAPES]
    weights, memory = Weights(seed, counts, SHAPES, FREE), {}
    for step in range(200):
        masks = ACROSS[rule].rewire(weights.entries(), counts, FREE, step, memory)
        assert sum(held(masks)) == sum(counts)
        assert min(held(masks)) >= 1
        weights.assign(masks)


STRUCTURES: dict[str, tuple[Structure, int]] = {
    "unstructured": (FREE, 11),
    "fan-in": (FanIn(), 11),
    "fan-in, exact": (FanIn(exact=True), 12),
    "2:4": (NM(2, 4), 16),
}


FIT = [
    (structure, name)
    for structure in STRUCTURES
    for name, rule in RULES.items()
    if not getattr(rule, "threshold", None) and (structure != "2:4" or isinstance(rule, Select | Static))
]


@pytest.mark.parametrize(("structure", "rule"), FIT)
def test_count_and_structure_of_one_weight_after_each_of_200_rewirings(structure: str, rule: str) -> None:
    kind, count = STRUCTURES[structure]
    weights = Weights(0, [count], [(4, 8)], kind)
    for step in range(200):
        masks = RULES[rule].rewire(weights.entries(), [count], kind, step, {})
        assert held(masks) == [count]
        assert kind.is_valid(masks[0])
        weights.assign(masks)


@pytest.mark.parametrize("min_salient", [0.0, 0.3, 1.0, 2])
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10**6), fan_in=st.integers(1, 12))
def test_constant_fan_in_after_each_of_200_rewirings(min_salient: float, seed: int, fan_in: int) -> None:
    """All neurons that have inputs have as many; at most the budget, and as much of it as divides."""
    rule, structure = FanInDropGrow(MAGNITUDE, min_salient), FanIn(exact=True)
    weights = Weights(seed, [6 * fan_in], [(6, 3, 2, 2)], structure)
    for step in range(200):
        (mask,) = rule.rewire(weights.entries(), [6 * fan_in], structure, step)
        alive = int(mask.flatten(1).any(1).sum())
        assert structure.is_valid(mask)
        assert int(mask.sum()) == alive * min(6 * fan_in // alive, 12) <= 6 * fan_in
        assert alive >= math.ceil(6 * fan_in / 12)
        weights.assign([mask])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.33, 0.5, 1.0])
@pytest.mark.parametrize("shares", [None, own, survivors])
def test_asked_for_a_share_dropped_exactly_that(fraction: float, shares: Any) -> None:
    """Each weight its own share with a quota, all of them together without; rounded down."""
    weights = Weights(1, [12, 5, 10], SHAPES, FREE)
    rule = DropGrow(scores.momentum, scores.random, fraction, quota=shares, revive=False)
    for step in range(20):
        entries = weights.entries()
        masks = rule.rewire(entries, [sum(held(weights.active)) // 3] * 3, FREE, step)
        gone = [int((e.active & ~mask).sum()) for e, mask in zip(entries, masks, strict=True)]
        sizes = [int(e.active.sum()) for e in entries]
        if shares is None:
            assert sum(gone) == min(math.floor(fraction * sum(sizes)), sum(sizes) - len(sizes))
        else:
            assert gone == [min(math.floor(fraction * n), n - 1) for n in sizes]
        weights.assign(masks)
