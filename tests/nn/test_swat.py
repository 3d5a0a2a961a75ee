"""Weight gradients of sparse activations: everything else is exact."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import ConfigError
from gossamer.nn.swat import SwatConv2d, SwatLinear, swat

CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Linear(12, 7), (5, 12)),
    (lambda: nn.Linear(12, 7), (12,)),
    (lambda: nn.Linear(12, 7), (0, 12)),
    (lambda: nn.Conv2d(4, 6, 3), (4, 7, 8)),
    (lambda: nn.Linear(12, 7, bias=False), (3, 5, 12)),
    (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 7, 8)),
]


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    given = x.clone().requires_grad_()
    out = layer(given)
    torch.manual_seed(2)
    out.backward(torch.randn_like(out))
    assert given.grad is not None
    return (out.detach(), given.grad, *(p.grad for p in layer.parameters() if p.grad is not None))


def largest(x: Tensor, density: float) -> Tensor:
    count = round(density * x.numel())
    kept = x.abs().flatten().topk(count).indices
    return torch.zeros_like(x).flatten().index_copy(0, kept, x.flatten()[kept]).view_as(x)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_density_one_is_the_dense_layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    for got, wanted in zip(gradients(swat(copy.deepcopy(layer)), x), gradients(layer, x), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("density", [0.2, 0.7])
@pytest.mark.parametrize(("make", "shape"), CASES)
def test_only_the_weight_gradient_sees_less(
    make: Callable[[], nn.Module], shape: tuple[int, ...], density: float
) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    out, dx, dweight, *dbias = gradients(swat(copy.deepcopy(layer), activations=density), x)
    exact = gradients(copy.deepcopy(layer), x)
    thin = gradients(copy.deepcopy(layer), largest(x, density))
    torch.testing.assert_close((out, dx, *dbias), (exact[0], exact[1], *exact[3:]))
    torch.testing.assert_close(dweight, thin[2])


def test_thin_gradients() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 7), torch.randn(5, 12)
    _, dx, dweight, dbias = gradients(swat(copy.deepcopy(layer), gradients=0.3), x)
    torch.manual_seed(2)
    slope = torch.randn(5, 7)
    torch.testing.assert_close(dweight, largest(slope, 0.3).t() @ x)
    torch.testing.assert_close((dx, dbias), (slope @ layer.weight, slope.sum(0)))


def test_what_is_saved_is_small() -> None:
    layer, sizes = swat(nn.Linear(100, 10), activations=0.1), []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(50, 100))
    assert sorted(sizes) == [500 * 4, 500 * 4, 1000 * 4]  # values, positions, the weight


def test_nothing_is_chosen_where_no_weight_gradient_follows() -> None:
    layer = swat(nn.Linear(12, 7), activations=0.1).requires_grad_(False)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t):
        layer(torch.randn(5, 12, requires_grad=True)).sum().backward()
    assert sizes == [7 * 12], "the weight alone"


@pytest.mark.parametrize(("make", "shape"), [CASES[0], CASES[-1]])
def test_under_autocast_it_is_as_the_dense_layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    found = []
    for each in (layer, swat(copy.deepcopy(layer))):
        with torch.autocast("cpu", torch.bfloat16):
            out = each(x)
        out.float().square().sum().backward()
        found.append((out, *(p.grad for p in each.parameters())))
    for wanted, got in zip(*found, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)


def test_nan_is_handed_on() -> None:
    """A gradient scaler that overflowed skips the step when it sees it."""
    layer = swat(nn.Linear(4, 3), activations=0.3, gradients=0.3)
    (layer(torch.randn(5, 4)) * torch.nan).sum().backward()
    assert layer.weight.grad.isnan().all()
    layer(torch.full((5, 4), torch.nan))


@pytest.mark.parametrize(("make", "shape"), [*CASES, (lambda: nn.Linear(12, 7), (12,))])
@pytest.mark.parametrize("amp", [False, True])
def test_shapes_and_autocast_are_those_of_the_dense_layer(
    make: Callable[[], nn.Module], shape: tuple[int, ...], amp: bool
) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    thin = swat(copy.deepcopy(layer), activations=0.5, gradients=0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        given, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = thin(given), layer(wanted)
    assert (out.dtype, out.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(out, expected)
    out.float().sum().backward()
    expected.float().sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad, wanted.grad)
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in thin.parameters())


def test_it_goes_with_sparse_weights() -> None:
    torch.manual_seed(0)
    model = swat(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)), activations=0.3)
    assert [type(part) for part in model][::3] == [SwatConv2d, SwatLinear]  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    gossamer.sparsify(model, gossamer.methods.set_(0.3, every=5), optimizer, total_steps=40)
    x, y, losses = torch.randn(32, 1, 8, 8), torch.arange(32) % 4, []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: swat(nn.ReLU()), "no torch.nn.Linear"),
        (lambda: swat(nn.Conv2d(2, 2, 3, padding="same")), "by a number of pixels"),
        (lambda: swat("model"), "model is a str"),
        (lambda: swat(nn.Linear(3, 2), activations=20), "0.2"),
        (lambda: SwatLinear.from_dense(nn.Conv2d(1, 1, 1)), "not of a Conv2d"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
