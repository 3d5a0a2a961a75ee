"""Law 1: `select_top` returns exactly count entries, those of a literal sort, however it finds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError, DivergedError
from gossamer.topology import selection
from gossamer.topology.selection import select_top

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, math.inf, -math.inf, 1e-30, 3.0])
BACKENDS = ["numpy", "torch"]


@contextmanager
def path(backend: str, small: int) -> Iterator[None]:
    """Run the brackets already above ``small`` entries, with numpy or with torch operations, in small chunks."""
    arrays = selection._NUMPY if backend == "numpy" else selection._TORCH
    chunked = replace(arrays, chunk=1000)
    with mock.patch.object(selection, "_NUMPY", chunked), mock.patch.object(selection, "SMALL", small):
        yield


def by_sorting(scores: list[Tensor], count: int, active: list[Tensor] | None) -> list[Tensor]:
    flat = torch.cat([s.double().reshape(-1) for s in scores]).tolist()
    known = [False] * len(flat) if active is None else torch.cat([a.reshape(-1) for a in active]).tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], not known[i], i))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:count]] = True
    parts = mask.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor] | None, int]:
    lists = draw(st.lists(st.lists(VALUES | st.floats(-3, 3, width=16), max_size=40), min_size=1, max_size=4))
    dtypes = [draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])) for _ in lists]
    scores = [torch.tensor(values, dtype=dtype) for values, dtype in zip(lists, dtypes, strict=True)]
    active = [
        torch.tensor(draw(st.lists(st.booleans(), min_size=len(v), max_size=len(v))), dtype=torch.bool) for v in lists
    ]
    total = sum(map(len, lists))
    return scores, active if draw(st.booleans()) else None, draw(st.integers(0, total))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_equals_a_sort(problem: tuple[list[Tensor], list[Tensor] | None, int], backend: str) -> None:
    scores, active, count = problem
    with path(backend, 1):
        masks = select_top(scores, count, active)
    assert sum(int(m.sum()) for m in masks) == count
    assert same(masks, by_sorting(scores, count, active))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(100, 4000),
    levels=st.sampled_from([2, 5, 100, 10**6]),
    cut=st.floats(0, 1),
    share=st.floats(0, 1),
    ends=st.floats(0, 0.4),
)
def test_brackets_equal_a_sort(
    seed: int, n: int, levels: int, cut: float, share: float, ends: float, backend: str
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, levels, n).astype(np.float32)
    values[random.random(n) < ends] = np.inf
    values[random.random(n) < ends] = -np.inf
    scores = list(torch.from_numpy(values).split([round(cut * n), n - round(cut * n)]))
    active = [torch.from_numpy(random.random(len(s)) < 0.3) for s in scores]
    count = round(share * n)
    with path(backend, 64):
        assert same(select_top(scores, count, active), by_sorting(scores, count, active))


def large(kind: str, n: int) -> Tensor:
    random = np.random.default_rng(5)
    x = random.standard_normal(n)
    if kind == "mostly zero":
        x = np.where(random.random(n) < 0.1, np.abs(x), 0.0)
    elif kind == "few values":
        x = np.round(x * 2)
    elif kind == "infinite":
        x[random.random(n) < 0.2] = np.inf
        x[random.random(n) < 0.2] = -np.inf
    elif kind == "sorted":
        x.sort()
    elif kind == "periodic":  # the sample meets nothing but zeros
        x[:: sample_stride(n)] = 0.0
    elif kind == "equal":
        x[:] = 0.25
    return torch.tensor(x, dtype=torch.float32)


def sample_stride(n: int) -> int:
    values = torch.arange(n, dtype=torch.float32)
    seen: list[np.ndarray] = []
    arrays = mock.Mock(sort=lambda sample: seen.append(sample) or sample, concat=np.concatenate)
    next(selection._brackets(arrays, [values.numpy()], 1))
    return int(seen[0][1] - seen[0][0])


KINDS = ["normal", "mostly zero", "few values", "infinite", "sorted", "periodic", "equal"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_large_equals_a_sort(kind: str, backend: str) -> None:
    n = 30_011
    flat = large(kind, n)
    scores = [flat[:20_000].view(200, 100), flat[20_000:20_001], flat[20_001:]]
    active = [torch.rand(s.shape, generator=torch.Generator().manual_seed(3)) < 0.1 for s in scores]
    positive = int((flat > 0).sum())
    with path(backend, 1 << 11):
        for count in {1, 7, 300, n // 10, positive, min(positive + 5, n), n // 2, n - 300, n - 1}:
            assert same(select_top(scores, count, active), by_sorting(scores, count, active)), count


def test_million_entries_equal_a_sort() -> None:
    flat = torch.randn(1_000_003, generator=torch.Generator().manual_seed(1))
    order = torch.argsort(flat, descending=True, stable=True)
    for count in (1, 50_000, 500_000, 1_000_000):
        (mask,) = select_top([flat], count)
        assert int(mask.sum()) == count
        assert bool(mask[order[:count]].all())


def test_never_sorts_or_partitions_everything() -> None:
    largest = 0
    partition, sort = np.partition, np.sort

    def watch(values: np.ndarray, *args: object) -> None:
        nonlocal largest
        largest = max(largest, len(values))

    scores = torch.randn(300_000, generator=torch.Generator().manual_seed(2))
    arrays = selection._NUMPY
    watched = replace(
        arrays,
        kth=lambda v, k: (watch(v), partition(v, len(v) - k)[len(v) - k])[1],
        sort=lambda v: (watch(v), sort(v))[1],
    )
    with mock.patch.object(selection, "_NUMPY", watched):
        select_top([scores], 30_000)
    assert 0 < largest < 10_000


def test_index_order_decides_ties_across_tensors() -> None:
    masks = select_top([torch.zeros(2), torch.ones(2), torch.zeros(3)], 4)
    assert [m.tolist() for m in masks] == [[True, True], [True, True], [False, False, False]]


def test_active_decides_ties_before_index() -> None:
    active = [torch.tensor([False, False]), torch.tensor([False, True])]
    masks = select_top([torch.zeros(2), torch.zeros(2)], 2, active)
    assert [m.tolist() for m in masks] == [[True, False], [False, True]]


def test_negative_zero_equals_zero() -> None:
    assert select_top([torch.tensor([-0.0, 0.0])], 1)[0].tolist() == [True, False]


def test_permuted_memory_is_ranked_in_logical_order() -> None:
    score = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    (mask,) = select_top([score], 5)
    assert mask.flatten().tolist() == [True] * 5 + [False] * 19


def test_gradients_and_parameters_are_accepted() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 3.0, 2.0]))
    assert select_top([weight], 1)[0].tolist() == [False, True, False]


@pytest.mark.parametrize("count", [-1, 4])
def test_count_out_of_range(count: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot select {count} of 3"):
        select_top([torch.zeros(3)], count)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nan_diverges(count: int) -> None:
    with pytest.raises(DivergedError, match="NaN in tensor 1 of 2"):
        select_top([torch.zeros(1), torch.tensor([1.0, math.nan])], count)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"floating point.*\.float\(\)"):
        select_top([torch.arange(3)], 1)
