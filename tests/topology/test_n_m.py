"""N:M along either axis and transposable: valid, exact, the same on every path; golden tiles."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError, DivergedError
from gossamer.kernels.patterns import best_patterns, patterns
from gossamer.testing.oracles.patterns import all_patterns, best_of_90
from gossamer.topology import NM, transposable_gap
from gossamer.topology.structures.n_m import groups_of, tiles_of, untiled

TWO_D = NM(2, 4, transposable=True)
GOLDEN = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.4, 0.8, 0.7, 0.1], [0.2, 0.6, 0.1, 0.5], [0.3, 0.2, 0.9, 0.4]])
SEPARATING = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]])


def tiles_in_a_row(tiles: Tensor) -> Tensor:
    """(tiles, 4, 4) -> a weight (4, 4 tiles)."""
    return tiles.permute(1, 0, 2).reshape(4, -1)


def chosen(scores: Tensor, structure: NM = TWO_D, active: Tensor | None = None) -> Tensor:
    count = structure.round(scores.numel() * structure.n // structure.m, scores.shape)
    return structure.select([scores], count, None if active is None else [active])[0]


def test_the_ninety_patterns() -> None:
    assert torch.equal(patterns(), all_patterns() > 0)
    assert len({tuple(pattern.view(-1).tolist()) for pattern in patterns()}) == 90
    assert bool((patterns().sum(1) == 2).all() and (patterns().sum(2) == 2).all())


def test_golden_tiles() -> None:
    mask = chosen(GOLDEN)
    assert mask.int().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert float(GOLDEN[mask].sum()) == pytest.approx(5.0)
    assert float(GOLDEN[chosen(GOLDEN, NM(2, 4))].sum()) == pytest.approx(5.1)
    assert float(SEPARATING[chosen(SEPARATING)].sum()) == 6, "seven need a row of one, which is none of the 90"
    assert torch.equal(chosen(torch.zeros(4, 4)), patterns()[0])


def adversarial(kind: str, count: int, generator: torch.Generator) -> Tensor:
    """Tiles whose sums are exact in float32."""
    shape = (count, 4, 4)
    if kind == "random":
        return torch.randint(-(1 << 20) + 1, 1 << 20, shape, generator=generator).float()
    tiles = torch.randint(-1 if kind == "signs" else 0, 3 if kind == "ties" else 2, shape, generator=generator).float()
    if kind == "forced":
        u = torch.rand(shape, generator=generator)
        tiles = tiles.masked_fill(u < 0.2, math.inf).masked_fill(u > 0.75, -math.inf)
    return tiles


@pytest.mark.parametrize("scale", [1.0, 2.0**-149, 2.0**100], ids=["plain", "denormal", "huge"])
@pytest.mark.parametrize("kind", ["random", "ties", "zeros", "signs", "forced"])
def test_equals_brute_force(kind: str, scale: float) -> None:
    """On 120 000 tiles in all, with and without active entries; the reference and whatever `select` uses."""
    generator = torch.Generator().manual_seed(0)
    tiles = adversarial(kind, 8000, generator)
    held = patterns()[torch.randint(90, (8000,), generator=generator)]
    held[::3] = torch.rand(held[::3].shape, generator=generator) < 0.5  # no pattern
    for active in (None, held):
        expected = best_of_90(tiles, active)
        assert torch.equal(best_patterns(tiles * scale, active), expected)
        row = chosen(tiles_in_a_row(tiles * scale), active=None if active is None else tiles_in_a_row(active))
        assert torch.equal(row, tiles_in_a_row(expected))


def test_rounding_decides_only_what_rounding_can() -> None:
    """Of float32 numbers the sum is the largest to rounding, and the pattern the best one where that is clear."""
    tiles = torch.randn(20000, 4, 4, generator=torch.Generator().manual_seed(1)).abs()
    sums = tiles.double().view(-1, 16) @ patterns().view(90, 16).double().T
    first, second = sums.topk(2, dim=1).values.unbind(1)
    mask = best_patterns(tiles)
    kept = tiles.double().where(mask, 0.0).sum((1, 2))
    assert bool((kept >= first * (1 - 1e-6)).all())
    clear = second < first * (1 - 1e-6)
    assert torch.equal(mask[clear], patterns()[sums.argmax(1)][clear])
    assert int(clear.sum()) > 19900


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (2, 6), (4, 8)])
@settings(deadline=None, max_examples=10)
@given(rows=st.integers(1, 2), columns=st.integers(1, 3), kernel=st.sampled_from([(), (3, 3)]), seed=st.integers(0, 99))
def test_both_axes(n: int, m: int, rows: int, columns: int, kernel: tuple[int, ...], seed: int) -> None:
    """Transposable is valid along both axes; a permutation of tiles or of their rows permutes the mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand((rows * m, columns * m, *kernel), generator=generator)
    structure = NM(n, m, transposable=True)
    mask = chosen(scores, structure)
    assert structure.is_valid(mask)
    for axis in ("inputs", "outputs"):
        assert NM(n, m, axis=axis).is_valid(mask)
        assert bool((groups_of(mask, m, axis).sum(1) == n).all())
    assert torch.equal(chosen(scores.transpose(0, 1).contiguous(), structure), mask.transpose(0, 1)), (
        "w and its transpose"
    )
    order = torch.randperm(m, generator=generator)
    tiles = tiles_of(scores, m)[:, order]
    assert torch.equal(
        chosen(untiled(tiles, scores.shape), structure), untiled(tiles_of(mask, m)[:, order], mask.shape)
    )
    if n < m:
        swapped = mask.clone()
        swapped.view(-1)[0] ^= True
        assert not structure.is_valid(swapped)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_groups_of_outputs_are_those_of_inputs_transposed(seed: int) -> None:
    scores = torch.randint(0, 3, (8, 12, 3), generator=torch.Generator().manual_seed(seed)).float()
    along = chosen(scores.transpose(0, 1).contiguous(), NM(1, 4, axis="outputs"))
    assert torch.equal(along.transpose(0, 1), chosen(scores, NM(1, 4)))


