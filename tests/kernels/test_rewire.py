"""What a rewiring does to long lists, along every path, against plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer import exchange
from gossamer.kernels import rewire, screen, sparse
from gossamer.topology import DropGrow, Entries, Unstructured, scores

from .forcing import NATIVE, PATHS, forced, index_bytes, numbers, some_positions

native_only = pytest.mark.skipif(not NATIVE, reason="the native library is not built")
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 90)) | st.sampled_from([(1, 1), (1100, 70), (3, 4200), (2100, 9)])
DENSITIES = st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0])


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with forced(request.param):
        yield request.param


@given(shape=SHAPES, density=DENSITIES, seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_ascending_undoes_the_order_of_an_index(shape: tuple[int, int], density: float, seed: int) -> None:
    flat = some_positions(*shape, density, seed)
    for each in PATHS:
        with forced(each):
            index, order = sparse.build(flat, shape)
            found, place = rewire.ascending(index, len(flat))
            assert torch.equal(found, flat)
            assert torch.equal(place, order.argsort())


@given(shape=SHAPES, density=st.tuples(DENSITIES, DENSITIES), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_every_entry_is_followed_or_newborn(shape: tuple[int, int], density: tuple[float, float], seed: int) -> None:
    before, after = (some_positions(*shape, each, seed + i) for i, each in enumerate(density))
    for each in PATHS:
        with forced(each):
            index, _ = sparse.build(before, shape)
            _, order = sparse.build(after, shape)
            source, stored = rewire.sources(rewire.ascending(index, len(before)), after, order), after[order]
            held = rewire.carried(sparse.positions(index, len(before)), source, -1)
            assert torch.equal(held, stored.where(torch.isin(stored, before), torch.tensor(-1)))
            place = torch.arange(len(before)).float()  # float32 has a way of its own
            assert torch.equal(rewire.carried(place, source, -1.0), source.float())


@given(first=st.sets(st.integers(0, 60)), second=st.sets(st.integers(0, 60)))
@settings(max_examples=40, deadline=None)
def test_lists_merge_in_order(first: set[int], second: set[int]) -> None:
    lists = [torch.tensor(sorted(each), dtype=torch.int64) for each in (first, second - first)]
    both = torch.tensor(sorted(first | second), dtype=torch.int64)
    for each in PATHS:
        with forced(each):
            assert torch.equal(rewire.union(*lists), both)
            assert [both[places].tolist() for places in rewire.merge(*lists)] == [part.tolist() for part in lists]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_above_a_limit(path: str, dtype: torch.dtype) -> None:
    score = numbers(1003, seed=1).to(dtype)
    active = some_positions(1, 1003, 0.3, 2)
    wanted = torch.tensor([i for i in range(1003) if score[i] > 0.5 and i not in set(active.tolist())])
    found = rewire.above(score, 0.5, active)
    assert found is not None
    assert torch.equal(found, wanted)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        assert rewire.above(score.index_fill(0, torch.tensor([700]), wrong), 0.5, active) is None


# -- products that are not kept --


@native_only
@given(shape=SHAPES, density=st.tuples(DENSITIES, DENSITIES), kept=DENSITIES, seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_an_exchange_makes_the_index_of_what_stays_and_comes(
    shape: tuple[int, int], density: tuple[float, float], kept: float, seed: int
) -> None:
    before, others = (some_positions(*shape, each, seed + i) for i, each in enumerate(density))
    born = others[~torch.isin(others, before)]
    with forced(NATIVE[0]):
        index, _ = sparse.build(before, shape)
        stored = sparse.positions(index, len(before))
        stays = torch.rand(len(before), generator=torch.Generator().manual_seed(seed)) < kept
        after = torch.cat([stored[stays], born]).sort().values
        size = index_bytes(index, shape, len(after))
        found = rewire.exchange(index, stays, born, len(after), size)
        assert found is not None
        made, source = found
        if sparse.block_of(index) == sparse.blocks(shape, len(after)):
            wanted, order = sparse.build(after, shape)
            assert torch.equal(made, wanted)
            assert torch.equal(source, rewire.sources((before, stored.argsort()), after, order))
        sparse.check(made, shape, len(after))
        assert torch.equal(sparse.positions(made, len(after)).sort().values, after)


@given(shape=SHAPES, density=DENSITIES, seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_row_of_an_entry(shape: tuple[int, int], density: float, seed: int) -> None:
    flat = some_positions(*shape, density, seed)
    if not len(flat):
        return
    for each in PATHS:
        with forced(each):
            index, _ = sparse.build(flat, shape)
            stored, place = sparse.positions(index, len(flat)), seed % len(flat)
            row, columns, places = rewire.row_of(index, len(flat), place, shape[1])
            assert row == int(stored[place]) // shape[1]
            assert torch.equal(row * shape[1] + columns, flat[flat // shape[1] == row])
            assert torch.equal(stored[places], row * shape[1] + columns)


def product(rows: int, columns: int, samples: int, seed: int) -> tuple[screen.Product, Tensor]:
    left, right = numbers(rows, samples, seed=seed), numbers(columns, samples, seed=seed + 1)
    left, right = left * numbers(rows, 1, seed=seed + 2).exp(), right * (numbers(columns, 1, seed=seed + 3) > -1)
    made = screen.Product(left.float(), right.float())
    return made, (made.left.double() @ made.right.double().t()).view(-1)


@native_only
@given(
    shape=SHAPES,
    samples=st.sampled_from([1, 7, 16, 32, 50, 128]),
    density=DENSITIES,
    share=st.floats(0.001, 0.9),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_no_large_entry_is_missed(
    shape: tuple[int, int], samples: int, density: float, share: float, seed: int
) -> None:
    made, exact = product(*shape, samples, seed)
    known = some_positions(*shape, density, seed)
    limit = float(exact.abs().quantile(1 - share))
    for each in NATIVE:
        with forced(each), pytest.MonkeyPatch.context() as patch:
            patch.setattr(screen, "TILE", 700)
            found = made.beyond(limit, sparse.build(known, shape)[0], made.size)
            if found is None:
                assert limit < 1e-30
                continue
            assert torch.equal(found, found.unique()), "ascending"
            large = (exact.abs() > limit * (1 + 1e-5)).nonzero().view(-1)
            assert torch.isin(large[~torch.isin(large, known)], found).all()
            assert not torch.isin(found, known).any()
            scale = made.left.norm(dim=1).max() * made.right.norm(dim=1).max()
            assert torch.allclose(made.at(found).double(), exact[found], rtol=1e-5, atol=1e-6 * float(scale))
            assert (exact[found].abs() >= limit - 0.03 * float(scale)).all(), "near at least"


@native_only
def test_a_screening_that_cannot_tell_says_so() -> None:
    made, _ = product(30, 40, 16, seed=3)
    none = sparse.build(torch.empty(0, dtype=torch.int64), (30, 40))[0]
    assert made.beyond(1e-9, none, 100) is None, "too many"
    assert made.beyond(0.0, none, made.size) is None
    for wrong in (torch.nan, torch.inf, 3e38):
        left = made.left.index_fill(0, torch.tensor([2]), wrong)
        assert screen.Product(left, made.right).beyond(1.0, none, made.size) is None


@native_only
def test_a_sample_is_spread_evenly() -> None:
    made, exact = product(600, 530, 16, seed=4)
    assert torch.allclose(made.sample().double(), exact.view(600, 530)[::2, ::2].reshape(-1), atol=1e-4)


# -- the exchange as a whole --


def after(index: Tensor, kept: Tensor, born: Tensor) -> Tensor:
    return torch.cat([sparse.positions(index, len(kept))[kept], born]).sort().values


@native_only
@given(
    shape=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    density=st.floats(0.05, 0.6),
    fraction=st.floats(0.05, 1),
    more=st.integers(-3, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_an_exchange_is_what_the_rule_chooses_among_all_entries(
    shape: tuple[int, int], density: float, fraction: float, more: int, seed: int
) -> None:
    # Whole numbers, so that every product is exact, and large ones, so that few are alike.
    left, right = ((numbers(size, 32, seed=seed + i) * 50).round().float() for i, size in enumerate(shape))
    flat = some_positions(*shape, density, seed)
    if len(flat) + more < 1 or len(flat) + more > shape[0] * shape[1]:
        return
    rule, total = DropGrow(scores.magnitude, scores.gradient, fraction), len(flat) + more
    dense = left @ right.t()
    active = torch.zeros(shape, dtype=torch.bool).view(-1).index_fill(0, flat, True).view(shape)
    weight = (numbers(*shape, seed=seed + 7) * 20).round().float() * active  # with ties
    (wanted,) = rule.rewire([Entries(weight, active, dense)], [total], Unstructured(), 1)

    index, order = sparse.build(flat, shape)
    values, gradient = weight.view(-1)[flat[order]], dense.view(-1)[flat[order]]
    gone = exchange.dropped(rule, Unstructured(), len(flat), total, 1)
    if gone is None:
        return
    found = exchange.exchanged(index, values, gradient, screen.Product(left, right), gone, total)
    if found is not None:
        assert torch.equal(after(index, *found), wanted.view(-1).nonzero().view(-1))


@native_only
def test_an_exchange_of_many_entries_is_decided() -> None:
    left, right = (numbers(size, 32, seed=i).float() for i, size in enumerate((700, 900)))
    flat = some_positions(700, 900, 0.05, 1)
    index, _ = sparse.build(flat, (700, 900))
    values = numbers(len(flat), seed=5).float()
    dense = (left @ right.t()).view(-1)
    gradient, product = dense[sparse.positions(index, len(flat))], screen.Product(left, right)
    found = exchange.exchanged(index, values, gradient, product, len(flat) // 3, len(flat))
    assert found is not None
    assert len(after(index, *found)) == len(flat)
    assert not torch.isin(grown := found[1], flat).any()
    assert float(dense[grown].abs().min()) > float(dense.abs().quantile(0.97))
