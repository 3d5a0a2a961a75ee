"""Products with blocks equal dense ones with zeros elsewhere, along every path; those of the reference too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.kernels import blocks, sparse
from gossamer.kernels.gpu import blocks as gpu

from .forcing import NATIVE, PATHS, distance, forced, numbers

CLOSE = 1e-5


def some_blocks(shape: tuple[int, int], side: int, density: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index, values (float64) and the dense weight."""
    high, wide = blocks.grid(shape, side)
    chosen = torch.rand(high * wide, generator=torch.Generator().manual_seed(seed)) < density
    index = chosen.nonzero().view(-1).int()
    values = numbers(len(index), side, side, seed=seed) * blocks.inside(index, shape, side)
    every = torch.zeros(high * wide, side, side, dtype=torch.float64).index_copy(0, index.long(), values)
    dense = every.view(high, wide, side, side).transpose(1, 2).reshape(high * side, wide * side)
    return index, values, dense[: shape[0], : shape[1]]


def wanted(index: Tensor, dense: Tensor, side: int, x: Tensor, bias: Tensor | None, slope: Tensor) -> list[Tensor]:
    """Output and gradients of input, values and bias, by dense products in float64."""
    (rows, columns), (high, wide) = dense.shape, blocks.grid((dense.shape[0], dense.shape[1]), side)
    full = torch.zeros(high * side, wide * side, dtype=torch.float64)
    full[:rows, :columns] = slope.T @ x
    values = full.view(high, side, wide, side).transpose(1, 2).reshape(high * wide, side, side)[index.long()]
    y = x @ dense.T
    return [y, slope @ dense, values] if bias is None else [y + bias, slope @ dense, values, slope.sum(0)]


def found(
    index: Tensor, values: Tensor, x: Tensor, bias: Tensor | None, slope: Tensor, dtype: torch.dtype, *, packed: bool
) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_(), values.to(dtype).requires_grad_()]
    shift = None if bias is None else bias.to(dtype).requires_grad_()
    rows = slope.shape[1]
    if packed:
        y = blocks.packed_linear(sparse.pack(leaves[0]), leaves[1], index, shift, rows)
        y = sparse.unpack(y, len(x))
    else:
        y = blocks.linear(*leaves, index, shift, rows)
    y.backward(slope.to(dtype))
    grads = [each.grad for each in [*leaves, *([] if shift is None else [shift])]]
    return [y.detach(), *(grad for grad in grads if grad is not None)]


def compare(
    path: str,
    shape: tuple[int, int],
    side: int,
    batch: int,
    density: float,
    *,
    packed: bool = True,
    exact: bool = False,
) -> None:
    index, values, dense = some_blocks(shape, side, density, seed=side + batch)
    x, slope = numbers(batch, shape[1], seed=1), numbers(batch, shape[0], seed=2)
    bias = numbers(shape[0], seed=3) if batch != 16 else None
    with forced(path):
        mine = found(index, values, x, bias, slope, torch.float64 if exact else torch.float32, packed=packed)
    for one, other in zip(mine, wanted(index, dense, side, x, bias, slope), strict=True):
        assert one.shape == other.shape
        assert distance(one, other) < (1e-12 if exact else CLOSE)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("side", [1, 3, 4, 8, 12, 16, 32, 64])
def test_equals_dense(side: int, path: str) -> None:
    for shape in [(1, 1), (64, 128), (37, 53), (130, 70)]:
        for batch, density in [(1, 0.3), (16, 1.0), (37, 0.3), (37, 0.0), (0, 0.5)]:
            compare(path, shape, side, batch, density)


@pytest.mark.parametrize("path", NATIVE)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 200),
    quarter=st.integers(1, 20),
    batch=st.integers(0, 130),
    density=st.sampled_from([0.05, 0.4, 1.0]),
)
def test_equals_dense_for_any_size(
    path: str, rows: int, columns: int, quarter: int, batch: int, density: float
) -> None:
    compare(path, (rows, columns), 4 * quarter, batch, density)


@pytest.mark.parametrize("packed", [True, False])
def test_the_reference_is_exact_in_float64(packed: bool) -> None:
    for side in (1, 5, 16):
        compare(PATHS[0], (37, 53), side, 19, 0.4, packed=packed, exact=True)


