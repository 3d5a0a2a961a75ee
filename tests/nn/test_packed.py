"""Packed activations behave as the tensors they stand for."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ConfigError
from gossamer.kernels import sparse
from gossamer.nn import PackedActivation, SparseConv2d, SparseLinear, packed

from .near import assert_near


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@contextmanager
def unpacking() -> Iterator[list[str]]:
    """The operators that went the plain way inside."""
    seen: list[str] = []
    plainly = packed._plainly

    def spy(func: Any, args: Any, kwargs: Any) -> Any:
        seen.append(str(func))
        return plainly(func, args, kwargs)

    packed._plainly = spy  # type: ignore[assignment]
    try:
        yield seen
    finally:
        packed._plainly = plainly


def twins(x: Tensor, lead: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A leaf and the packed activation made of it, and the same plain."""
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    inside = packed.leave(packed.enter(one, lead, x.dtype), x.shape[:lead], keep=True)
    assert isinstance(inside, PackedActivation)
    return one, inside, other, other * 1


def assert_same(act: Callable[[Tensor], Tensor], x: Tensor, lead: int = 1) -> Tensor:
    """An operation gives the same on both, forward and backward; returns what it gave for the packed one."""
    one, inside, other, outside = twins(x, lead)
    torch.manual_seed(1)
    y = act(inside)
    torch.manual_seed(1)
    expected = act(outside)
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    assert_near(y.unpacked() if isinstance(y, PackedActivation) else y, expected)
    slope = torch.randn(expected.shape)
    y.backward(slope)
    expected.backward(slope)
    assert_near(one.grad, other.grad)
    return y


IMAGES = {16: torch.randn(16, 6, 9, 8), 5: torch.randn(5, 6, 9, 8), 37: torch.randn(37, 6, 9, 8)}

STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(F, name)
        for name in ("relu", "gelu", "silu", "tanh", "sigmoid", "elu", "leaky_relu", "hardswish", "softplus", "mish")
    },
    "relu6": F.relu6,
    "relu in place": lambda x: F.relu(x * 1, inplace=True),
    "silu in place": lambda x: F.silu(x * 1, inplace=True),
    "sum of two": lambda x: x + x.relu(),
    "difference": lambda x: x - 2 * x.tanh(),
    "product": lambda x: x * x,
    "quotient": lambda x: x / (1 + x * x),
    "scalars": lambda x: -(3 - (x + 1) * 0.5) / 2,
    "exp": lambda x: (x * 0.1).exp(),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool, all arguments": lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2), True),
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "average pool, all arguments": lambda x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 1), True, False),
    "global pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(-1, keepdim=True),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(-1, 6, 72),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "dropout": lambda x: F.dropout(x, 0.3),
    "plus a plain one": lambda x: x + torch.ones(x.shape),
    "batch norm in evaluation": lambda x: F.batch_norm(
        x, torch.arange(6.0), torch.ones(6), torch.arange(6.0), torch.ones(6)
    ),
}


@pytest.mark.parametrize("batch", IMAGES)
@pytest.mark.parametrize("name", STAYS)
def test_these_stay_packed(name: str, batch: int) -> None:
    with unpacking() as seen:
        _, inside, *_ = twins(IMAGES[batch])
        y = STAYS[name](inside)
        assert isinstance(y, PackedActivation)
        y.backward(torch.ones(y.shape))
    assert not seen
    assert_same(STAYS[name], IMAGES[batch])


GOES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "slice": lambda x: x[:, 1:3],
    "transpose": lambda x: x.transpose(0, 1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "cat": lambda x: torch.cat([x, x.relu()], 1),
    "channel dropout": lambda x: F.dropout2d(x, 0.3),
    "broadcast": lambda x: x * torch.arange(6.0).view(6, 1, 1),
    "matmul": lambda x: x @ torch.ones(8, 2),
    "dense layer": lambda x: F.linear(x, torch.ones(3, 8)),
    "dense convolution": lambda x: F.conv2d(x, torch.ones(2, 6, 3, 3)),
    "sum of all": lambda x: x.sum(),
    "mean of the batch": lambda x: x.mean(0),
    "other view": lambda x: x.reshape(-1),
    "where": lambda x: torch.where(x > 0, x, -x),
    "clamp": lambda x: x.clamp(-1, 1),
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "pad": lambda x: F.pad(x, (1, 1)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 3),
    "unbind": lambda x: x.unbind(1)[2],
    "double": lambda x: x.double(),
}


