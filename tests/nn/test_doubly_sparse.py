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


def test_loading_into_another_support() -> None:
    torch.manual_seed(0)
    one, two = (DoublySparse.of(SparseLinear(20, 10, 0.2)) for _ in range(2))
    x = activations((4, 20))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))


def test_damaged_entries_are_refused() -> None:
    doubly = DoublySparse.of(SparseLinear(20, 10, 0.2))
    state = doubly.state_dict()
    for name, value in {"row": state["row"] + 100, "start": state["start"].flip(0)}.items():
        with pytest.raises(CheckpointError, match="no entries"):
            doubly.load_state_dict({**state, name: value})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: DoublySparse.of(nn.ConvTranspose2d(3, 4, 2)), "a ConvTranspose2d has no doubly sparse form"),
        (lambda: DoublySparse.of(nn.Linear(4, 3))(torch.zeros(2, 5)), "expected"),
        (lambda: DoublySparse.of(nn.Conv2d(4, 3, 2))(torch.zeros(2, 3, 4, 4)), "expected"),
        (lambda: DoublySparse.of(nn.Conv2d(4, 3, 3))(torch.zeros(2, 4, 2, 2)), "smaller than the kernel"),
        (lambda: DoublySparse.of(nn.Linear(4, 3))(torch.zeros(2, 4, dtype=torch.float64)), "float64"),
        (lambda: DoublySparse.of(nn.Linear(4, 3))(torch.zeros(2, 4, requires_grad=True)), "no gradients"),
        (lambda: doubly_sparse(nn.Linear(4, 3)), "no sparse layers"),
    ],
)
def test_what_cannot_be_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        act()
