"""Hybrid layers are their dense torch layers: the same results, gradients, names and life under a controller."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gossamer
from gossamer import methods
from gossamer.errors import ConfigError
from gossamer.nn.hybrid import Hybrid, HybridConv2d, HybridLinear
from gossamer.topology import Support

CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2, "bias": False},
    {"groups": 2, "padding": (1, 0), "stride": (1, 2)},
]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of a layer's class with every sparse product."""
    seen: list[str] = []
    for kind in (HybridLinear, HybridConv2d):

        def spy(self: Hybrid, *args: Any, real: Any = kind._product) -> Tensor:
            seen.append(type(self).__name__)
            return real(self, *args)

        monkeypatch.setattr(kind, "_product", spy)
    return seen


def sparse_view(layer: Hybrid, density: float) -> Tensor:
    """Make the weight zero off a random support, and return that."""
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(5)) < density
    with torch.no_grad():
        layer.weight *= mask
    layer.set_support(mask)
    return mask


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and parameters of a loss that weighs outputs differently."""
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    own = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    return [y.detach(), x.grad, *own]  # type: ignore[list-item]


def check_equal(layer: Hybrid, x: Tensor) -> None:
    for ours, torchs in zip(gradients(layer, x), gradients(layer.dense_module(), x), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5 * float(torchs.abs().max()))


# -- the same function --


@pytest.mark.parametrize("shape", [(1, 7), (33, 7), (2, 5, 7), (7,)])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_dense(products: list[str], shape: tuple[int, ...], density: float, bias: bool) -> None:
    torch.manual_seed(0)
    layer = HybridLinear(7, 40, bias=bias)
    sparse_view(layer, density * 0.9)
    check_equal(layer, torch.randn(shape))
    assert products == ["HybridLinear"]


@pytest.mark.parametrize("how", CONVOLUTIONS)
@pytest.mark.parametrize("batch", [(), (1,), (18,)])
def test_convolution_equals_dense(products: list[str], how: dict[str, Any], batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = HybridConv2d(4, 6, 3, **how)
    sparse_view(layer, 0.15)
    check_equal(layer, torch.randn(*batch, 4, 9, 8))
    assert products == ["HybridConv2d"]


def test_the_gradient_of_the_weight_is_dense() -> None:
    layer = HybridLinear(5, 20)
    mask = sparse_view(layer, 0.3)
    layer(torch.randn(3, 5)).square().sum().backward()
    assert layer.weight.grad is not None
    assert bool((layer.weight.grad[~mask] != 0).any())


def test_frozen_parts_get_no_gradient() -> None:
    layer = HybridLinear(5, 20)
    sparse_view(layer, 0.3)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 5)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_nan_and_infinity_arrive_where_the_support_reads_them() -> None:
    layer = HybridLinear(3, 8, bias=False)
    with torch.no_grad():
        layer.weight.zero_()[0, 1] = 2.0
    layer.set_support(layer.weight != 0)
    y = layer(torch.tensor([[torch.nan, torch.inf, 1.0]]))
    assert y[0, 0] == torch.inf
    assert bool((y[0, 1:] == 0).all())  # dense: 0 * NaN


# -- when it computes densely --


def test_without_support_it_is_dense(products: list[str]) -> None:
    layer = HybridLinear(6, 8)
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias), rtol=0, atol=0)
    assert products == []


def test_a_weight_that_left_its_support_is_computed_as_it_is(products: list[str]) -> None:
    layer = HybridLinear(6, 8)
    mask = sparse_view(layer, 0.3)
    x = torch.randn(4, 6)
    layer(x)
    with torch.no_grad():
        layer.weight[~mask] = 1.0
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias), rtol=0, atol=0)
    with torch.no_grad():
        layer.weight *= mask
    layer(x)
    assert len(products) == 2


def test_a_dense_support_is_computed_densely(products: list[str]) -> None:
    layer = HybridLinear(6, 8)
    layer.set_support(torch.ones(8, 6, dtype=torch.bool))
    layer(torch.randn(4, 6))
    assert products == []


@pytest.mark.parametrize(
    "layer",
    [
        HybridConv2d(4, 4, 3, padding=1, padding_mode="circular"),
        HybridConv2d(4, 4, 2, padding="same"),
        HybridLinear(4, 8, dtype=torch.float64),
    ],
    ids=["circular", "uneven", "float64"],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_what_the_kernels_lack_is_dense(products: list[str], layer: Hybrid) -> None:
    sparse_view(layer, 0.1)
    shape = (4,) if isinstance(layer, HybridLinear) else (4, 5, 5)
    check_equal(layer, torch.randn(2, *shape, dtype=layer.weight.dtype))
    assert products == []


def test_autocast_computes_in_float32(products: list[str]) -> None:
    layer = HybridLinear(16, 8)
    sparse_view(layer, 0.3)
    x = torch.randn(4, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    torch.testing.assert_close(y, functional.linear(x.float(), layer.weight, layer.bias))
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert len(products) == 1


def test_second_derivatives_and_transforms_equal_dense() -> None:
    for layer, x in ((HybridLinear(5, 9), torch.randn(3, 5)), (HybridConv2d(2, 9, 3), torch.randn(2, 2, 4, 4))):
        sparse_view(layer, 0.2)

        def penalty(module: nn.Module, x: Tensor = x) -> list[Tensor]:
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
            return list(torch.autograd.grad(slope.square().sum(), [module.weight, x]))

        for ours, torchs in zip(penalty(layer), penalty(layer.dense_module()), strict=True):
            torch.testing.assert_close(ours, torchs)
    layer = HybridLinear(5, 9)
    sparse_view(layer, 0.2)
    torch.testing.assert_close(torch.func.vmap(layer)(torch.ones(3, 5)), layer.dense_module()(torch.ones(3, 5)))


@pytest.mark.slow
def test_compiles_whole() -> None:
    layer = HybridLinear(5, 9)
    sparse_view(layer, 0.2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 5)
    torch.testing.assert_close(compiled(x), layer(x))


# -- a module like any other --


def test_swapping_keeps_parameters_hooks_and_mode() -> None:
    dense = nn.Linear(4, 6).eval()
    calls: list[str] = []
    dense.register_forward_hook(lambda *_: calls.append("hook"))
    layer = HybridLinear.from_dense(dense, Support.from_mask(torch.ones(6, 4, dtype=torch.bool)))
    assert isinstance(layer, nn.Linear)
    assert layer.weight is dense.weight
    assert layer.bias is dense.bias
    assert not layer.training
    assert list(layer.state_dict()) == list(dense.state_dict())
    layer(torch.ones(1, 4))
    back = layer.dense_module()
    assert type(back) is nn.Linear
    assert back.weight is dense.weight
    assert vars(back).keys() == vars(dense).keys()
    back(torch.ones(1, 4))
    assert calls == ["hook", "hook"]
    layer.register_buffer("more", torch.ones(1))
    assert not hasattr(dense, "more")


def test_copies_compute_the_same(products: list[str]) -> None:
    layer = HybridLinear(6, 8)
    sparse_view(layer, 0.3)
    x = torch.randn(4, 6)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    fresh = HybridLinear(6, 8)
    fresh.load_state_dict(layer.state_dict())
    assert len(products) == 2
    torch.testing.assert_close(fresh(x), layer(x))


def test_bad_input_is_refused() -> None:
    layer = HybridLinear(4, 6)
    with pytest.raises(ConfigError, match=r"the support has shape \(4, 6\), the weight has \(6, 4\)"):
        layer.set_support(torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"the mask of a support is bool, got torch.float32"):
        layer.set_support(torch.ones(6, 4))
    with pytest.raises(ConfigError, match=r"HybridLinear takes the place of a torch.nn.Linear, .* got a Conv2d"):
        HybridLinear.from_dense(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    assert layer.support() is None


# -- under a controller --


def network(*, hybrid: bool) -> nn.Module:
    torch.manual_seed(1)
    linear, conv = (HybridLinear, HybridConv2d) if hybrid else (nn.Linear, nn.Conv2d)
    return nn.Sequential(
        conv(2, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), linear(12 * 16, 24), nn.ReLU(), linear(24, 4)
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(steps):
        x, labels = torch.randn(20, 2, 4, 4, generator=generator), torch.arange(20) % 4
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


LIVE = {
    "r=1": methods.rewire(0.15, every=1, allocation="uniform", exploit=None),
    "reset": methods.rewire(0.15, every=1, allocation="uniform", exploit=gossamer.Reset(7)),
    "reset always": methods.rewire(0.15, every=1, allocation="uniform", exploit=gossamer.Reset(1)),
    "r=10 fix": methods.rewire(0.15, every=10, allocation="uniform", exploit=gossamer.Fix(0.5)),
    "r=100 s": methods.rewire(0.15, every=100, scale=0.3, allocation="uniform"),
    "regularize": methods.rewire(0.15, every=3, allocation="uniform", exploit=gossamer.Regularize(0.01)),
    "global": methods.rewire(0.15, every=2, scope="global", allocation="uniform"),
    "ste": methods.ste(0.15, allocation="uniform"),
    "sr-ste": methods.sr_ste(0.15, decay=1e-2, group=None),
    "topkast": methods.topkast(0.15, 0.4, allocation="uniform"),
    "rigl": methods.rigl(0.15, every=10, allocation="uniform"),
}


@pytest.mark.parametrize("method", LIVE.values(), ids=LIVE)
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_training_equals_masked(
    products: list[str], method: gossamer.Method, optimizer: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    runs = []
    for hybrid in (False, True):
        model = network(hybrid=hybrid)
        steps = optimizer(model)
        sparsifier = gossamer.sparsify(model, method, steps, total_steps=50)
        losses = train(model, steps, 50)
        runs.append((losses, sparsifier, model))
    (masked_losses, masked, reference), (losses, ours, model) = runs
    assert len(products) == (150 if method.scope == "layer" else 50)  # competing, small layers end above `break_even`
    assert all(torch.equal(ours.supports[name].mask, masked.supports[name].mask) for name in masked.supports)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(masked_losses), rtol=1e-4, atol=1e-5)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_training_after_detach_is_dense() -> None:
    runs = []
    for hybrid in (False, True):
        model = network(hybrid=hybrid)
        optimizer = sgd(model)
        sparsifier = gossamer.sparsify(model, LIVE["r=1"], optimizer)
        train(model, optimizer, 3)
        sparsifier.detach()
        runs.append(train(model, optimizer, 5))
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-4, atol=1e-5)


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    whole, first = network(hybrid=True), network(hybrid=True)
    optimizers = [sgd(whole), sgd(first)]
    sparsifiers = [
        gossamer.sparsify(model, LIVE["reset"], optimizer, total_steps=20)
        for model, optimizer in zip((whole, first), optimizers, strict=True)
    ]
    train(whole, optimizers[0], 8)
    train(first, optimizers[1], 8)
    second = network(hybrid=True)
    optimizer = sgd(second)
    resumed = gossamer.sparsify(second, LIVE["reset"], optimizer, total_steps=20)
    second.load_state_dict(first.state_dict())
    optimizer.load_state_dict(optimizers[1].state_dict())
    resumed.load_state_dict(sparsifiers[1].state_dict())
    assert train(whole, optimizers[0], 5) == train(second, optimizer, 5)