@pytest.mark.parametrize("batch", IMAGES)
@pytest.mark.parametrize("name", GOES)
def test_everything_else_unpacks_by_itself(name: str, batch: int) -> None:
    if name == "double":
        one, inside, *_ = twins(IMAGES[batch])
        assert torch.equal(inside.double(), one.double())
        return
    assert_same(GOES[name], IMAGES[batch])


@pytest.mark.parametrize("batch", IMAGES)
@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(6), lambda: nn.BatchNorm2d(6, affine=False)])
def test_batch_norm_in_training(make: Callable[[], nn.Module], batch: int) -> None:
    one, other = make(), make()
    assert_same(lambda x: (one if isinstance(x, PackedActivation) else other)(x), IMAGES[batch])
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert_near(a.float(), b.float())
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert_near(p.grad, q.grad, 1e-4)
    with unpacking() as seen:
        one(twins(IMAGES[batch])[1])
    assert bool(seen) == (batch % 16 != 0)


def test_places_of_a_pool_are_those_of_the_image() -> None:
    _, inside, _, outside = twins(IMAGES[5])
    got, expected = (F.max_pool2d(x, 2, return_indices=True) for x in (inside, outside))
    assert torch.equal(got[1] + 0, expected[1])
    assert_near(F.max_unpool2d(got[0], got[1] + 0, 2), F.max_unpool2d(*expected, 2))


def test_sequences_keep_their_leading_dimensions() -> None:
    layer, x = SparseLinear(8, 12, 0.5), torch.randn(3, 7, 8)
    layer.keep_packed = True
    y = layer(x)
    assert isinstance(y, PackedActivation)
    assert y.shape == (3, 7, 12)
    assert (y.lead, y.batch, tuple(y.features)) == (2, 21, (12,))
    layer.keep_packed = False
    assert_near(F.gelu(y).unpacked(), F.gelu(layer(x)))
    assert_same(lambda x: x.view(21, 8).relu(), x, lead=2)
    assert_same(lambda x: x.view(3, 56), x, lead=2)
    assert_same(lambda x: x.softmax(-1), x, lead=2)


@pytest.mark.parametrize("batch", [5, 16])
def test_writing_into_a_part_is_seen_by_all(batch: int) -> None:
    def write(x: Tensor) -> Tensor:
        x = x * 1
        flat = x.flatten(1)
        x[:, 2] = 7.0
        flat[:, 0] += 1.0
        x.add_(flat.view(x.shape))
        x[0].mul_(2)
        return x + flat.view(x.shape)

    assert_same(write, IMAGES[batch])


def test_what_a_kernel_saved_must_not_be_overwritten() -> None:
    layer = SparseConv2d(6, 4, 3, 0.5)
    x = twins(IMAGES[16])[1].relu()
    y = layer(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_missing_samples_never_count() -> None:
    """Operations make something of the empty lanes: neither infinity nor NaN in them may reach a gradient."""
    for act in (lambda x: 1 / x, torch.log, torch.rsqrt, lambda x: (x + 1).sqrt() / x.abs()):
        layers = [SparseLinear(10, 12, 0.5), SparseLinear(12, 8, 0.5)]
        x = torch.rand(5, 10) + 0.5
        for layer in layers:
            with torch.no_grad():
                layer.values.abs_().add_(0.1)
                layer.bias.zero_()  # type: ignore[union-attr]
        grads = []
        for keep in (True, False):
            layers[0].keep_packed = keep
            y = layers[1](act(layers[0](x) + 1e-3))
            grads.append(torch.autograd.grad(y.square().sum(), [p for layer in layers for p in layer.parameters()]))
        for a, b in zip(*grads, strict=True):
            assert bool(a.isfinite().all())
            assert_near(a, b, 1e-4)


def test_it_is_a_tensor_to_python_code() -> None:
    _, inside, _, outside = twins(IMAGES[5])
    plain = outside.detach()
    assert isinstance(inside, Tensor)
    assert (inside.shape, inside.dtype, inside.device) == (outside.shape, outside.dtype, outside.device)
    assert inside.requires_grad
    assert "PackedActivation(tensor(" in repr(inside)
    still = inside.detach()
    assert not still.requires_grad
    assert torch.equal(torch.from_numpy(still.numpy()), plain)
    assert still.tolist() == plain.tolist()
    assert torch.equal(copy.deepcopy(still), plain)
    assert float(still[0, 0, 0, 0]) == float(plain[0, 0, 0, 0])
    file = io.BytesIO()
    torch.save(still, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), plain)
    assert type(inside.unpacked()) is Tensor


