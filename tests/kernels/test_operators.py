"""The operators as torch sees them: schema, shapes, autograd, autocast, compile and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.kernels import sparse

from .forcing import PATHS, forced, numbers, some_positions

OPS = torch.ops.gossamer
WEIGHT = (8, 3, 3, 3)
HOW = ([1, 2], [1, 0], [1, 1], 1)


def linear_parts(batch: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed input, values, index and bias of a 30 x 50 layer."""
    flat = some_positions(30, 50, 0.2, seed=0)
    index, _ = sparse.build(flat, (30, 50))
    x = sparse.pack(numbers(batch, 50, seed=1).float())
    return x, numbers(len(flat), seed=2).float(), index, numbers(30, seed=3).float()


def conv_parts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat = some_positions(8, 27, 0.4, seed=0)
    index, _ = sparse.build(flat, (8, 27), 9)
    x = sparse.pack(numbers(20, 3, 7, 9, seed=1).float())
    return x, numbers(len(flat), seed=2).float(), index, numbers(8, seed=3).float()


def calls() -> dict[str, tuple[Any, ...]]:
    x, values, index, bias = linear_parts()
    image, taps, where, shift = conv_parts()
    leaves = [t.clone().requires_grad_() for t in (x, values, bias, image, taps, shift)]
    image_slope = OPS.conv(image, taps, where, None, list(WEIGHT), *HOW)
    return {
        "pack": (numbers(20, 3, 5, seed=0).float().requires_grad_(),),
        "unpack": (leaves[0], 20),
        "linear": (leaves[0], leaves[1], index, leaves[2], 30),
        "linear_backward": (x, values, index, OPS.linear(x, values, index, None, 30), True, True),
        "conv": (leaves[3], leaves[4], where, leaves[5], list(WEIGHT), *HOW),
        "conv_backward": (image, taps, where, image_slope, list(WEIGHT), *HOW, True, True),
    }


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["pack", "unpack", "linear", "linear_backward", "conv", "conv_backward"])
def test_registration(name: str, path: str) -> None:
    with forced(path):
        torch.library.opcheck(getattr(OPS, name).default, calls()[name])


def test_autocast_computes_in_float32() -> None:
    x, values, index, bias = linear_parts()
    plain = sparse.linear(x, values, index, bias, 30)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sparse.linear(x.bfloat16(), values, index, bias, 30)
        again = sparse.unpack(mixed, 20)
    assert mixed.dtype == again.dtype == torch.float32
    assert torch.equal(mixed, sparse.linear(x.bfloat16().float(), values, index, bias, 30))
    assert not torch.equal(mixed, plain)


class Net(nn.Module):
    """A convolution and a linear layer on packed activations."""

    def __init__(self) -> None:
        super().__init__()
        _, taps, where, shift = conv_parts()
        _, values, index, bias = linear_parts()
        self.taps, self.shift = nn.Parameter(taps), nn.Parameter(shift)
        self.values, self.bias = nn.Parameter(values), nn.Parameter(bias)
        self.register_buffer("where", where)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        packed = sparse.conv(sparse.pack(x), self.taps, self.where, self.shift, WEIGHT, *HOW)
        narrow = packed.relu().mean((2, 3)).repeat(1, 7, 1)[:, :50]
        return sparse.unpack(sparse.linear(narrow, self.values, self.index, self.bias, 30), x.shape[0])


@pytest.mark.slow
@pytest.mark.parametrize("path", ["reference", PATHS[0]])
def test_compiles_as_one_graph(path: str) -> None:
    net, x = Net(), numbers(20, 3, 7, 9, seed=1).float()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with forced(path):
        wanted = net(x)
        wanted.square().sum().backward()
        gradients = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        found = compiled(x)
        found.square().sum().backward()
        assert torch.equal(found, wanted)
        for p, gradient in zip(net.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_exports_for_any_batch_of_two_tiles_or_more() -> None:
    """A number of tiles that may be one is a number torch.export would fix."""
    net, x = Net().eval(), numbers(20, 3, 7, 9, seed=1).float()
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=17, max=500)},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"gossamer.conv.default", "gossamer.linear.default"} <= names
    for batch in (20, 33):
        x = numbers(batch, 3, 7, 9, seed=2).float()
        assert torch.equal(program.module()(x), net(x))
