"""Compressed saving: the same gradients bit for bit, from fewer bytes, and no wrong ones."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.nn import _saved_winners
from gossamer.nn._saved_winners import Pattern, compressed_winners, is_dense
from gossamer.nn.k_winners import KWinners, KWinners2d


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        KWinners2d(6, 0.2),
        nn.Conv2d(6, 8, 3),
        KWinners2d(8, 0.1, local=True),
        nn.MaxPool2d(2),
        KWinners2d(8, 0.2),
        nn.Flatten(),
        nn.Linear(32, 20),
        KWinners(20, 0.02),
        nn.Linear(20, 3),
    )


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    loss = model(x).square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_bit_equal(memory_format: torch.memory_format) -> None:
    model, x = network(), torch.randn(4, 1, 8, 8)
    model, x = model.to(memory_format=memory_format), x.to(memory_format=memory_format)
    wanted = gradients(copy.deepcopy(model), x)
    with compressed_winners() as saved:
        loss = model(x).square().sum()
    assert 0 < saved.kept < saved.dense / 3
    got = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@settings(deadline=None)
@given(size=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_patterns_round_trip_in_the_smaller_form(size: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < share
    values = torch.randn(size, generator=generator)[mask]
    pattern = Pattern(mask)
    assert torch.equal(pattern.mask(), mask)
    assert torch.equal(pattern.spread(values)[mask], values)
    assert int(pattern.spread(values).count_nonzero()) == len(values)
    assert pattern.bytes <= min(-(-size // 8), max(4 * len(values), size // 8 + 1))


def test_bits_without_numpy_are_the_same() -> None:
    """What other devices use, on the meta of one: torch's own operations against numpy's."""
    mask = torch.rand(83) < 0.4
    bits = _saved_winners._bits(mask)
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    weights = _saved_winners._weights(mask.device)
    assert torch.equal((padded * weights).sum(1, dtype=torch.uint8), bits)
    assert torch.equal((bits.unsqueeze(1) & weights).bool().view(-1)[: len(mask)], mask)


def test_what_is_kept_is_what_is_counted() -> None:
    """64 x 1000 at .1: 6,400 values of 4 bytes and 8,000 bytes of bits, shared by both that save it."""
    layer, head, other = KWinners(1000, 0.1), nn.Linear(1000, 10), nn.Linear(1000, 10)
    with compressed_winners() as saved:
        out = layer(torch.randn(64, 1000, requires_grad=True))
        loss = (head(out) + other(out)).sum()
    assert (saved.dense, saved.kept) == (64 * 1000 * 5, 6400 * 4 + 8000)
    loss.backward()


def test_the_dense_output_is_let_go() -> None:
    layer, head = KWinners(1000, 0.1), nn.Linear(1000, 10)
    with compressed_winners():
        out = layer(torch.randn(64, 1000, requires_grad=True))
        watched = torch.multiprocessing.reductions.StorageWeakRef(out.untyped_storage())
        loss = head(out).sum()
        del out
        gc.collect()
        assert watched.expired()
    loss.backward()


def test_a_changed_output_is_saved_as_it_is() -> None:
    layer, head = KWinners(10, 0.3), nn.Linear(10, 2)
    x = torch.randn(4, 10, requires_grad=True)
    out = copy.deepcopy(layer)(x) + 1
    wanted = torch.autograd.grad(head(out).sum(), head.weight)
    with compressed_winners():
        loss = head(layer(x).add_(1)).sum()
    assert torch.equal(torch.autograd.grad(loss, head.weight)[0], wanted[0])


def test_parts_and_products_of_the_output_are_saved_whole() -> None:
    layer, head = KWinners(10, 0.3), nn.Linear(5, 2)
    x = torch.randn(4, 10, requires_grad=True)
    for part in (lambda out: out[:, :5], lambda out: out[:2].expand(2, 2, 10)[..., :5], lambda out: (2 * out)[:, 5:]):
        (wanted,) = torch.autograd.grad(head(part(copy.deepcopy(layer)(x))).square().sum(), x)
        with compressed_winners():
            loss = head(part(copy.deepcopy(layer)(x))).square().sum()
        assert torch.equal(torch.autograd.grad(loss, x)[0], wanted)


def test_a_change_after_saving_is_refused_as_without_compression() -> None:
    x = torch.randn(3, requires_grad=True)
    with compressed_winners():
        y = x.exp()
        loss = y.sum()
    y.detach().zero_()
    with pytest.raises(ConfigError, match="changed in place after it was saved"):
        loss.backward()


def test_second_derivatives() -> None:
    model, x = network().double(), torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def twice() -> Tensor:
        (slope,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    model.eval()
    wanted = twice()
    with compressed_winners():
        got = twice()
    assert torch.equal(got, wanted)


def test_dense_memory() -> None:
    x = torch.zeros(2, 3, 4)
    assert is_dense(x)
    assert is_dense(x.transpose(0, 2))
    assert is_dense(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert is_dense(torch.zeros(1, 1, 3))
    assert not is_dense(x[:, :2])
    assert not is_dense(x[:1].expand(2, 3, 4))


class _AsIntegers(torch.autograd.Function):
    """x times its own bits, which are saved as a view of the same memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor) -> Tensor:
        ctx.save_for_backward(bits)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return slope * bits, None


def test_memory_read_as_another_dtype_is_saved_as_it_is() -> None:
    layer, x = KWinners(8, 0.5).eval(), torch.randn(3, 8, requires_grad=True)

    def slope() -> Tensor:
        out = layer(x)
        return _AsIntegers.apply(out, out.detach().view(torch.int32)).sum()

    (wanted,) = torch.autograd.grad(slope(), x)
    with compressed_winners():
        loss = slope()
    assert torch.equal(torch.autograd.grad(loss, x)[0], wanted)


@pytest.mark.slow
def test_compiled_code_saves_winners_as_they_are() -> None:
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(4, 6), KWinners(6, 0.5), nn.Linear(6, 2)).eval(), torch.randn(3, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with compressed_winners() as saved:
        loss = compiled(x).square().sum()
    assert saved.kept == 0
    got = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, gradients(model, x), strict=True))
