"""What layers are made of and turned into: the same names mean the same on sparse and hybrid layers; what cannot be."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import methods
from gossamer.errors import ConfigError
from gossamer.nn import HybridConv2d, HybridLinear, SparseConv1d, SparseConv2d, SparseLinear
from gossamer.topology import Support

FORMS: list[Any] = [
    (SparseLinear, lambda: nn.Linear(20, 12)),
    (HybridLinear, lambda: nn.Linear(20, 12)),
    (SparseConv1d, lambda: nn.Conv1d(4, 6, 3)),
    (SparseConv2d, lambda: nn.Conv2d(4, 6, 3)),
    (HybridConv2d, lambda: nn.Conv2d(4, 6, 3)),
]
OTHERS: list[Callable[[], nn.Module]] = [
    lambda: nn.ConvTranspose1d(4, 4, 3),
    lambda: nn.ConvTranspose2d(4, 4, 3),
    lambda: nn.Conv3d(4, 4, 3),
    lambda: nn.Bilinear(4, 4, 4),
    lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4),
    lambda: nn.ReLU(),
]
METHOD = methods.static(0.3)


def masked(make: Callable[[], Any]) -> tuple[Any, Tensor]:
    """A dense layer with zeros, and the mask of the others."""
    torch.manual_seed(0)
    dense = make()
    mask = torch.rand(dense.weight.shape) < 0.15
    with torch.no_grad():
        dense.weight *= mask
    return dense, mask


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))


# -- the same on all layers --


@pytest.mark.parametrize(("kind", "make"), FORMS)
def test_weight_and_module_come_back(kind: Any, make: Callable[[], Any]) -> None:
    dense, mask = masked(make)
    for layer in (kind.from_dense(dense, mask), kind.from_dense(dense, Support.from_mask(mask))):
        assert layer.support() == Support.from_mask(mask)
        assert torch.equal(layer.to_dense(), dense.weight)
        back = layer.dense_module()
        assert type(back) is type(dense)
        assert torch.equal(back.weight, dense.weight)
        assert back.bias is dense.bias


@pytest.mark.parametrize(("kind", "make"), FORMS)
def test_to_dense_is_differentiable_in_the_active_entries_only(kind: Any, make: Callable[[], Any]) -> None:
    dense, mask = masked(make)
    layer = kind.from_dense(dense, mask)
    layer.to_dense().sum().backward()
    held = layer.weight if hasattr(layer, "weight") else layer.values
    assert held.grad.sum() == mask.sum()
    assert bool(((held.grad == 0) | (held.grad == 1)).all())


def test_a_hybrid_layer_hides_what_is_off_its_support() -> None:
    layer = HybridLinear(4, 3)
    assert torch.equal(layer.to_dense(), layer.weight)
    mask = torch.eye(3, 4).bool()
    layer.set_support(Support.from_mask(mask))
    assert torch.equal(layer.to_dense(), layer.weight * mask)
    assert layer.support() == Support.from_mask(mask)


@pytest.mark.parametrize(("kind", "make"), FORMS)
@pytest.mark.parametrize("other", OTHERS)
def test_other_modules_are_refused(kind: Any, make: Callable[[], Any], other: Callable[[], nn.Module]) -> None:
    _, mask = masked(make)
    with pytest.raises(ConfigError, match=f"{kind.__name__} takes the place of .* got a {type(other()).__name__}"):
        kind.from_dense(other(), mask)


@pytest.mark.parametrize(("kind", "make"), FORMS)
def test_supports_that_do_not_fit_are_refused(kind: Any, make: Callable[[], Any]) -> None:
    dense, mask = masked(make)
    for bad, why in [(mask[1:], "the weight has"), (mask.float(), "use mask.bool()"), (None, "support is a NoneType")]:
        with pytest.raises(ConfigError, match=why.replace("(", r"\(").replace(")", r"\)")):
            kind.from_dense(dense, bad)


# -- places and types --


@pytest.mark.parametrize(
    "make", [lambda **k: SparseLinear(8, 6, 0.5, **k), lambda **k: SparseConv2d(2, 4, 3, 0.5, **k)]
)
def test_devices_and_dtypes_that_cannot_be_are_named(make: Callable[..., nn.Module]) -> None:
    for options, why in [
        ({"device": "cuda"}, "device='cuda': a sparse layer cannot be there"),
        ({"device": torch.device("cuda", 1)}, "device='cuda:1': a sparse layer cannot be there"),
        ({"device": "gpu"}, "device='gpu' is no device"),
        ({"dtype": torch.int32}, "dtype=torch.int32: a sparse layer holds floating point values"),
        ({"dtype": torch.complex64}, "dtype=torch.complex64"),
        ({"dtype": "float"}, "dtype='float'"),
    ]:
        with pytest.raises(ConfigError, match=why):
            make(**options)


def test_from_coo_names_its_device() -> None:
    with pytest.raises(ConfigError, match="device='cuda'"):
        SparseLinear.from_coo(torch.arange(2), torch.ones(2), (3, 4), device="cuda")


# -- models that have nothing to convert --


@pytest.mark.parametrize("what", [METHOD, {"2.weight": torch.ones(5, 20, dtype=torch.bool)}])
def test_lazy_layers_are_to_be_run_first(what: Any) -> None:
    model = nn.Sequential(nn.LazyLinear(20), nn.ReLU(), nn.Linear(20, 5))
    with pytest.raises(ConfigError, match=r"0.weight, 0.bias: not initialised yet"):
        gossamer.convert(model, what)
    model(torch.zeros(1, 3))
    gossamer.convert(model, what)
    assert isinstance(model[2], SparseLinear)


def test_a_model_without_parameters_is_told() -> None:
    with pytest.raises(ConfigError, match="a Sequential, has no parameters"):
        gossamer.convert(nn.Sequential(nn.ReLU()), METHOD)


# -- tracers --


def _traced(model: nn.Module, x: Tensor) -> None:
    torch.jit.trace(model, x)


def _exported(model: nn.Module, x: Tensor) -> None:
    torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)


def _symbolic(model: nn.Module, x: Tensor) -> None:
    torch.fx.symbolic_trace(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("record", [_traced, _exported, _symbolic])
def test_tracers_are_told_what_to_use(record: Callable[[nn.Module, Tensor], None]) -> None:
    for model in (gossamer.convert(network(), METHOD), SparseLinear(20, 5, 0.5)):
        with pytest.raises(ConfigError, match=r"torch.jit.trace.* use torch.export"):
            record(model, torch.randn(3, 20))
    symbolic = torch.fx.symbolic_trace(gossamer.convert(gossamer.convert(network(), METHOD), layout="dense"))
    assert symbolic(torch.randn(3, 20)).shape == (3, 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hybrid_layers_are_traced_as_dense_ones() -> None:
    model, x = gossamer.convert(network(), METHOD, layout="hybrid"), torch.randn(33, 20)
    for traced in (torch.jit.trace(model, x[:2]), torch.fx.symbolic_trace(model)):  # type: ignore[no-untyped-call]
        torch.testing.assert_close(traced(x), model(x))
