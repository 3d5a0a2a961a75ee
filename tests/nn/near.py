"""Comparison of sparse layers with dense ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

RELATIVE = 1e-5


def assert_near(got: Tensor | None, expected: Tensor | None, relative: float = RELATIVE) -> None:
    """Equal to 1e-5 of the largest entry, or of 1, the size of the terms that a small sum is made of."""
    assert got is not None
    assert expected is not None
    got, expected = got.detach(), expected.detach()
    assert got.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=relative * max(scale, 1.0))


def dense_product(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """(input, dense weight) -> what the layer should give."""
    if len(layer.weight_shape) == 2:
        return lambda x, weight: functional.linear(x, weight, layer.bias)
    product = functional.conv1d if layer.axes == 1 else functional.conv2d
    how = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return lambda x, weight: product(x, weight, layer.bias, *how)


def assert_equals_dense(layer: Any, x: Tensor) -> None:
    """Output and all gradients are those of the dense product with zeros; inactive entries by `dense_gradient`."""
    x = x.detach().requires_grad_()
    layer.capture = []
    weight = layer.to_dense().detach().requires_grad_()
    y, expected = layer(x), dense_product(layer)(x, weight)
    assert_near(y, expected)
    slope = torch.randn_like(y)
    leaves = [x, *([] if layer.bias is None else [layer.bias])]
    got = torch.autograd.grad(y, [*leaves, layer.values], slope)
    wanted = torch.autograd.grad(expected, [*leaves, weight], slope)
    for a, b in zip(got[:-1], wanted[:-1], strict=True):
        assert_near(a, b)
    dense = wanted[-1].reshape(layer.matrix)
    assert_near(got[-1], dense.reshape(-1)[layer.positions()], 3 * RELATIVE)
    middle = layer.matrix[0] // 2
    parts = [layer.dense_gradient(rows, layer.capture) for rows in (slice(0, middle), slice(middle, None))]
    assert_near(torch.cat(parts), dense, 3 * RELATIVE)
    layer.capture = None


def masked(model: nn.Module, supports: Any) -> nn.Module:
    """Zero what is off the supports, in place."""
    with torch.no_grad():
        for name, support in supports.items():
            model.get_parameter(name).mul_(support.mask)
    return model
