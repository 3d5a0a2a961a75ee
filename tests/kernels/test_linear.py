"""The sparse linear product equals the dense one with zeros off the support, along every path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.kernels import sparse

from .forcing import NATIVE, PATHS, dense_products, distance, forced, numbers, products, some_positions

CLOSE = 1e-5
SHAPES = [(1, 1), (1, 300), (300, 1), (17, 33), (64, 128), (1030, 70), (130, 600)]


def compare(path: str, rows: int, columns: int, density: float, batch: int, bias: bool = True) -> None:
    flat = some_positions(rows, columns, density, seed=rows + columns)
    x, slope = numbers(batch, columns, seed=1), numbers(batch, rows, seed=2)
    dense, shift = numbers(rows, columns, seed=3), numbers(rows, seed=4) if bias else None
    with forced(path):
        found = products(x, dense, shift, slope, flat)
    wanted = dense_products(x, dense, shift, slope, flat)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert distance(one, other) < CLOSE


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("density", [0.0, 0.003, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_dense(shape: tuple[int, int], density: float, path: str) -> None:
    for batch in (1, 16, 37):
        compare(path, *shape, density, batch, bias=batch != 16)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 200),
    batch=st.integers(1, 1000),
    density=st.sampled_from([0.01, 0.1, 0.6, 1.0]),
)
def test_equals_dense_for_any_batch(path: str, rows: int, columns: int, batch: int, density: float) -> None:
    compare(path, rows, columns, density, batch)


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_batch(path: str) -> None:
    flat = some_positions(6, 9, 0.5, seed=0)
    with forced(path):
        out, dx, dvalues, dbias = products(
            numbers(0, 9, seed=0), numbers(6, 9, seed=1), numbers(6, seed=2), numbers(0, 6, seed=3), flat
        )
    assert out.shape == (0, 6)
    assert dx.shape == (0, 9)
    assert not dvalues.any()
    assert not dbias.any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wanted", ["x", "values", "bias"])
def test_each_gradient_alone(wanted: str, path: str) -> None:
    flat = some_positions(50, 70, 0.2, seed=0)
    with forced(path):
        index, _ = sparse.build(flat, (50, 70))
        parts = {
            "x": numbers(20, 70, seed=1).float(),
            "values": numbers(len(flat), seed=2).float(),
            "bias": numbers(50, seed=3).float(),
        }
        both = []
        for asked in (list(parts), [wanted]):
            leaves = {name: part.clone().requires_grad_(name in asked) for name, part in parts.items()}
            packed = sparse.linear(sparse.pack(leaves["x"]), leaves["values"], index, leaves["bias"], 50)
            sparse.unpack(packed, 20).square().sum().backward()
            both.append(leaves[wanted].grad)
            assert all((leaf.grad is None) == (name not in asked) for name, leaf in leaves.items())
    assert torch.equal(both[0], both[1])


@pytest.mark.parametrize("path", PATHS)
def test_inputs_that_are_not_contiguous(path: str) -> None:
    flat = some_positions(24, 40, 0.3, seed=0)
    dense, slope = numbers(24, 40, seed=3), numbers(24, 50, seed=2).T
    with forced(path):
        for x in (numbers(40, 50, seed=1).T, numbers(100, 80, seed=1)[::2, ::2], numbers(40, seed=1).expand(50, 40)):
            assert not x.is_contiguous()
            for one, other in zip(
                products(x, dense, None, slope, flat), dense_products(x, dense, None, slope, flat), strict=True
            ):
                assert distance(one, other) < CLOSE


@pytest.mark.parametrize("path", PATHS)
def test_values_and_packed_activations_that_are_not_contiguous(path: str) -> None:
    flat = some_positions(24, 40, 0.3, seed=0)
    with forced(path):
        index, _ = sparse.build(flat, (24, 40))
        values, shift = numbers(2 * len(flat), seed=1).float()[::2], numbers(48, seed=2).float()[::2]
        packed = sparse.pack(numbers(32, 80, seed=3).float())[:, ::2]
        plain = sparse.linear(packed.contiguous(), values.contiguous(), index, shift.contiguous(), 24)
        assert torch.equal(sparse.linear(packed, values, index, shift, 24), plain)
        back = sparse.unpack(plain.permute(1, 0, 2).contiguous().permute(1, 0, 2), 32)
        assert torch.equal(back, sparse.unpack(plain, 32))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_travels_along_the_support_only(bad: float, path: str) -> None:
    """Dense kernels also compute 0 * inf = NaN at inactive weights; here an inactive weight touches nothing."""
    rows, columns, batch = 40, 130, 20
    flat = some_positions(rows, columns, 0.1, seed=5)
    active = torch.zeros(rows * columns, dtype=torch.bool)
    active[flat] = True
    active = active.view(rows, columns)
    x, slope, dense = numbers(batch, columns, seed=1), numbers(batch, rows, seed=2), numbers(rows, columns, seed=3)
    x[3, 7] = bad
    slope[17, 11] = bad
    with forced(path):
        out, dx, dvalues = products(x, dense, None, slope, flat)
    touched = ~x.isfinite()
    reached = (touched.double() @ active.double().T) > 0
    assert torch.equal(~out.isfinite(), reached)
    assert torch.equal(~dx.isfinite(), ((~slope.isfinite()).double() @ active.double()) > 0)
    at_row, at_column = flat // columns == 11, flat % columns == 7
    assert torch.equal(~dvalues.isfinite(), at_row | at_column)
    masked = torch.where(active, dense, 0.0)
    for row in reached[3].nonzero().flatten().tolist():
        wanted = (x[3, active[row]] * masked[row, active[row]]).sum()
        assert wanted.isnan() == out[3, row].isnan()
        assert wanted.isnan() or wanted == out[3, row]


@pytest.mark.parametrize("path", NATIVE)
def test_two_threads_give_the_bits_of_one(path: str) -> None:
    flat = some_positions(1500, 900, 0.05, seed=1)
    given_ = (numbers(70, 900, seed=1), numbers(1500, 900, seed=2), numbers(1500, seed=3), numbers(70, 1500, seed=4))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with forced(path):
                results.append(products(*given_, flat))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(1,), (5, 3), (33, 2, 3, 4), (16, 300), (0, 4)])
def test_packing(shape: tuple[int, ...], path: str) -> None:
    x = numbers(*shape, seed=0).float().requires_grad_()
    with forced(path):
        packed = sparse.pack(x)
        assert packed.shape == (-(-shape[0] // 16), *shape[1:], 16)
        assert torch.equal(sparse.unpack(packed, shape[0]), x)
        lanes = packed.movedim(-1, 1).flatten(0, 1)
        assert torch.equal(lanes[: shape[0]], x)
        assert not lanes[shape[0] :].any()
        slope = numbers(*packed.shape, seed=1).float()
        packed.backward(slope)
    assert torch.equal(x.grad, slope.movedim(-1, 1).flatten(0, 1)[: shape[0]])


@pytest.mark.parametrize("path", PATHS)
def test_mixed_types_are_refused(path: str) -> None:
    flat = some_positions(6, 9, 0.5, seed=0)
    index, _ = sparse.build(flat, (6, 9))
    with forced(path), pytest.raises(ConfigError, match=r"got torch.float32 activations and torch.float64 values"):
        sparse.linear(torch.zeros(1, 9, 16), torch.zeros(len(flat), dtype=torch.float64), index, None, 6)


@pytest.mark.parametrize("path", PATHS)
def test_gather(path: str) -> None:
    flat = some_positions(30, 50, 0.2, seed=0)
    weight = numbers(30, 50, seed=1).float()
    with forced(path):
        index, order = sparse.build(flat, (30, 50))
        for given_ in (weight, weight.double(), weight.T.contiguous().T):
            assert torch.equal(sparse.gather(given_, index, len(flat)), given_.flatten()[flat][order])
