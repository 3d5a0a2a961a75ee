"""Sparse weights on sparse activations: the layer's function, with a multiplication only where two non-zeros meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import CheckpointError, ConfigError
from gossamer.nn import SparseConv1d, SparseConv2d, SparseLinear
from gossamer.nn.doubly_sparse import DoublySparse, doubly_sparse
from tests.kernels.forcing import available, forced

CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: SparseLinear(40, 30, 0.2), (7, 3, 40)),
    (lambda: SparseLinear(1, 1, 1.0), (1, 1)),
    (lambda: SparseLinear(20, 10, 0.1), (0, 20)),
    (lambda: SparseConv2d(12, 20, 3, 0.2, stride=2, padding=1, groups=2), (5, 12, 9, 8)),
    (lambda: SparseConv2d(6, 8, (2, 3), 0.3, padding="same", dilation=2), (5, 6, 9, 8)),
    (lambda: SparseConv2d(5, 7, 1, 0.3, bias=False), (2, 5, 4, 4)),
    (lambda: SparseConv2d(6, 8, 3, 0.3), (6, 9, 8)),
    (lambda: SparseConv1d(6, 8, 4, 0.3, stride=3, padding=2), (5, 6, 19)),
    (lambda: SparseConv1d(6, 8, 4, 0.3, padding="same"), (5, 6, 9)),
]


def activations(shape: tuple[int, ...], density: float = 0.3) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape) * (torch.rand(shape) < density)


@pytest.mark.parametrize("path", available())
@pytest.mark.parametrize(("make", "shape"), CASES)
def test_it_computes_what_the_layer_does(make: Callable[[], nn.Module], shape: tuple[int, ...], path: str) -> None:
    torch.manual_seed(0)
    layer, x = make(), activations(shape)
    with forced(path), torch.no_grad():
        torch.testing.assert_close(DoublySparse.of(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", [available()[0], "reference"])
def test_one_multiplication_for_each_pair_that_meets(path: str) -> None:
    torch.manual_seed(0)
    layer, x = SparseLinear(50, 30, 0.2), activations((9, 50), 0.2)
    conv, image = SparseConv2d(6, 8, 3, 0.3, stride=2, padding=1, groups=2), activations((3, 6, 7, 7))
    with forced(path):
        doubly = DoublySparse.of(layer)
        doubly(x)
        columns = (layer.to_dense() != 0).sum(0)
        assert doubly.multiplications == int(((x != 0) * columns).sum())
        assert doubly.dense_multiplications == 9 * 50 * 30
        over = DoublySparse.of(conv)
        over(image)
        ones = nn.functional.conv2d((image != 0).float(), (conv.to_dense() != 0).float(), None, 2, 1, 1, 2)
        assert over.multiplications == int(ones.sum())


def test_full_on_full_is_dense_but_for_the_border() -> None:
    doubly = DoublySparse.of(nn.Linear(5, 4))
    doubly(torch.ones(3, 5))
    assert doubly.multiplications == doubly.dense_multiplications == 60


def test_nan_is_no_zero() -> None:
    doubly = DoublySparse.of(SparseLinear(3, 2, support=gossamer.Support.full((2, 3))))
    assert doubly(torch.tensor([[0.0, float("nan"), 0.0]])).isnan().all()


def test_it_is_made_of_dense_layers_with_zeros() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1)
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.2
    doubly, x = DoublySparse.of(layer), activations((2, 4, 5, 5))
    assert len(doubly.values) == int((layer.weight != 0).sum())
    with torch.no_grad():
        torch.testing.assert_close(doubly(x), layer(x), atol=1e-5, rtol=1e-5)


def test_a_whole_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    gossamer.convert(model, gossamer.methods.static(0.2))
    x = torch.randn(6, 20)
    expected = model(x).detach()
    assert doubly_sparse(model) is model
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert [type(part).__name__ for part in model] == ["DoublySparse", "ReLU", "DoublySparse"]  # type: ignore[attr-defined]
    assert not list(model.parameters())


@pytest.mark.parametrize("density", [0.2, 0.4])
def test_loading_into_another_support(density: float) -> None:
    torch.manual_seed(0)
    one, two = DoublySparse.of(SparseLinear(20, 10, density)), DoublySparse.of(SparseLinear(20, 10, 0.2))
    x = activations((4, 20))
    two(x)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("row", lambda row: row + 100, "not ascending rows below 10"),
        ("row", lambda row: row - 100, "not ascending rows"),
        ("row", lambda row: row * 0, "not ascending rows"),
        ("row", lambda row: row.long(), "row torch.int64"),
        ("start", lambda start: start.flip(0), "do not share out"),
        ("start", lambda start: start.clamp(min=3), "do not share out"),
        ("start", lambda start: start.int(), "start is torch.int32"),
        ("start", lambda start: start[:3], r"start is torch.int64 \(3,\)"),
        ("values", lambda values: values[:3], r"values torch.float32 \(3,\)"),
        ("values", lambda values: values.tolist(), "a list"),
    ],
)
def test_damaged_entries_are_refused_and_change_nothing(
    name: str, damage: Callable[[Tensor], object], message: str, assign: bool
) -> None:
    doubly = DoublySparse.of(SparseLinear(20, 10, 0.2))
    state, x = doubly.state_dict(), activations((4, 20))
    before = {key: value.clone() for key, value in state.items()}
    expected = doubly(x)
    with pytest.raises(CheckpointError, match=message):
        doubly.load_state_dict({**state, name: damage(state[name])}, assign=assign)
    assert all(torch.equal(value, before[key]) for key, value in doubly.state_dict().items())
    assert torch.equal(doubly(x), expected)


def test_what_the_kernel_would_misread_is_refused() -> None:
    """Entries changed, moved or emptied by hand, and a bias of another size."""
    x = activations((4, 20))

    def layer() -> DoublySparse:
        made = DoublySparse.of(SparseLinear(20, 10, 0.2))
        made(x)
        return made

    changed, short, typed = layer(), layer(), layer()
    changed.row[0] = 10**6
    short.bias, typed.bias = torch.zeros(3), torch.zeros(10, dtype=torch.float64)
    for doubly, message in ((changed, "not ascending"), (short, r"shape \(3,\)"), (typed, "float64")):
        with pytest.raises(ConfigError, match=message):
            doubly(x)
    meta = layer().to("meta")
    with pytest.raises(ConfigError, match="on the meta device"):
        meta(x.to("meta"))
    with pytest.raises(ConfigError, match="share out"):
        meta.to_empty(device="cpu").apply(lambda each: each.start.fill_(-1))(x)  # type: ignore[operator]
    with torch.inference_mode():
        assert DoublySparse.of(SparseLinear(20, 10, 0.2))(x).shape == (4, 10)


def test_a_bias_of_another_dtype_becomes_that_of_the_values() -> None:
    layer, x = nn.Linear(20, 10), activations((4, 20))
    wanted = layer(x)
    layer.bias = nn.Parameter(layer.bias.detach().double())
    torch.testing.assert_close(DoublySparse.of(layer)(x), wanted.detach())


def test_compiled_and_exported_it_is_the_same() -> None:
    torch._dynamo.reset()
    doubly, x = DoublySparse.of(SparseConv2d(4, 6, 3, 0.3, padding=1)), activations((2, 4, 5, 5))
    expected = doubly(x)
    assert torch.equal(torch.compile(doubly, backend="aot_eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.export.export(doubly, (x,)).module()(x), expected)


def test_hooks_stay() -> None:
    model, seen = nn.Sequential(SparseLinear(20, 10, 0.2)), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    doubly_sparse(model)(activations((4, 20)))
    handle.remove()
    model(activations((4, 20)))
    assert seen == [1]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: DoublySparse.of(nn.ConvTranspose2d(3, 4, 2)), "a ConvTranspose2d has no doubly sparse form"),
        (lambda: DoublySparse.of(nn.Linear(4, 3))(torch.zeros(2, 5)), "expected"),
        (lambda: DoublySparse.of(nn.Conv2d(4, 3, 2))(torch.zeros(2, 3, 4, 4)), "expected"),
        (lambda: DoublySparse.of(nn.Conv2d(4, 3, 3))(torch.zeros(2, 4, 2, 2)), "smaller than the kernel"),
        (lambda: DoublySparse.of(nn.Linear(4, 3))(torch.zeros(2, 4, dtype=torch.float64)), "float64"),
        (lambda: DoublySparse.of(nn.Linear(4, 3))(torch.zeros(2, 4, requires_grad=True)), "no gradients"),
        (lambda: DoublySparse.of(nn.Conv2d(4, 3, 1))(torch.zeros(2, 4, 0, 2)), "smaller than the kernel"),
        (lambda: DoublySparse.of(nn.Linear(4, 3, device="meta")), "on the meta device"),
        (lambda: doubly_sparse(nn.Linear(4, 3)), "no sparse layers"),
        (lambda: doubly_sparse(None), "model is a NoneType"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        act()
