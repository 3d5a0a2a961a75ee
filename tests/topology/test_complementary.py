"""Complementary supports: the laws of structures, the invariants of groups, and with sparsify."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer
from gossamer import Method
from gossamer.errors import ConfigError
from gossamer.testing import StructureLaws
from gossamer.topology import Complementary, Select, Static, scores, select_top

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))


class TestComplementary(StructureLaws):
    def make(self) -> Complementary:
        return Complementary()


class TestComplementaryOfOddShapes(StructureLaws):
    shapes = ((5, 7), (4, 3, 3), (1, 5))

    def make(self) -> Complementary:
        return Complementary()


@settings(deadline=None)
@given(shape=SHAPES, asked=st.integers(1, 200), seed=st.integers(0, 1000))
def test_groups_share_out_the_inputs(shape: tuple[int, int, int], asked: int, seed: int) -> None:
    structure, n = Complementary(), shape[1] * shape[2]
    count = structure.round(asked, shape)
    (mask,) = structure.select([torch.rand(shape, generator=torch.Generator().manual_seed(seed))], count)
    assert int(mask.sum()) == count
    assert structure.is_valid(mask)
    size = math.prod(shape) // count
    for group in mask.reshape(shape[0], n).split(size):
        assert int(group.sum(0).max()) <= 1, "pairwise disjoint"
        if len(group) == size:
            assert bool((group.sum(0) == 1).all()), "their union is everything"
        assert set(group.sum(1).tolist()) <= {n // size, -(-n // size)}, "constant fan-in"


@settings(deadline=None, max_examples=30)
@given(shape=SHAPES, asked=st.integers(1, 200), seed=st.integers(0, 1000))
def test_it_is_the_greedy_set(shape: tuple[int, int, int], asked: int, seed: int) -> None:
    """Entry by entry in the order of `select_top`, whatever leaves a valid set possible."""
    structure, n = Complementary(), shape[1] * shape[2]
    count, generator = structure.round(asked, shape), torch.Generator().manual_seed(seed)
    score = torch.randint(-3, 4, shape, generator=generator).float()
    active = torch.rand(shape, generator=generator) < 0.5
    (mask,) = structure.select([score], count, [active])
    size = math.prod(shape) // count
    rows, known, found = (t.reshape(shape[0], n) for t in (score, active, mask))
    for first in range(0, shape[0], size):
        filters = range(first, min(first + size, shape[0]))
        pairs = [(f, p) for f in filters for p in range(n)]
        pairs.sort(key=lambda fp: (-float(rows[fp]), not bool(known[fp]), fp))
        chosen: set[tuple[int, int]] = set()
        spare = len(filters) * n // size - len(filters) * (n // size)
        for f, p in pairs:
            has = sum(f == g for g, _ in chosen)
            longer = sum(sum(g == h for h, _ in chosen) > n // size for g in filters)
            if any(p == q for _, q in chosen) or has > n // size or (has == n // size and longer >= spare):
                continue
            chosen.add((f, p))
        assert chosen == {(f, p) for f, p in pairs if bool(found[f, p])}


def test_counts_are_those_of_whole_groups() -> None:
    possible = [Complementary().round(n, (6, 10)) for n in (1, 7, 12, 13, 16, 17, 25, 44, 45, 46, 60)]
    assert possible == [6, 7, 12, 12, 15, 15, 30, 30, 60, 60, 60]
    with pytest.raises(ConfigError, match=r"cannot select 11 complementary entries .* possible is 12"):
        Complementary().select([torch.rand(6, 10)], 11)
    with pytest.raises(ConfigError, match="a property of one weight, got 2"):
        Complementary().select([torch.rand(2, 4)] * 2, 8)
    assert Complementary().round(0, (0, 4)) == 0


def test_validity_by_hand() -> None:
    good = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]]).bool()
    assert Complementary().is_valid(good)
    assert not Complementary().is_valid(good[[0, 2, 1, 3]]), "the groups are consecutive filters"
    uneven = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1]]).bool()
    assert not Complementary().is_valid(uneven)
    assert Complementary().is_valid(torch.tensor([[1, 0], [0, 1], [0, 1]]).bool()), "a last group of one filter"
    assert not Complementary().is_valid(torch.tensor([[1, 0], [0, 1], [1, 1]]).bool())


@pytest.mark.parametrize("rule", [Static(), Select()], ids=["static", "select"])
def test_with_sparsify(rule: Static | Select) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 4, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    clock = gossamer.topology.Clock(every=2)
    structure = Complementary()
    method = Method(
        name="own", density=0.2, allocation="uniform", init=scores.random, rule=rule, clock=clock, structure=structure
    )
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=5)
    for _ in range(5):
        model(torch.randn(4, 3, 4, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in (("0.weight", model[0].weight), ("3.weight", model[3].weight)):
        mask = sparsifier.supports[name].mask
        assert structure.is_valid(mask)
        assert int(mask.sum()) == mask.numel() // 5
        assert bool((parameter[~mask] == 0).all())
    unlike = select_top([torch.rand(20, 40)], 160)[0]
    assert not structure.is_valid(unlike)


def test_weights_without_entries() -> None:
    for shape in ((0, 4), (4, 0), (3, 0, 2)):
        for structure in (Complementary(), gossamer.topology.FanIn()):
            (mask,) = structure.select([torch.zeros(shape)], 0)
            assert mask.shape == shape
            assert structure.is_valid(mask)
    with pytest.raises(ConfigError, match="exact='true': expected True or False"):
        gossamer.topology.FanIn(exact="true")  # type: ignore[arg-type]
