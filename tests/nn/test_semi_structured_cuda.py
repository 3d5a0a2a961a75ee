"""The real products on a GPU: equal to dense ones, to the emulation and to torch's semi-structured tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.kernels.semi_structured import cusparselt
from gossamer.nn import SemiStructuredLinear, to_torch_semi_structured
from gossamer.topology import NM

USABLE = torch.cuda.is_available() and cusparselt.usable(0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not USABLE, reason="needs a CUDA device on which cuSPARSELt multiplies"),
]


def layer(*, transposable: bool = True) -> SemiStructuredLinear:
    torch.manual_seed(0)
    made = SemiStructuredLinear(256, 512)
    with torch.no_grad():
        (mask,) = NM(2, 4, transposable=transposable).select([made.weight.abs()], made.weight.numel() // 2)
        made.weight.mul_(mask)
    made = made.to("cuda", torch.bfloat16)
    made.execution = "packed"
    return made


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = module(x)
    y.float().square().sum().backward()
    assert x.grad is not None
    found = [y.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    module.zero_grad()
    return found


@pytest.mark.parametrize("transposable", [False, True])
@pytest.mark.parametrize("samples", [1, 13, 256])
def test_products_equal_dense_ones_and_the_emulation(samples: int, transposable: bool) -> None:
    real = layer(transposable=transposable)
    x = torch.randn(samples, 256, dtype=torch.bfloat16, device="cuda")
    on_cpu = copy.deepcopy(real).cpu()
    for ours, dense, emulated in zip(
        results(real, x), results(real.dense_module(), x), results(on_cpu, x.cpu()), strict=True
    ):
        torch.testing.assert_close(ours, dense, rtol=2e-2, atol=2e-2 * float(dense.abs().max()))
        torch.testing.assert_close(ours.cpu(), emulated, rtol=2e-2, atol=2e-2 * float(dense.abs().max()))


def test_a_weight_that_is_not_two_four_is_never_silently_cut() -> None:
    made, x = layer(), torch.randn(8, 256, dtype=torch.bfloat16, device="cuda")
    made.declare(made.weight != 0)
    with torch.no_grad():
        made.weight.fill_(1.0)
    assert bool(made(x).isnan().all())
    made.declare(None)
    torch.testing.assert_close(made(x), made.dense_module()(x))


def test_a_captured_step_follows_the_weight() -> None:
    made, x = layer(), torch.randn(64, 256, dtype=torch.bfloat16, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        made(x)
    torch.cuda.current_stream().wait_stream(side)
    made.declare(made.weight != 0)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = made(x)
    with torch.no_grad():
        made.weight.mul_(2)
    graph.replay()
    torch.testing.assert_close(y, made.dense_module()(x), rtol=2e-2, atol=2e-2 * float(y.abs().max()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_torchs_tensors_give_equal_outputs() -> None:
    made, x = layer(), torch.randn(64, 256, dtype=torch.bfloat16, device="cuda")
    model = nn.Sequential(made)
    expected = model(x)
    deployed = to_torch_semi_structured(copy.deepcopy(model))
    assert type(deployed[0]) is nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_training_follows_masked_training() -> None:
    from dataclasses import replace

    method = replace(gossamer.methods.rewire(0.5, allocation="uniform"), structure=NM(2, 4, transposable=True))
    losses = []
    for convert in (False, True):
        torch.manual_seed(1)
        model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).cuda()
        if convert:
            model = gossamer.convert(model, method, layout="semi_structured")
            for module in model:
                if isinstance(module, SemiStructuredLinear):
                    module.execution = "packed"
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        gossamer.sparsify(model, method, optimizer, total_steps=10)
        generator = torch.Generator("cuda").manual_seed(2)
        for _ in range(10):
            x = torch.randn(64, 64, generator=generator, device="cuda")
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(x).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
