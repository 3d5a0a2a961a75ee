"""Offset layers compute alpha D x + S x + b: against float64 matrices, on every class of shapes, with all gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer.methods import static
from gossamer.nn import HybridConv2d, HybridLinear, OffsetConv2d, OffsetLinear, SparseWeight
from gossamer.offsets import DCT
from gossamer.topology import Support

from .near import assert_near

LINEAR = [(12, 8), (8, 12), (10, 10), (7, 13), (1, 1), (1, 5), (5, 1)]  # (inputs, outputs)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1},
    "first": {"in_channels": 3, "out_channels": 40, "kernel_size": 3},
    "pointwise": {"in_channels": 6, "out_channels": 4, "kernel_size": 1},
    "strided": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "dilation": 2, "padding": 2},
    "grouped": {"in_channels": 6, "out_channels": 9, "kernel_size": 3, "groups": 3, "padding": 1},
    "depthwise": {"in_channels": 5, "out_channels": 5, "kernel_size": 3, "groups": 5, "padding": "same"},
    "oblong": {"in_channels": 4, "out_channels": 3, "kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 1)},
    "same, even": {"in_channels": 2, "out_channels": 3, "kernel_size": (2, 3), "padding": "same"},
    "valid": {"in_channels": 2, "out_channels": 3, "kernel_size": 2, "padding": "valid"},
}
KINDS = ("dense", "sparse", "hybrid")
SAME = pytest.mark.filterwarnings("ignore:Using padding='same' with even")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def cosines(rows: int, columns: int) -> Tensor:
    """The card's formula, entry by entry."""
    q = max(rows, columns)
    return torch.tensor(
        [
            [
                math.sqrt((1 if k == 0 else 2) / q) * math.cos(math.pi * k * (2 * i + 1) / (2 * q))
                for i in range(columns)
            ]
            for k in range(rows)
        ],
        dtype=torch.float64,
    )


def kernel_of(layer: OffsetConv2d) -> Tensor:
    """K[o, c, kh, kw] = C_q[o, (kh k + kw) C + c], entry by entry."""
    outputs, inputs, height, width = layer.weight_shape
    matrix, kernel = cosines(outputs, inputs * height * width), torch.zeros(layer.weight_shape, dtype=torch.float64)
    for c in range(inputs):
        for kh in range(height):
            for kw in range(width):
                kernel[:, c, kh, kw] = matrix[:, (kh * width + kw) * inputs + c]
    return kernel


def of_kind(layer: Any, kind: str) -> Any:
    """The layer with S of that kind, of half its entries, and with numbers in it; alpha is 1.5."""
    mask = torch.rand(layer.weight_shape) < 0.5
    support = Support.from_mask(mask)
    if kind == "sparse":
        layer.sparse = gossamer.convert(layer.sparse, {"weight": support})
    elif kind == "hybrid":
        hybrid: Any = HybridLinear if isinstance(layer, OffsetLinear) else HybridConv2d
        layer.sparse = hybrid.from_dense(layer.sparse, support)
    with torch.no_grad():
        held = layer.sparse.values if kind == "sparse" else layer.sparse.weight
        held.copy_(torch.randn_like(held) * (1 if kind == "sparse" else mask))
        layer.alpha.fill_(1.5)
    return layer


