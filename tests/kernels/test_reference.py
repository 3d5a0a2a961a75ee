"""The plain-torch kernels in float64: derivatives by finite differences, and equal to torch's dense layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.kernels import reference, sparse

from .forcing import distance, numbers, some_positions

# shape of the weight, stride, padding, dilation, groups, (height, width)
CONVOLUTIONS: list[tuple[Any, ...]] = [
    ((1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1)),
    ((4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1, (5, 6)),
    ((6, 2, 3, 2), (2, 1), (1, 0), (1, 2), 3, (7, 5)),
    ((5, 1, 3, 3), (2, 2), (2, 2), (2, 2), 5, (6, 6)),
    ((3, 4, 1, 1), (3, 2), (0, 0), (1, 1), 1, (7, 7)),
    ((2, 2, 5, 5), (1, 1), (0, 0), (1, 1), 1, (5, 5)),
]


def convolution(case: tuple[Any, ...], density: float, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Input, dense weight with zeros off the support, values, index and the positions of the values."""
    shape, *_, groups, size = case
    columns = math.prod(shape[1:])
    flat = some_positions(shape[0], columns, density, seed=1)
    weight = torch.zeros(shape[0] * columns, dtype=torch.float64)
    weight[flat] = numbers(len(flat), seed=2)
    index, order = sparse.build(flat, (shape[0], columns), shape[2] * shape[3])
    return numbers(batch, shape[1] * groups, *size, seed=3), weight.view(shape), weight[flat][order], index, flat[order]


@pytest.mark.parametrize("strip", [1, 1000, reference.STRIP])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_equals_torch(
    case: tuple[Any, ...], density: float, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "STRIP", strip)
    x, weight, values, index, flat = convolution(case, density, batch=19)
    shape, stride, padding, dilation, groups, _ = case
    bias = numbers(shape[0], seed=5).requires_grad_()
    wanted = F.conv2d(x.requires_grad_(), weight.requires_grad_(), bias, stride, padding, dilation, groups)
    slope = numbers(*wanted.shape, seed=4)
    wanted_gradients = torch.autograd.grad(wanted, (x, weight, bias), slope)
    values.requires_grad_()
    packed = sparse.conv(sparse.pack(x), values, index, bias, shape, stride, padding, dilation, groups)
    found = sparse.unpack(packed, 19)
    dx, dvalues, dbias = torch.autograd.grad(found, (x, values, bias), slope)
    assert distance(found, wanted) < 1e-12
    assert distance(dx, wanted_gradients[0]) < 1e-12
    assert distance(dvalues, wanted_gradients[1].flatten()[flat]) < 1e-12
    assert distance(dbias, wanted_gradients[2]) < 1e-12


@pytest.mark.parametrize("case", CONVOLUTIONS[1:4])
def test_derivatives_of_the_convolution(case: tuple[Any, ...]) -> None:
    x, _, values, index, _ = convolution(case, 0.5, batch=2)
    bias = numbers(case[0][0], seed=5)

    def compute(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse.unpack(sparse.conv(sparse.pack(x), values, index, bias, *case[:5]), 2)

    assert torch.autograd.gradcheck(compute, [part.requires_grad_() for part in (x, values, bias)])


@pytest.mark.parametrize(("rows", "columns", "density"), [(1, 1, 1.0), (7, 5, 0.4), (3, 20, 0.0)])
def test_derivatives_of_the_linear_product(rows: int, columns: int, density: float) -> None:
    flat = some_positions(rows, columns, density, seed=3)
    index, _ = sparse.build(flat, (rows, columns))

    def compute(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse.unpack(sparse.linear(sparse.pack(x), values, index, bias, rows), len(x))

    parts = [numbers(3, columns, seed=0), numbers(len(flat), seed=1), numbers(rows, seed=2)]
    assert torch.autograd.gradcheck(compute, [part.requires_grad_() for part in parts])


def test_an_index_that_changes_in_place_is_read_again() -> None:
    """A rewiring writes into the same tensor; what is remembered goes by its bytes, not by its identity."""
    first, second = some_positions(9, 12, 0.5, seed=1), some_positions(9, 12, 0.5, seed=2)
    count = min(len(first), len(second))
    index, order = sparse.build(first[:count], (9, 12))
    x = numbers(5, 12, seed=0)
    for flat in (first[:count], second[:count]):
        fresh, order = sparse.build(flat, (9, 12))
        index.copy_(fresh)
        weight = torch.zeros(9 * 12, dtype=torch.float64)
        weight[flat] = numbers(count, seed=3)
        found = sparse.unpack(sparse.linear(sparse.pack(x), weight[flat][order], index, None, 9), 5)
        assert distance(found, x @ weight.view(9, 12).T) < 1e-12
