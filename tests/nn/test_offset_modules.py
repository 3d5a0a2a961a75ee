"""Offset layers as modules: states, copies, seeds, devices, number formats, compiling, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ConfigError
from gossamer.nn import HybridLinear, OffsetConv2d, OffsetLinear, SparseLinear
from gossamer.nn._offset_operator import _kept, _maps
from gossamer.offsets import DCT, Offset
from gossamer.topology import Support

from .near import assert_near

DENSITIES = [None, 0.3]


@dataclass(frozen=True)
class Drawn(Offset):
    """A matrix of random signs; of this file only."""

    name = "drawn in a test"
    summary = "random signs"
    seeded = True

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        draws = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return draws.sign()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def linear(density: float | None = None, **options: Any) -> OffsetLinear:
    """With numbers in S."""
    layer = OffsetLinear(20, 12, density, **options)
    with torch.no_grad():
        for parameter in layer.sparse.parameters():
            parameter.normal_()
    return layer


def conv(density: float | None = None, **options: Any) -> OffsetConv2d:
    layer = OffsetConv2d(4, 6, 3, density, padding=1, **options)
    with torch.no_grad():
        for parameter in layer.sparse.parameters():
            parameter.normal_()
    return layer


def both(density: float | None) -> list[tuple[Any, Tensor]]:
    return [(linear(density), torch.randn(18, 20)), (conv(density), torch.randn(3, 4, 6, 7))]


# -- states --


def test_states_hold_no_offset() -> None:
    layer = OffsetLinear(512, 512, 0.001)
    state = layer.state_dict()
    assert list(state) == ["alpha", "sparse.values", "sparse.bias", "sparse.index"]
    assert sum(t.nbytes for t in state.values()) < 4 * 512 + 40 * layer.sparse.count  # type: ignore[operator]
    file = io.BytesIO()
    torch.save(state, file)
    assert file.getbuffer().nbytes < 40_000
    assert list(OffsetLinear(8, 8, offset=Drawn(), train_alpha=False).state_dict()) == [
        "alpha",
        "offset_seed",
        "sparse.weight",
        "sparse.bias",
    ]


@pytest.mark.parametrize("offset", [DCT(), Drawn()])
@pytest.mark.parametrize("density", DENSITIES)
def test_a_state_makes_a_fresh_layer_the_same(density: float | None, offset: Offset) -> None:
    layer, x = linear(density, offset=offset, alpha=0.3), torch.randn(5, 20)
    other = linear(density, offset=offset)
    assert not torch.allclose(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("density", DENSITIES)
def test_copies_and_pickles(density: float | None) -> None:
    for layer, x in both(density):
        y = layer(x)
        assert "_map" in layer.__dict__
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert "_map" not in twin.__dict__
            assert torch.equal(twin(x), y)
            with torch.no_grad():
                twin.alpha.add_(1)
            assert torch.equal(layer(x), y)


def test_the_state_of_another_offset_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"the state is of Drawn\(\), the layer has DCT\(\)"):
        nn.Sequential(OffsetLinear(4, 4)).load_state_dict(
            nn.Sequential(OffsetLinear(4, 4, offset=Drawn())).state_dict(), strict=False
        )


# -- seeds --


def test_drawn_offsets_follow_their_seed() -> None:
    layer = OffsetLinear(20, 12, offset=Drawn(), seed=5, bias=False)
    x = torch.randn(3, 20)
    assert_near(layer(x), F.linear(x, Drawn().matrix(12, 20, 5).float()), 1e-6)
    assert layer.offset_seed is not None
    layer.offset_seed.fill_(6)
    assert_near(layer(x), F.linear(x, Drawn().matrix(12, 20, 6).float()), 1e-6)
    torch.manual_seed(1)
    first, second = OffsetLinear(20, 12, offset=Drawn()), OffsetLinear(20, 12, offset=Drawn())
    assert not torch.equal(first.offset_weight(), second.offset_weight())
    torch.manual_seed(1)
    assert torch.equal(OffsetLinear(20, 12, offset=Drawn()).offset_weight(), first.offset_weight())


def test_maps_are_shared_and_go_with_their_layers() -> None:
    before = len(_maps)
    layers = [OffsetLinear(37, 41) for _ in range(2)]
    for layer in layers:
        layer(torch.randn(2, 37))
    assert len(_maps) == before + 1
    assert layers[0].__dict__["_map"][0] is layers[1].__dict__["_map"][0]
    layers.clear()
    del layer
    assert len(_maps) == before


# -- places and formats --


@pytest.mark.parametrize("density", DENSITIES)
def test_meta_device(density: float | None) -> None:
    for layer, x in both(density):
        empty = copy.deepcopy(layer).to("meta")
        assert all(t.is_meta for t in empty.state_dict().values())
        assert empty(x.to("meta")).shape == layer(x).shape
        empty.load_state_dict(layer.state_dict(), assign=True)
        assert torch.equal(empty(x), layer(x))
    made = OffsetLinear(20, 12, density, offset=Drawn(), alpha=0.5, seed=7, device="meta").to_empty(device="cpu")
    made.reset_parameters()
    assert made.offset_seed == 7
    expected = F.linear(torch.ones(1, 20), 0.5 * Drawn().matrix(12, 20, 7).float(), made.sparse.bias)  # type: ignore[arg-type]
    assert_near(made(torch.ones(1, 20)), expected)


@pytest.mark.parametrize("density", DENSITIES)
def test_number_formats(density: float | None) -> None:
    for layer, x in both(density):
        y, exact = layer(x), copy.deepcopy(layer).double()
        assert exact.alpha.dtype == torch.float64
        assert_near(exact(x.double()).float(), y)
        half = copy.deepcopy(layer).bfloat16()
        z = half(x.bfloat16().requires_grad_())
        z.sum().backward()
        assert z.dtype == half.alpha.grad.dtype == torch.bfloat16
        assert_near(z.float(), y, 0.02)
        with torch.autocast("cpu", torch.bfloat16):
            z = layer(x)
            z.float().sum().backward()
        assert z.dtype == (torch.bfloat16 if density is None else torch.float32)
        assert_near(z.float(), y, 0.02)
        assert layer.alpha.grad.dtype == torch.float32


@pytest.mark.parametrize("density", DENSITIES)
def test_shapes_of_inputs(density: float | None) -> None:
    layer, image = linear(density), conv(density)
    x, pixels = torch.randn(2, 3, 20), torch.randn(3, 4, 6, 7)
    weight, kernel = layer.effective_weight(), image.effective_weight()
    bias, shift = layer.sparse.bias, image.sparse.bias
    for given in (x, x[0], x[0, 0], x[:0], torch.randn(20, 9).t(), x[..., :1].expand(2, 3, 20)):
        assert_near(layer(given), F.linear(given, weight, bias))  # type: ignore[arg-type]
    last = pixels.contiguous(memory_format=torch.channels_last)
    for given in (pixels, pixels[0], pixels[:0], last, pixels.transpose(2, 3), pixels[:, :, ::2]):
        y = image(given)
        assert_near(y, F.conv2d(given, kernel, shift, padding=1))  # type: ignore[arg-type]
        y.sum().backward()  # a slope that is expanded


@pytest.mark.parametrize("density", DENSITIES)
def test_modes_and_inputs_without_gradients(density: float | None) -> None:
    for layer, x in both(density):
        y = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), y)
        with torch.inference_mode():
            assert torch.equal(layer(x), y)
        fixed = type(layer).from_dense(layer.dense_module(), train_alpha=False).requires_grad_(False)
        z = fixed(x.requires_grad_())
        z.sum().backward()
        assert x.grad is not None
        assert "alpha" in dict(fixed.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("density", DENSITIES)
def test_compile_and_export(density: float | None) -> None:
    layer, x = nn.Sequential(conv(density), nn.Flatten(), OffsetLinear(252, 5, density)), torch.randn(3, 4, 6, 7)
    y = layer(x)
    expected = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    z = compiled(x)
    assert_near(z, y)
    for got, wanted in zip(torch.autograd.grad(z.square().sum(), list(compiled.parameters())), expected, strict=True):
        assert_near(got, wanted)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,)), file)
    file.seek(0)
    assert_near(torch.export.load(file).module()(x), y)


def test_a_graph_needs_no_layer() -> None:
    layer, x = OffsetLinear(11, 9, bias=False), torch.randn(4, 11)
    exported = torch.export.export(layer, (x,)).module()
    weight = layer.dense_module().weight
    del layer
    assert_near(exported(x), F.linear(x, weight))
    assert any(key[:3] == ("DCT()", 9, 11) for key in _kept)
    known = torch.ops.gossamer.offset(x, None, None, "Identity(wrap=False)", [9, 11], [], False, False, [])
    assert torch.equal(known, x[:, :9])
    with pytest.raises(ConfigError, match="make one offset layer with it first"):
        torch.ops.gossamer.offset(x, None, None, "Elsewhere()", [9, 11], [], False, False, [])


# -- other forms --


def test_from_dense_leaves_the_module_and_keeps_bias_and_modes() -> None:
    module = nn.Linear(20, 12).eval()
    weight = module.weight.clone()
    module.weight.requires_grad_(False)
    module.register_forward_hook(lambda *_: pytest.fail("hooks are of the module"))
    layer = OffsetLinear.from_dense(module, DCT(), alpha=2.0)
    assert torch.equal(module.weight, weight)
    assert layer.sparse.bias is module.bias
    assert not layer.training
    assert not layer.sparse.weight.requires_grad  # type: ignore[union-attr]
    x = torch.randn(3, 20)
    assert_near(layer(x), F.linear(x, 2 * layer.offset_weight().float(), module.bias))


def test_from_sparse_and_hybrid_layers_keep_the_support() -> None:
    mask = torch.rand(12, 20) < 0.3
    dense = nn.Linear(20, 12)
    for kind in (SparseLinear, HybridLinear):
        module = kind.from_dense(dense, mask)
        before = module.to_dense().clone()
        layer = OffsetLinear.from_dense(module)
        held: Any = layer.sparse
        assert type(held) is kind
        assert torch.equal(held.support().mask, mask)
        assert not held.to_dense().any()
        assert torch.equal(module.to_dense(), before)
        held.set_support(~mask)
        assert torch.equal(module.support().mask, mask)
        assert held.bias is dense.bias


@pytest.mark.parametrize("density", DENSITIES)
def test_the_dense_module_computes_the_same(density: float | None) -> None:
    for layer, x in both(density):
        layer = layer.eval()
        plain = layer.dense_module()
        assert type(plain) in (nn.Linear, nn.Conv2d)
        assert not plain.training
        assert plain.bias is layer.sparse.bias
        assert_near(plain(x), layer(x))


def test_repr() -> None:
    assert "DCT(), train_alpha=False" in repr(OffsetConv2d(2, 3, 3, 0.5, train_alpha=False))
    assert "count=27" in repr(OffsetConv2d(2, 3, 3, 0.5))


# -- refusals --


class Undecorated(Offset):
    """Its layers would share the D of the first."""

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        return torch.zeros(rows, columns, dtype=torch.float64)


def test_what_is_refused() -> None:
    full: Any = Support.full((3, 4))
    empty, hooked = nn.Linear(1, 3), nn.Linear(4, 3)
    empty.weight = nn.Parameter(torch.empty(3, 0))
    del hooked.weight
    hooked.weight = torch.zeros(3, 4)  # type: ignore[assignment]
    cases: list[tuple[Any, str]] = [
        (lambda: OffsetLinear(4, 3, offset="dct"), "offset is a str; expected an Offset"),  # type: ignore[arg-type]
        (lambda: OffsetLinear(4, 3, offset=DCT), r"the class DCT; expected an Offset, e.g. .*DCT\(\)"),  # type: ignore[arg-type]
        (lambda: OffsetLinear(4, 3, alpha=float("nan")), "alpha=nan: expected a finite number"),
        (lambda: OffsetLinear(4, 3, alpha=True), "alpha=True"),
        (lambda: OffsetLinear(4, 3, alpha=10**400), "beyond what torch.float32 holds"),
        (lambda: OffsetLinear(4, 3, alpha=1e6, dtype=torch.float16), "beyond what torch.float16 holds"),
        (lambda: OffsetLinear(4, 3, seed=2**63), "it is kept in 64 bits"),
        (lambda: OffsetLinear(4, 3, offset=Undecorated()), "Undecorated is no dataclass"),
        (lambda: OffsetConv2d.from_dense(nn.Conv2d(4, 3, 3, padding_mode="circular")), "padding_mode='circular'"),
        (lambda: OffsetLinear.from_dense(nn.Linear(4, 3, dtype=torch.complex64)), "holds floating point values"),
        (lambda: OffsetLinear.from_dense(empty), r"shape \(3, 0\) has no entries"),
        (lambda: OffsetLinear.from_dense(hooked), "no Parameter, a hook makes it"),
        (lambda: OffsetLinear(4, 3)(torch.randn(2, 4).to_sparse()), "sparse layers take dense ones"),
        (lambda: OffsetLinear(4, 3, train_alpha="no"), "train_alpha='no'"),  # type: ignore[arg-type]
        (lambda: OffsetLinear(4, 3, seed=1.5), "seed=1.5"),  # type: ignore[arg-type]
        (lambda: OffsetLinear(0, 3), "in_features=0"),
        (lambda: OffsetLinear(4, 3, device="cuda"), "a sparse layer cannot be there"),
        (lambda: OffsetLinear(4, 3, 0.5, support=full), "pass density=None"),
        (lambda: OffsetConv2d(4, 3, 3, padding_mode="reflect"), "pad with zeros only"),
        (lambda: OffsetConv2d(4, 3, 3, groups=2), "must be multiples of it"),
        (lambda: OffsetConv2d(4, 3, 3, 0.5, padding="half"), "padding='half'"),
        (lambda: OffsetLinear.from_dense(nn.Conv2d(4, 3, 3)), "one of Linear, SparseLinear, HybridLinear"),
        (lambda: OffsetConv2d.from_dense(type("Own", (nn.Conv2d,), {})(4, 3, 3)), "of no subclass"),
        (lambda: OffsetLinear(4, 3, 0.5)(torch.randn(2, 5)), r"expected \(..., 4\)"),
        (lambda: OffsetLinear(4, 3, 0.5)(torch.randn(2, 4).double()), "the values of the layer are"),
        (lambda: OffsetLinear(4, 3, 0.5)([1.0] * 4), "the input is a list"),  # type: ignore[arg-type]
        (lambda: torch.fx.symbolic_trace(OffsetLinear(4, 3)), "cannot be recorded"),
    ]
    for make, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
