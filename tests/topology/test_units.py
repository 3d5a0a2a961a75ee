"""Blocks and channels: whole units, exact counts with edges, the best of them, and dropping whole ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError, DivergedError
from gossamer.topology import Block, Channels, DropGrow, Entries, Units, Unstructured, scores

KINDS: list[Units] = [
    Block(2),
    Block(3, 2),
    Block(4, 1, p=2.0),
    Block(1, p=1.0),
    Channels(),
    Channels("inputs", math.inf),
]
SHAPES = st.sampled_from([(4, 6), (5, 7), (3, 4, 2), (2, 5, 3, 3), (1, 9), (7, 1)])
IDS = [kind.name for kind in KINDS]


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def unit_masks(kind: Units, shape: tuple[int, ...]) -> list[Tensor]:
    """The mask of every unit, written down from the definition; by the index of the first entry."""
    found = []
    if isinstance(kind, Channels):
        for channel in range(shape[0 if kind.axis == "outputs" else 1]):
            mask = torch.zeros(shape, dtype=torch.bool)
            (mask if kind.axis == "outputs" else mask.transpose(0, 1))[channel] = True
            found.append(mask)
        return found
    assert isinstance(kind, Block)
    height, width = kind.shape
    for row, column in itertools.product(range(0, shape[0], height), range(0, shape[1], width)):
        for position in itertools.product(*map(range, shape[2:])):
            mask = torch.zeros(shape, dtype=torch.bool)
            at: tuple[slice | int, ...] = (slice(row, row + height), slice(column, column + width), *position)
            mask[at] = True
            found.append(mask)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@settings(deadline=None, max_examples=15)
@given(shape=SHAPES, seed=st.integers(0, 1000), share=st.floats(0.01, 1))
def test_whole_units_in_the_order_of_their_scores(kind: Units, shape: tuple[int, ...], seed: int, share: float) -> None:
    """Exactly the count; from the best unit down, each with which the count can still be met."""
    units, values, active = unit_masks(kind, shape), drawn(shape, seed), drawn(shape, seed + 1) < 0.5
    sizes = [int(unit.sum()) for unit in units]
    sums = {0}
    for size in sizes:
        sums |= {total + size for total in sums}
    wanted = max(1, round(share * math.prod(shape)))
    count = kind.round(wanted, shape)
    assert count in sums - {0}
    assert abs(count - wanted) == min(abs(total - wanted) for total in sums - {0})
    (mask,) = kind.select([values], count, [active])
    assert int(mask.sum()) == count
    assert kind.is_valid(mask)
    score = {i: float((values.double()[unit] ** kind.p).sum()) for i, unit in enumerate(units)}
    if kind.p == math.inf:
        score = {i: float(values[unit].max()) for i, unit in enumerate(units)}
    order, left, expected = sorted(score, key=lambda i: (-score[i], i)), count, torch.zeros(shape, dtype=torch.bool)
    for place, i in enumerate(order):
        below = {0}
        for j in order[place + 1 :]:
            below |= {total + sizes[j] for total in below}
        if left - sizes[i] in below:
            expected |= units[i]
            left -= sizes[i]
    assert torch.equal(mask, expected)


@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, seed=st.integers(0, 1000), share=st.floats(0, 1), ties=st.booleans())
def test_blocks_of_one_are_unstructured(shape: tuple[int, ...], seed: int, share: float, ties: bool) -> None:
    values = drawn(shape, seed)
    values, active = (values * 3).floor() if ties else values, drawn(shape, seed + 1) < 0.5
    count = round(share * values.numel())
    (mask,) = Block(1).select([values], count, [active])
    assert torch.equal(mask, Unstructured().select([values], count, [active])[0])
    assert torch.equal(
        Block(1).keep(values, mask, count // 2), Unstructured().select([values.where(mask, -1)], count // 2)[0]
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.p == math.inf], ids=lambda kind: kind.name)
def test_the_largest_entry_depends_on_order_alone(kind: Units) -> None:
    values = drawn((6, 8, 3, 3), 0) - 0.5
    count = kind.round(200, values.shape)
    for same in (values.exp(), values.double() * 7 - 3):
        assert torch.equal(kind.select([values], count)[0], kind.select([same], count)[0])


def test_permuted_blocks() -> None:
    values, order = drawn((8, 12), 0), torch.tensor([2, 0, 1])
    mask = Block(4).select([values], 48)[0]
    moved = values.view(8, 3, 4)[:, order].reshape(8, 12)
    assert torch.equal(Block(4).select([moved], 48)[0], mask.view(8, 3, 4)[:, order].reshape(8, 12))


def test_norms_and_signs() -> None:
    values = torch.tensor([[3.0, 0.0, 2.0, 2.0], [-9.0, 8.0, 0.0, 0.0]])
    assert Block(1, 2).select([values], 2)[0].int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
    assert Block(1, 2, p=1.0).select([values], 2)[0].int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert Block(1, 2, p=2.0).select([values], 2)[0].int().tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert Block(1, 2, p=2.0).select([torch.full((1, 4), 1e30)], 2)[0].int().tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("p", [1.0, math.inf])
def test_infinities_force(p: float) -> None:
    """One +inf forces a unit in; out it is only if all of it is at -inf."""
    values = torch.tensor([[1.0, -math.inf, 5.0, 5.0, 0.0, math.inf, -math.inf, -math.inf]])
    masks = [Block(1, 2, p).select([values], count)[0].view(-1)[::2].int().tolist() for count in (2, 4, 6)]
    assert masks == [[0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0]]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), fraction=st.floats(0, 1), shape=SHAPES, kind=st.sampled_from(KINDS))
def test_drop_and_grow_move_whole_units(seed: int, fraction: float, shape: tuple[int, ...], kind: Units) -> None:
    """The count stays, at most floor(phi n) are dropped, and what was kept stays."""
    weight, grad = drawn(shape, seed) + 0.1, drawn(shape, seed + 2)
    count = kind.round(math.prod(shape) // 2, shape)
    (active,) = kind.select([drawn(shape, seed + 3)], count)
    entries = Entries(weight * active, active, grad=grad)
    rule = DropGrow(scores.magnitude, scores.gradient, fraction)
    kept = kind.keep(weight, active, count - math.floor(fraction * count))
    (mask,) = rule.rewire([entries], [count], kind, 1)
    assert kind.is_valid(mask)
    assert kind.is_valid(kept)
    assert int(mask.sum()) == count
    assert int((active & ~kept).sum()) <= math.floor(fraction * count)
    assert bool((mask | ~kept).all())


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Block: rows = 0"):
        Block(0)
    with pytest.raises(ConfigError, match=r"Block: columns = 1.5"):
        Block(4, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="p = 0"):
        Block(4, p=0)
    with pytest.raises(ConfigError, match="the norm that a unit is scored by"):
        Channels(p=math.nan)
    with pytest.raises(ConfigError, match="axis is 'rows'"):
        Channels("rows")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cannot select 5 entries in whole units \(block 2\) .* possible is 4"):
        Block(2).select([torch.rand(4, 4)], 5)
    with pytest.raises(ConfigError, match=r"block 2 needs weights \(out, in, ...\), got shape \(8,\)"):
        Block(2).round(4, (8,))
    with pytest.raises(ConfigError, match="block 2 is a property of one weight, got 2"):
        Block(2).select([torch.rand(4, 4)] * 2, 4)
    with pytest.raises(DivergedError, match="NaN"):
        Block(2).select([torch.full((4, 4), math.nan)], 4)
    with pytest.raises(DivergedError, match="NaN"):
        Block(2).keep(torch.full((4, 4), math.nan), torch.ones(4, 4, dtype=torch.bool), 4)
    assert not Block(2).is_valid(torch.tensor([[True, False], [True, True]]))
    assert [Block(16).name, Block(8, 1, 2.0).name, Channels("inputs").name] == [
        "block 16",
        "block 8x1 by 2-norm",
        "input channels by 1-norm",
    ]


@pytest.mark.parametrize("kind", [Block(10**12), Block(10**12, 2), Block(2, 10**12, p=2.0)], ids=lambda kind: kind.name)
def test_units_larger_than_the_weight_end_where_it_ends(kind: Block) -> None:
    shape = (3, 5, 2)
    scores, clipped = drawn(shape, 0), Block(min(kind.shape[0], 3), min(kind.shape[1], 5), p=kind.p)
    count = clipped.round(15, shape)
    assert kind.round(15, shape) == count
    mask = kind.select([scores], count)[0]
    assert torch.equal(mask, clipped.select([scores], count)[0])
    assert kind.is_valid(mask)
    assert torch.equal(kind.keep(scores, mask, count), mask)


@pytest.mark.parametrize(("p", "scale"), [(100.0, 1e-6), (20.0, 1e30), (2.0, 1e-200), (3.0, 1e150)])
def test_high_norms_neither_overflow_nor_vanish(p: float, scale: float) -> None:
    """Units rank the same in another measure; the largest entry of each is what their powers are taken relative to."""
    scores = drawn((8, 8), 0).double() * torch.logspace(-3, 0, 8, dtype=torch.float64)
    kind = Block(2, p=p)
    assert torch.equal(kind.select([scores * scale], 16)[0], kind.select([scores], 16)[0])
    found = kind._scores(scores * scale)[..., 0]
    wanted = scores.view(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(4, 4, 4).norm(p=p, dim=2) * scale
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
