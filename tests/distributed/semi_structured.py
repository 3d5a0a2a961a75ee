"""Semi-structured layers, computing from packed weights, on two ranks: as masked dense layers on one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import methods
from gossamer.kernels.semi_structured import operator
from gossamer.nn import SemiStructuredLinear
from gossamer.topology import NM

STEPS, BATCH = 24, 8


def method() -> gossamer.Method:
    live = methods.rewire(0.5, allocation="uniform", exploit=gossamer.Reset(7))
    return replace(live, structure=NM(2, 4, transposable=True))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)).double()


def packed_net() -> nn.Sequential:
    model = gossamer.convert(net(), method(), layout="semi_structured")
    for layer in model.modules():
        if isinstance(layer, SemiStructuredLinear):
            layer.execution = "packed"
    return model  # type: ignore[return-value]


def train(model: nn.Module, *, share: bool) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = gossamer.sparsify(model, method(), optimizer, total_steps=STEPS, seed=5)
    half = slice(dist.get_rank() * BATCH // 2, (dist.get_rank() + 1) * BATCH // 2) if share else slice(None)
    digests = []
    for step in range(STEPS):
        g = torch.Generator().manual_seed(1000 + step)
        x, y = torch.randn(BATCH, 16, generator=g, dtype=torch.float64), torch.randint(0, 16, (BATCH,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[half]), y[half]).backward()
        optimizer.step()
        digests.append([support.digest() for support in sparsifier.supports.values()])
    weights = {}
    for name, p in model.named_parameters():
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        weights[name.removeprefix("module.")] = whole.detach().clone()
    sparsifier.detach()
    return {"weights": weights, "digests": digests}


def _compared(joined: nn.Module) -> dict[str, Any]:
    alone, packs, pack = train(net(), share=False), [], operator.pack

    def spy(matrix: Tensor) -> tuple[Tensor, Tensor]:
        packs.append(matrix.shape)
        return pack(matrix)

    operator.pack = spy
    try:
        found = train(joined, share=True)
    finally:
        operator.pack = pack
    return {
        "difference": max(float((found["weights"][n] - w).abs().max()) for n, w in alone["weights"].items()),
        "supports_equal": found["digests"] == alone["digests"],
        "rewirings": sum(a != b for a, b in zip(alone["digests"], alone["digests"][1:], strict=False)),
        "packs": len(packs),
    }


def ddp_equals_masked() -> dict[str, Any]:
    return _compared(DistributedDataParallel(packed_net()))


def fsdp2_equals_masked() -> dict[str, Any]:
    """One layer is sharded by itself, the other with the model."""
    model, mesh = packed_net(), init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _compared(model)
