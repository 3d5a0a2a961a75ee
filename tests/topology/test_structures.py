"""Structures: exact counts, valid masks, the best of them, and stability."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError, DivergedError
from gossamer.topology import NM, FanIn, Structure, Unstructured, select_top

STRUCTURES: list[Structure] = [Unstructured(), FanIn()]
VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf, -math.inf])


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    n = rows * columns
    score = torch.tensor(draw(st.lists(VALUES, min_size=n, max_size=n))).view(rows, columns)
    active = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))).view(rows, columns)
    return score, active, draw(st.integers(0, n))


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
@settings(deadline=None)
@given(problem=problems())
def test_exact_valid_and_stable(problem: tuple[Tensor, Tensor, int], structure: Structure) -> None:
    score, active, count = problem
    assert structure.round(count, score.shape) == count
    (mask,) = structure.select([score], count, [active])
    assert mask.shape == score.shape
    assert int(mask.sum()) == count
    assert structure.is_valid(mask)
    (again,) = structure.select([score], count, [mask])  # ties go to the active: nothing moves
    assert torch.equal(again, mask)


@given(problem=problems())
@settings(deadline=None)
def test_unstructured_is_select_top(problem: tuple[Tensor, Tensor, int]) -> None:
    score, active, count = problem
    assert torch.equal(Unstructured().select([score], count, [active])[0], select_top([score], count, [active])[0])


@given(problem=problems())
@settings(deadline=None)
def test_fan_in_is_the_best_of_each_row(problem: tuple[Tensor, Tensor, int]) -> None:
    score, active, count = problem
    each, left = divmod(count, len(score))
    (mask,) = FanIn().select([score], count, [active])

    def order(row: int, column: int) -> tuple[float, bool, int]:
        return -float(score[row, column]), not bool(active[row, column]), column

    ranked = [sorted(range(score.shape[1]), key=lambda c, r=r: order(r, c)) for r in range(len(score))]
    expected = torch.zeros_like(active)
    for row, columns in enumerate(ranked):
        expected[row, columns[:each]] = True
    if left:
        rows = sorted(range(len(score)), key=lambda r: (*order(r, ranked[r][each])[:2], r))
        for row in rows[:left]:
            expected[row, ranked[row][each]] = True
    assert torch.equal(mask, expected)


def test_fan_in_of_convolution() -> None:
    score = torch.rand(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    (mask,) = FanIn().select([score], 44)
    assert sorted(mask.sum((1, 2, 3)).tolist()) == [5, 5, 5, 5, 6, 6, 6, 6]


def test_fan_in_validity() -> None:
    assert FanIn().is_valid(torch.tensor([[True, False], [True, True]]))
    assert not FanIn().is_valid(torch.tensor([[False, False], [True, True]]))


def test_fan_in_is_per_weight() -> None:
    with pytest.raises(ConfigError, match="one weight, got 2"):
        FanIn().select([torch.zeros(2, 2)] * 2, 2)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_bad_input(structure: Structure) -> None:
    with pytest.raises(ConfigError, match="cannot select 5"):
        structure.select([torch.zeros(2, 2)], 5)
    with pytest.raises(DivergedError, match="NaN"):
        structure.select([torch.tensor([[0.0, math.nan]])], 1)


def test_exact_fan_in_rounds_to_whole_rows() -> None:
    exact = FanIn(exact=True)
    assert [exact.round(n, (4, 6)) for n in (1, 5, 7, 9, 11, 24)] == [4, 4, 8, 8, 12, 24]
    assert FanIn().round(7, (4, 6)) == 7
    assert exact.is_valid(torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]]) > 0), "a row may be empty"
    assert not exact.is_valid(torch.tensor([[1, 1, 0], [0, 0, 1]]) > 0)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 8), (4, 4)])
@pytest.mark.parametrize("shape", [(3, 8), (1, 16), (5, 8, 3), (2, 8, 3, 3)])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), ties=st.booleans())
def test_groups_are_consecutive_inputs_of_one_output(
    n: int, m: int, shape: tuple[int, ...], seed: int, ties: bool
) -> None:
    """No group crosses an output or a kernel position; each has the best n, the active first in ties."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 3, shape, generator=generator).float() if ties else torch.rand(shape, generator=generator)
    active = torch.rand(shape, generator=generator) < 0.5
    count = math.prod(shape) * n // m
    (mask,) = NM(n, m).select([score], NM(n, m).round(count, shape), [active])
    assert NM(n, m).is_valid(mask)
    flat = [t.reshape(shape[0], shape[1], -1) for t in (mask, score, active)]
    for row in range(shape[0]):
        for position in range(flat[0].shape[2]):
            for start in range(0, shape[1], m):
                chosen, value, known = (t[row, start : start + m, position].tolist() for t in flat)
                order = sorted(range(m), key=lambda i: (-value[i], not known[i], i))
                assert [i for i in range(m) if chosen[i]] == sorted(order[:n])


def test_groups_that_do_not_fit() -> None:
    for shape in ((3, 6), (8,), (8, 1, 3, 3)):
        with pytest.raises(ConfigError, match=r"does not fit a weight of shape .*leave such weights out with targets"):
            NM(2, 4).round(3, shape)
    with pytest.raises(ConfigError, match=r"2:4 keeps 0.5 of every weight, 16 of shape \(4, 8\), but .* ask for 12"):
        NM(2, 4).round(12, (4, 8))
    with pytest.raises(ConfigError, match="use scope='layer'"):
        NM(2, 4).select([torch.rand(2, 4)] * 2, 8)
    assert not NM(1, 2).is_valid(torch.tensor([[True, True, False, False]]))
    assert NM(1, 2).is_valid(torch.tensor([[True, False, False, True]]))