def test_hooks_checkpoints_and_custom_functions_see_gradients() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    class Middle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Double.apply(x)  # type: ignore[no-any-return]

    def gradients(keep: bool, reentrant: bool) -> list[Tensor]:
        torch.manual_seed(0)
        first, second, middle = SparseLinear(10, 20, 0.5), SparseLinear(20, 5, 0.5), Middle()
        first.keep_packed = keep
        seen: list[Tensor] = []
        middle.register_full_backward_hook(lambda m, gi, go: seen.append(gi[0] + 0))
        x = torch.linspace(-1, 1, 200).view(20, 10).requires_grad_()
        hidden = torch.utils.checkpoint.checkpoint(first, x, use_reentrant=reentrant)
        assert isinstance(hidden, PackedActivation) == keep
        second(middle(hidden)).square().sum().backward()
        return [*seen, x.grad, first.values.grad, second.values.grad]  # type: ignore[list-item]

    for reentrant in (False, True):
        for a, b in zip(gradients(True, reentrant), gradients(False, reentrant), strict=True):
            assert_near(a, b)


def test_modes_without_gradients() -> None:
    layer, convolution = SparseLinear(6, 6, 0.5), SparseConv2d(6, 4, 3, 0.5)
    layer.keep_packed = convolution.keep_packed = True
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = F.relu(convolution(IMAGES[5]), inplace=True).flatten(1)
            assert isinstance(y, PackedActivation)
            assert not y.requires_grad
        layer.keep_packed = convolution.keep_packed = False
        assert torch.equal(y + 0, F.relu(convolution(IMAGES[5])).flatten(1))
        layer.keep_packed = convolution.keep_packed = True


def test_a_single_sample_and_an_empty_batch_stay_plain() -> None:
    layer = SparseLinear(6, 5, 0.5)
    layer.keep_packed = True
    assert type(layer(torch.randn(6))) is Tensor
    assert type(layer(torch.randn(0, 6))) is Tensor


def test_clearing_touches_only_missing_samples() -> None:
    x = sparse.pack(torch.ones(21, 3)) + 1
    cleared = packed.clear_padding(x, 21)
    assert cleared.data_ptr() == x.data_ptr()
    assert torch.equal(sparse.unpack(cleared, 21), torch.full((21, 3), 2.0))
    assert int(cleared[1, :, 5:].count_nonzero()) == 0


RESHAPING: dict[str, Callable[[Tensor], object]] = {
    "unsqueeze_": lambda x: x.unsqueeze_(1),
    "squeeze_": lambda x: x.view(16, 48, 9, 1).squeeze_(-1),
    "t_": lambda x: x.flatten(1).t_(),
    "transpose_": lambda x: x.transpose_(1, 2),
    "resize_": lambda x: x.resize_(3, 4),
    "as_strided_": lambda x: x.as_strided_((2, 2), (1, 1)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", RESHAPING)
def test_shapes_do_not_change_in_place(name: str, mode: Any) -> None:
    with mode():
        x = packed.leave(sparse.pack(IMAGES[16]), (16,), keep=True)
        with pytest.raises(ConfigError, match=rf"{name} on a PackedActivation: .*; use x\.unpacked\(\)\.{name}"):
            RESHAPING[name](x)
        assert torch.equal(x + 0, IMAGES[16])


def test_memory_is_written_to_not_replaced() -> None:
    _, x, *_ = twins(IMAGES[5])
    x = x.detach()
    with pytest.raises(ConfigError, match="cannot be replaced"):
        x.data = x * 2
    assert_near(x + 0, IMAGES[5])
    x.data.mul_(2)
    assert_near(x + 0, 2 * IMAGES[5])
    with pytest.raises(ConfigError, match="does not fit out="):
        torch.mul(torch.ones(3, 3), 2, out=x)
    with pytest.raises(ConfigError, match="no storage to share"):
        x.share_memory_()
