"""The transforms as torch sees them: schema, derivatives of any order, autocast, compile and export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gossamer.kernels.transforms import BlockCosine, Cosine, Hadamard, LinearMap
from gossamer.kernels.transforms.tables import tables

from .forcing import PATHS, distance, forced, numbers

OPS = torch.ops.gossamer
SIGNS = numbers(12, seed=0).sign().float()
MAPS = [Cosine(7, 12), Cosine(13, 12, SIGNS), Hadamard(9, 12, SIGNS), BlockCosine(20, 12, 5)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "length"), [("cosine", 13), ("hadamard", 16)])
def test_registration(name: str, length: int, path: str) -> None:
    x = numbers(3, 12, 5, seed=1).float().requires_grad_()
    with forced(path):
        torch.library.opcheck(getattr(OPS, name).default, (x, SIGNS, 13, 12, length, 1, False))
        torch.library.opcheck(getattr(OPS, name).default, (x.detach(), None, 12, 10, length, -2, True))


@pytest.mark.parametrize("length", [13, 24, 67])
def test_first_used_in_a_mode_of_torch(length: int) -> None:
    """Tables are made once: what watches or changes operators at that time must not get into them."""
    wanted = [part.clone() for part in tables(length)[:2]]
    tables.cache_clear()
    torch.library.opcheck(OPS.cosine.default, (torch.randn(3, length), None, length, length, length, 1, False))
    assert all(torch.equal(got, part) for got, part in zip(tables(length)[:2], wanted, strict=True))


@pytest.mark.parametrize("fast", MAPS)
def test_derivatives(fast: LinearMap) -> None:
    for axis, shape in ((-1, (3,)), (1, (2, 3))):
        x, g = (numbers(*shape[:1], n, *shape[1:], seed=2).requires_grad_() for n in (fast.columns, fast.rows))
        for function, given in ((fast.apply, x), (fast.transpose, g)):
            assert torch.autograd.gradcheck(lambda x, run=function, axis=axis: run(x, axis), given)
            assert torch.autograd.gradgradcheck(lambda x, run=function, axis=axis: run(x, axis).square(), given)


@pytest.mark.parametrize("path", PATHS)
def test_the_gradient_is_the_transpose(path: str) -> None:
    x, slope = numbers(20, 12, seed=1).float().requires_grad_(), numbers(20, 13, seed=2).float()
    with forced(path):
        MAPS[1].apply(x, -1).backward(slope)
        assert x.grad is not None
        assert torch.equal(x.grad, MAPS[1].transpose(slope, -1))


def test_forward_mode() -> None:
    x, tangent = numbers(3, 12, seed=1), numbers(3, 12, seed=2)
    with forward_ad.dual_level():
        y = MAPS[0].apply(forward_ad.make_dual(x, tangent), -1)
        assert torch.equal(forward_ad.unpack_dual(y).tangent, MAPS[0].apply(tangent, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computed_in_float32(dtype: torch.dtype) -> None:
    x = numbers(20, 12, seed=1).to(dtype)
    wanted = MAPS[0].apply(x.float(), -1)
    assert torch.equal(MAPS[0].apply(x, -1), wanted.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MAPS[0].apply(x, -1), wanted)
        assert distance(MAPS[0].apply(x.double(), -1), wanted.double()) < 1e-6


class Net(nn.Module):
    """Two transforms around a square."""

    def forward(self, x: Tensor) -> Tensor:
        return MAPS[1].transpose(MAPS[1].apply(x, 1).square(), 1)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["reference", PATHS[0]])
def test_compiles_as_one_graph(path: str) -> None:
    net, x = Net(), numbers(20, 12, 4, seed=1).float().requires_grad_()
    with forced(path):
        wanted = net(x)
        (gradient,) = torch.autograd.grad(wanted.square().sum(), x)
        found = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
        assert torch.equal(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], gradient)


@pytest.mark.slow
def test_exports_for_any_batch() -> None:
    x = numbers(20, 12, 4, seed=1).float()
    program = torch.export.export(Net(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "gossamer.cosine.default" in names
    for batch in (1, 33):
        x = numbers(batch, 12, 4, seed=2).float()
        assert torch.equal(program.module()(x), Net()(x))