def assert_formula(layer: Any, x: Tensor, matrix: Tensor, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Output and gradients of input, alpha, S and bias are those of one dense float64 weight, alpha D + S."""
    held = layer.sparse
    sparse = isinstance(held, SparseWeight)
    s = (held.to_dense() if sparse else held.weight).detach().double().requires_grad_()
    alpha, bias = (p.detach().double().requires_grad_() for p in (layer.alpha, held.bias))
    x, reference = x.requires_grad_(), x.detach().double().requires_grad_()
    y, expected = layer(x), product(reference, alpha * matrix + s, bias)
    assert y.dtype == x.dtype
    assert_near(y, expected, 1e-6)
    slope = torch.randn(y.shape, dtype=torch.float64)
    mine = [x, layer.alpha, held.bias, held.values if sparse else held.weight]
    got = torch.autograd.grad(y, mine, slope.to(y.dtype))
    wanted = list(torch.autograd.grad(expected, [reference, alpha, bias, s], slope))
    if sparse:
        wanted[-1] = wanted[-1].flatten()[held.positions()]
    terms = float(x.detach().norm() * slope.norm())  # those of alpha's gradient, one number, add up to this at most
    for a, b, scale in zip(got, wanted, (1.0, max(1.0, terms), 1.0, 1.0), strict=True):
        assert_near(a, b, 1e-6 * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", LINEAR)
def test_linear_is_its_formula(sizes: tuple[int, int], kind: str) -> None:
    inputs, outputs = sizes
    layer = of_kind(OffsetLinear(inputs, outputs), kind)
    matrix = cosines(outputs, inputs)
    assert_near(layer.offset_weight(), matrix, 1e-14)
    assert_formula(layer, torch.randn(18, inputs), matrix, F.linear)
    assert_near(layer.effective_weight().double(), 1.5 * matrix + layer.dense_module().weight - 1.5 * matrix, 1e-6)


@SAME
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_their_formula(name: str, kind: str) -> None:
    layer = of_kind(OffsetConv2d(**CONVOLUTIONS[name]), kind)
    kernel = kernel_of(layer)
    assert_near(layer.offset_weight(), kernel, 1e-14)
    how = {k: v for k, v in CONVOLUTIONS[name].items() if k in ("stride", "padding", "dilation", "groups")}
    x = torch.randn(3, layer.sparse.in_channels, 7, 8)
    assert_formula(layer, x, kernel, lambda x, weight, bias: F.conv2d(x, weight, bias, **how))


def test_the_patch_has_its_channels_fastest() -> None:
    """`unfold` has them slowest: its order is another offset."""
    layer, x = OffsetConv2d(4, 6, 3, bias=False), torch.randn(2, 4, 5, 5)
    patches = F.unfold(x, 3)  # (batch, channel kh kw, positions)
    ours = patches.view(2, 4, 9, 9).transpose(1, 2).reshape(2, 36, 9)
    matrix = cosines(6, 36).float()
    assert_near(layer(x), (matrix @ ours).view(2, 6, 3, 3), 1e-6)
    assert (layer(x) - (matrix @ patches).view(2, 6, 3, 3)).abs().max() > 0.1


@pytest.mark.parametrize("sizes", LINEAR)
def test_singular_values_are_one(sizes: tuple[int, int]) -> None:
    inputs, outputs = sizes
    matrix = OffsetLinear(inputs, outputs).offset_weight()
    values = torch.linalg.svdvals(matrix)
    assert len(values) == min(sizes)
    assert_near(values, torch.ones_like(values), 1e-12)
    if outputs <= inputs:
        assert_near(matrix @ matrix.T, torch.eye(outputs, dtype=torch.float64), 1e-12)


def test_hand_worked_values() -> None:
    with torch.no_grad():
        layer = OffsetLinear(2, 3, bias=False, alpha=2.0)
        first = [math.sqrt(1 / 3)] * 2
        second = [math.sqrt(2 / 3) * math.cos(math.pi * k / 6) for k in (1, 3)]
        third = [math.sqrt(2 / 3) * math.cos(math.pi * k / 3) for k in (1, 3)]
        assert_near(layer.effective_weight(), 2 * torch.tensor([first, second, third]), 1e-6)
        assert_near(OffsetLinear(1, 1, bias=False)(torch.tensor([[3.0]])), torch.tensor([[3.0]]), 1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_finite_differences(kind: str) -> None:
    linear = of_kind(OffsetLinear(4, 5), kind).double()
    conv = of_kind(OffsetConv2d(2, 3, 3, stride=2, padding=1), kind).double()
    for layer, x in ((linear, torch.randn(3, 4)), (conv, torch.randn(2, 2, 4, 5))):
        names, values = zip(*((n, p.detach().requires_grad_()) for n, p in layer.named_parameters()), strict=True)

        def call(x: Tensor, *values: Tensor, layer: Any = layer, names: Any = names) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

        inputs = (x.double().requires_grad_(), *values)
        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
        if kind == "dense":
            assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode() -> None:
    layer = of_kind(OffsetLinear(4, 5), "dense").double()
    x, t = torch.randn(2, 3, 4, dtype=torch.float64)
    slopes = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual
        values = {name: dual(p, slopes[name]) for name, p in layer.named_parameters()}
        y = torch.func.functional_call(layer, values, (dual(x, t),))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    weight = slopes["alpha"] * layer.offset_weight() + slopes["sparse.weight"]
    assert_near(tangent, F.linear(t, layer.effective_weight()) + F.linear(x, weight, slopes["sparse.bias"]), 1e-12)


@pytest.mark.parametrize("density", [None, 0.3])
def test_what_alpha_needs_of_the_forward_pass_is_the_input(density: float | None) -> None:
    """<D^T g, x>: nothing of the size of D x is kept."""
    layer, sizes = OffsetLinear(20, 70, density, bias=False), []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(torch.randn(48, 20, requires_grad=True))
    assert 48 * 20 in sizes
    assert max(sizes) < 48 * 70
    y.sum().backward()
    assert layer.alpha.grad is not None


def test_at_first_a_layer_is_its_offset_whatever_the_support() -> None:
    x, bias = torch.randn(5, 30), torch.randn(20)
    outputs = []
    for seed in range(3):
        torch.manual_seed(seed)
        layer = OffsetLinear(30, 20, 0.2, alpha=0.7)
        assert not layer.sparse.values.any()  # type: ignore[union-attr, operator]
        layer.sparse.bias.data.copy_(bias)  # type: ignore[union-attr, operator, arg-type]
        outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert_near(outputs[0], F.linear(x.double(), 0.7 * cosines(20, 30), bias.double()), 1e-6)
    dense = OffsetLinear(30, 20, alpha=0.7)
    assert not dense.sparse.weight.any()  # type: ignore[union-attr, operator]


def test_the_bias_is_drawn_as_torch_does() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(30, 20)
    torch.manual_seed(3)
    assert torch.equal(OffsetLinear(30, 20).sparse.bias, plain.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["masked", "sparse"])
def test_s_is_zero_off_its_support_and_trained_on_it(layout: str) -> None:
    model: Any = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    model = gossamer.convert(model, None if layout == "masked" else static(0.2), offset=DCT())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    sparsifier = gossamer.sparsify(model, static(0.2), optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 20)).square().sum().backward()
        optimizer.step()
    for path, layer in ((n, m) for n, m in model.named_modules() if isinstance(m, OffsetLinear)):
        support = sparsifier.supports[f"{path}.sparse.weight"]
        held: Any = layer.sparse
        weight = held.to_dense() if layout == "sparse" else held.weight
        assert not weight[~support.mask].any()
        assert weight[support.mask].all()
        assert layer.alpha != 1
    counts = {name: p.numel() for name, p in model.named_parameters() if name.endswith(".values")}
    assert layout == "masked" or counts == {
        n.replace("weight", "values"): s.count for n, s in sparsifier.supports.items()
    }
