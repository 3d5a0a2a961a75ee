"""Offset layers where they are seldom used: classes of one name, another default device, taps far beyond the image."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.nn import OffsetConv2d, OffsetLinear
from gossamer.nn._offset_operator import kind_of, map_of
from gossamer.offsets import Gaussian, Offset

from .near import assert_near


def of_factor(factor: float) -> Offset:
    @dataclass(frozen=True)
    class Multiple(Offset):
        def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
            return factor * torch.eye(rows, columns, dtype=torch.float64)

    return Multiple()


def test_classes_of_one_name_are_told_apart() -> None:
    layers = [OffsetLinear(3, 3, offset=of_factor(factor), bias=False) for factor in (2.0, 5.0)]
    assert [layer(torch.ones(1, 3)).tolist() for layer in layers] == [[[2.0] * 3], [[5.0] * 3]]
    layers[1].load_state_dict(layers[0].state_dict())


def test_first_used_where_another_device_is_the_default() -> None:
    with torch.device("meta"):
        made = map_of(kind_of(Gaussian()), (5, 7), [], 4)
    x = torch.randn(2, 7)
    assert_near(made.apply(x, -1), x @ Gaussian().matrix(5, 7, 4).float().t())  # type: ignore[call-arg]


@pytest.mark.parametrize("density", [None, 0.5])
def test_taps_far_beyond_the_image(density: float | None) -> None:
    """Dilated by 300 only the centre taps read an image of 6 x 6; kernels that copy its padding would take 0.6 GB."""
    torch.manual_seed(0)
    layer = OffsetConv2d(8, 8, 3, density, dilation=300, padding=300)
    with torch.no_grad():
        for parameter in layer.sparse.parameters():
            parameter.normal_()
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    weight = layer.effective_weight()[:, :, 1:2, 1:2]
    expected = F.conv2d(x, weight, layer.sparse.bias)  # type: ignore[arg-type]
    assert_near(layer(x), expected)
    mine, given = (torch.autograd.grad(y.square().sum(), x)[0] for y in (layer(x), expected))
    assert_near(mine, given)
