"""Block-sparse products in Triton equal the dense ones, with blocks beyond the edges and rows without any."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.kernels.gpu import blocks
from gossamer.nn import BlockSparseLinear

from ..forcing import distance, numbers
from .interpreted import interpreted


def problem(rows: int, columns: int, side: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """values, index, and the dense matrix."""
    grid = -(-rows // side), -(-columns // side)
    held = torch.rand(grid, generator=torch.Generator().manual_seed(side)) < share
    dense = torch.zeros(grid[0] * side, grid[1] * side)
    dense[:rows, :columns] = numbers(rows, columns, seed=side).float()
    dense *= held.repeat_interleave(side, 0).repeat_interleave(side, 1)
    index = held.view(-1).nonzero().view(-1).int()
    return cut(dense, side)[index.long()].contiguous(), index, dense[:rows, :columns]


def cut(matrix: Tensor, side: int) -> Tensor:
    high, wide = matrix.shape[0] // side, matrix.shape[1] // side
    return matrix.view(high, side, wide, side).transpose(1, 2).reshape(-1, side, side)


@interpreted
@pytest.mark.parametrize(("side", "share"), [(16, 0.5), (32, 0.6), (16, 0.05)])
def test_the_kernels(side: int, share: float) -> None:
    rows, columns, batch = 50, 70, 37
    values, index, dense = problem(rows, columns, side, share)
    x, dy, bias = (numbers(*shape, seed=3).float() for shape in ((batch, columns), (batch, rows), (rows,)))
    assert distance(blocks.forward(x, values, index, bias, rows), x @ dense.t() + bias) < 1e-6
    dx, dvalues = blocks.backward(x, values, index, dy, True, True)
    assert distance(dx, dy @ dense) < 1e-6
    whole = torch.zeros(-(-rows // side) * side, -(-columns // side) * side)
    whole[:rows, :columns] = dy.t() @ x
    assert distance(dvalues, cut(whole, side)[index.long()]) < 1e-6
    few, none = blocks.backward(x, values, index, dy, False, False)
    assert few.numel() == none.numel() == 0


def test_without_blocks_there_is_the_bias() -> None:
    values, index, x = torch.zeros(0, 16, 16), torch.zeros(0, dtype=torch.int32), torch.ones(3, 32)
    assert torch.equal(blocks.forward(x, values, index, torch.ones(16), 16), torch.ones(3, 16))
    assert not blocks.forward(x, values, index, None, 16).any()
    dx, dvalues = blocks.backward(x, values, index, torch.ones(3, 16), True, True)
    assert not dx.any()
    assert dvalues.shape == (0, 16, 16)


def test_another_index_at_the_same_tensor_makes_another_layout() -> None:
    index = torch.tensor([0, 3], dtype=torch.int32)
    before = blocks._layout(index, (2, 2), False)
    assert blocks._layout(index, (2, 2), False) is before
    index[1] = 1
    after = blocks._layout(index, (2, 2), False)
    assert [before.starts.tolist(), after.starts.tolist()] == [[0, 1, 2], [0, 2, 2]]
    turned = blocks._layout(torch.tensor([0, 1, 2], dtype=torch.int32), (2, 2), True)
    assert [part.tolist() for part in turned] == [[0, 2, 3], [0, 1, 0], [0, 2, 1]]


@interpreted
@pytest.mark.parametrize("side", [16, 32])
def test_the_layer_runs_them_where_they_are_supported(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public layer, made to compute as on another device, forward and backward, against its CPU kernels."""
    torch.manual_seed(0)
    layer, x, slope = BlockSparseLinear(70, 50, 0.5, side), torch.randn(2, 9, 70), torch.randn(2, 9, 50)
    monkeypatch.setattr(blocks, "supported", lambda *tensors: True)
    results = []
    for there in (False, True):
        monkeypatch.setattr(BlockSparseLinear, "packs", not there)
        given = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer(given)
        y.backward(slope)
        results.append([y.detach(), given.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        assert distance(one, other) < 1e-6