@pytest.mark.parametrize("m", [3, 4])
def test_one_of_m_is_the_best_permutation(m: int) -> None:
    scores = torch.randn(30 * m, m, generator=torch.Generator().manual_seed(m))
    tiles = tiles_of(scores, m).double()
    mask = chosen(scores, NM(1, m, transposable=True))
    best = torch.stack([tiles[:, range(m), list(p)].sum(1) for p in itertools.permutations(range(m))]).amax(0)
    torch.testing.assert_close(tiles.where(tiles_of(mask, m), 0.0).sum((1, 2)), best, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (4, 8), (6, 8), (5, 10)])
def test_the_gap_of_the_best_is_nil(n: int, m: int) -> None:
    """By prices that prove it; a worse mask has the gap that it has."""
    structure = NM(n, m, transposable=True)
    scores = torch.rand(8 * m, 4 * m, generator=torch.Generator().manual_seed(n))
    best = chosen(scores, structure)
    assert transposable_gap(structure, scores, best) < (1e-6 if (n, m) == (2, 4) else 1e-11)
    other = chosen(scores.flip(0), structure)
    gap = 1 - float(scores[other].double().sum() / scores[best].double().sum())
    assert transposable_gap(structure, scores, other) == pytest.approx(gap, abs=1e-6)
    again = chosen(scores, structure, other)
    assert torch.equal(again, best), "wherever the search begins"


def test_infinities_force_in_the_general_search() -> None:
    scores = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    structure, mask = NM(4, 8, transposable=True), chosen(-scores, NM(4, 8, transposable=True))
    assert torch.equal(chosen(scores.masked_fill(mask, math.inf), structure), mask)
    assert torch.equal(chosen(scores.masked_fill(~mask, -math.inf), structure), mask)
    assert torch.equal(chosen(torch.zeros(8, 8), structure, mask), mask)


def test_what_is_refused() -> None:
    for shape, why in (
        ((6, 8), "output dimension 6"),
        ((8, 6), "input dimension 6"),
        ((8, 1, 3, 3), "input dimension 1"),
        ((8,), "no inputs and outputs"),
    ):
        with pytest.raises(ConfigError, match=f"2:4 transposable does not fit a weight of shape .*{why}; leave such"):
            TWO_D.round(24, shape)
        assert not TWO_D.is_valid(torch.ones(shape, dtype=torch.bool))
    for structure in (TWO_D, NM(4, 8, True), NM(2, 4), NM(1, 3, axis="outputs")):
        for shape in ((0, 24), (24, 0), (24, 24, 0)):
            for dtype in (torch.float32, torch.float64):
                (mask,) = structure.select([torch.empty(shape, dtype=dtype)], 0)
                assert mask.shape == shape
                assert structure.is_valid(mask)
    with pytest.raises(ConfigError, match="4 does not divide its output dimension 6"):
        NM(2, 4, axis="outputs").round(12, (6, 4))
    with pytest.raises(ConfigError, match="holds along both axes; leave axis='outputs' out"):
        NM(2, 4, True, "outputs")
    with pytest.raises(ConfigError, match="axis is 'rows'"):
        NM(2, 4, axis="rows")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="transposable = 1"):
        NM(2, 4, 1)  # type: ignore[arg-type]
    for structure in (TWO_D, NM(2, 4), NM(4, 8, True)):
        with pytest.raises(DivergedError, match="NaN"):
            structure.select([torch.full((8, 8), math.nan)], 32)
    with pytest.raises(ConfigError, match="it must have a transposable structure, given is 2:4"):
        transposable_gap(NM(2, 4), GOLDEN, chosen(GOLDEN))
    with pytest.raises(ConfigError, match="finite and not negative"):
        transposable_gap(TWO_D, -GOLDEN, chosen(GOLDEN))
    assert transposable_gap(TWO_D, torch.zeros(4, 4), chosen(GOLDEN)) == 0