def test_rows_go_to_the_gpu_where_it_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its kernels compute is tested in gpu/test_blocks.py."""
    seen = []

    def forward(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        seen.append((tuple(x.shape), len(index), bias is None, rows))
        return x.new_full((len(x), rows), 2.0)

    def backward(x: Tensor, values: Tensor, index: Tensor, dy: Tensor, *which: bool) -> tuple[Tensor, Tensor]:
        seen.append((tuple(dy.shape), *which))
        return torch.full_like(x, 3.0), torch.full_like(values, 4.0)

    monkeypatch.setattr(gpu, "supported", lambda *tensors: True)
    monkeypatch.setattr(gpu, "forward", forward)
    monkeypatch.setattr(gpu, "backward", backward)
    index, values, _ = some_blocks((16, 24), 8, 0.6, seed=0)
    x, held = torch.ones(5, 24, requires_grad=True), values.float().requires_grad_()
    y = blocks.linear(x, held, index, None, 16)
    y.sum().backward()
    assert seen == [((5, 24), len(index), True, 16), ((5, 16), True, True)]
    assert x.grad is not None
    assert held.grad is not None
    assert [bool((each == i).all()) for i, each in ((2, y), (3, x.grad), (4, held.grad))] == [True] * 3


@pytest.mark.parametrize("packed", [True, False])
def test_a_backward_pass_inside_autocast(packed: bool) -> None:
    """The reference computes in the dtype that it is given."""
    index, values, dense = some_blocks((16, 24), 3, 0.6, seed=0)
    x, slope = numbers(5, 24, seed=1), numbers(5, 16, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        mine = found(index, values, x, None, slope, torch.float32, packed=packed)
    for one, other in zip(mine, wanted(index, dense, 3, x, None, slope), strict=True):
        assert distance(one, other) < CLOSE


def test_gradcheck() -> None:
    index, values, _ = some_blocks((7, 10), 4, 0.6, seed=0)
    inside = blocks.inside(index, (7, 10), 4)
    leaves = numbers(3, 10, seed=1).requires_grad_(), values.requires_grad_(), numbers(7, seed=2).requires_grad_()

    def by_rows(x: Tensor, held: Tensor, bias: Tensor) -> Tensor:
        return blocks.linear(x, held * inside, index, bias, 7)

    def packed(x: Tensor, held: Tensor, bias: Tensor) -> Tensor:
        return sparse.unpack(blocks.packed_linear(sparse.pack(x), held * inside, index, bias, 7), 3)

    assert torch.autograd.gradcheck(by_rows, leaves)
    assert torch.autograd.gradcheck(packed, leaves)


def test_operators_trace() -> None:
    index, values, _ = some_blocks((16, 24), 8, 0.6, seed=0)
    held, bias = values.float().requires_grad_(), torch.randn(16, requires_grad=True)
    x, tiles = torch.randn(5, 24, requires_grad=True), torch.randn(2, 24, 16, requires_grad=True)
    torch.library.opcheck(torch.ops.gossamer.block_linear.default, (x, held, index, bias, 16))
    torch.library.opcheck(torch.ops.gossamer.block_packed.default, (tiles, held, index, bias, 16))


def test_no_second_derivative() -> None:
    index, values, _ = some_blocks((16, 24), 8, 1.0, seed=0)
    x = torch.randn(5, 24, requires_grad=True)
    held = values.float().requires_grad_()
    (dx,) = torch.autograd.grad(blocks.linear(x, held, index, None, 16).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("shape", [(640, 320), (900, 30), (30, 900)])
def test_two_threads_give_the_bits_of_one(path: str, shape: tuple[int, int]) -> None:
    index, values, _ = some_blocks(shape, 16, 0.3, seed=1)
    given_ = values, numbers(70, shape[1], seed=1), numbers(shape[0], seed=2), numbers(70, shape[0], seed=3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with forced(path):
                results.append(found(index, *given_, torch.float32, packed=True))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_finite_stays_within_its_blocks(path: str) -> None:
    """And what lies beyond an edge has a gradient of 0 all the same."""
    shape, side = (22, 30), 8
    index, values, dense = some_blocks(shape, side, 0.4, seed=4)
    x, slope = numbers(20, 30, seed=1), numbers(20, 22, seed=2)
    x[3, 29], slope[5, 21] = torch.inf, torch.nan
    with forced(path):
        y, dx, dvalues = found(index, values, x, None, slope, torch.float32, packed=True)
    touched = (dense != 0).double()
    assert torch.equal(~y.isfinite(), (~x.isfinite()).double() @ touched.T > 0)
    assert torch.equal(~dx.isfinite(), (~slope.isfinite()).double() @ touched > 0)
    assert not dvalues[~blocks.inside(index, shape, side).expand_as(dvalues)].any()


@pytest.mark.parametrize("path", NATIVE)
def test_a_damaged_index_is_refused(path: str) -> None:
    values = torch.zeros(2, 8, 8)
    with forced(path):
        for bad in ([1, 1], [1, 0], [-1, 2], [0, 6]):
            index = torch.tensor(bad, dtype=torch.int32)
            with pytest.raises(ConfigError, match="damaged"):
                blocks.packed_linear(torch.zeros(1, 24, 16), values, index, None, 16)
            with pytest.raises(ConfigError, match="damaged"):
                blocks.check(index, values, (16, 24))
