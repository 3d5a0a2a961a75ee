"""The sparse index: native and reference agree byte for byte, it round-trips, and damaged bytes are refused."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.kernels import reference, sparse

from .forcing import NATIVE, PATHS, forced, some_positions

DENSITIES = [0.0, 0.003, 0.05, 0.3, 1.0]
SHAPES = [(1, 1), (1, 300), (300, 1), (33, 65), (64, 256), (1100, 70), (1025, 520)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_positions_come_back(shape: tuple[int, int], density: float, path: str) -> None:
    flat = some_positions(*shape, density, seed=sum(shape))
    with forced(path):
        index, order = sparse.build(flat, shape)
        sparse.check(index, shape, len(flat))
        assert torch.equal(sparse.positions(index, len(flat)), flat[order])
    assert torch.equal(order.sort().values, torch.arange(len(flat)))


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 1400),
    columns=st.integers(1, 300),
    density=st.sampled_from(DENSITIES),
    taps=st.sampled_from([1, 4, 9]),
    seed=st.integers(0, 99),
)
def test_native_and_reference_write_the_same_bytes(
    rows: int, columns: int, density: float, taps: int, seed: int
) -> None:
    shape = (rows, columns * taps)
    flat = some_positions(*shape, density, seed)
    with forced(NATIVE[0]):
        native = sparse.build(flat, shape, taps)
    with forced("reference"):
        plain = sparse.build(flat, shape, taps)
    assert torch.equal(native[0], plain[0])
    assert torch.equal(native[1], plain[1])


def test_blocks_of_every_size() -> None:
    flat = some_positions(37, 50, 0.4, seed=1)
    for blocks in [(1, 1), (37, 50), (5, 7), (36, 49), (64, 64)]:
        index, order = reference.build(flat, (37, 50), blocks)
        assert reference.check(index, (37, 50), len(flat)) == 0
        assert torch.equal(reference.positions(index, len(flat)), flat[order])


def test_the_size_follows_from_the_counts_alone() -> None:
    sizes = set()
    for seed in range(8):
        chosen = torch.randperm(400 * 90, generator=torch.Generator().manual_seed(seed))[:2000]
        if seed == 0:
            chosen = torch.arange(2000)  # full rows: far fewer parts are in use
        sizes.add(len(sparse.build(chosen.sort().values, (400, 90))[0]))
    assert len(sizes) == 1


def test_a_worked_index() -> None:
    """Rows 0 (columns 1, 3), 1 (column 0) and 3 (columns 0, 2) of a 4 x 4 matrix in one block: row 1 comes first."""
    flat = torch.tensor([1, 3, 4, 12, 14])
    index, order = reference.build(flat, (4, 4), (4, 4))
    assert order.tolist() == [2, 0, 1, 3, 4]
    parts = index[96:].view(torch.int16).tolist()
    assert parts[8:16] == [5, 0, 0, 0, 2, 0, 3, 0]  # the end: 5 values, 2 groups, 3 rows
    assert parts[16:20] == [1, 1, 2, 2]  # one row of one value, two rows of two
    assert parts[24:] == [1, 0, 3, 0, 0, 1, 3, 0, 2]  # rows (there is room for four), then columns


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "flat", [[3, 2], [2, 2], [-1, 2], [2, 12], [0, 1 << 40]], ids=["unsorted", "twice", "negative", "outside", "far"]
)
def test_bad_positions_are_refused(flat: list[int], path: str) -> None:
    with forced(path), pytest.raises(ConfigError, match=r"positions must ascend strictly within 0\.\.11 for a 3 x 4"):
        sparse.build(torch.tensor(flat), (3, 4))


@pytest.mark.parametrize("path", PATHS)
def test_an_index_of_something_else_is_refused(path: str) -> None:
    flat = some_positions(20, 30, 0.3, seed=0)
    index = sparse.build(flat, (20, 30))[0]
    with forced(path):
        with pytest.raises(ConfigError, match="belongs to another shape or number of values"):
            sparse.check(index, (30, 20), len(flat))
        with pytest.raises(ConfigError, match="belongs to another shape or number of values"):
            sparse.check(index, (20, 30), len(flat) + 1)
        with pytest.raises(ConfigError, match="does not begin like one"):
            sparse.check(index[:50], (20, 30), len(flat))
        with pytest.raises(ConfigError, match="header makes no sense"):
            sparse.check(index[:-2], (20, 30), len(flat))
        with pytest.raises(ConfigError, match="does not begin like one"):
            sparse.check(torch.zeros(0, dtype=torch.uint8), (20, 30), len(flat))
        with pytest.raises(ConfigError, match="expected 1-D uint8"):
            sparse.check(index.float(), (20, 30), len(flat))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("shape", "density"), [((20, 30), 0.3), ((1100, 300), 0.02), ((5, 7), 1.0)])
def test_damaged_bytes_are_refused_or_still_an_index(shape: tuple[int, int], density: float, path: str) -> None:
    """A changed column may give another valid index; whatever passes has distinct positions inside the matrix."""
    flat = some_positions(*shape, density, seed=4)
    index = sparse.build(flat, shape)[0]
    draw = random.Random(7)
    refused = 0
    with forced(path):
        for trial in range(400):
            damaged = index.clone()
            for _ in range(draw.choice([1, 1, 2, 8])):
                at = draw.randrange(min(len(index), 400) if trial % 2 else len(index))
                damaged[at] = draw.choice([0, 1, 255, draw.randrange(256)])
            try:
                sparse.check(damaged, shape, len(flat))
            except ConfigError:
                refused += 1
                continue
            found = sparse.positions(damaged, len(flat))
            assert len(found.unique()) == len(flat)
            assert not len(flat) or (int(found.min()) >= 0 and int(found.max()) < shape[0] * shape[1])
    assert refused > 100


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
def test_native_and_reference_refuse_the_same_damage() -> None:
    flat = some_positions(40, 200, 0.1, seed=2)
    index = sparse.build(flat, (40, 200))[0]
    draw = random.Random(3)
    for _ in range(300):
        damaged = index.clone()
        damaged[draw.randrange(len(index))] = draw.randrange(256)
        verdicts = []
        for path in (NATIVE[0], "reference"):
            with forced(path):
                try:
                    sparse.check(damaged, (40, 200), len(flat))
                    verdicts.append("valid")
                except ConfigError as error:
                    verdicts.append(str(error))
        assert verdicts[0] == verdicts[1]
