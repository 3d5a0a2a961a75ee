"""Semi-structured layers, computing from packed weights, on two ranks: as masked dense layers on one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import methods
from gossamer.kernels.semi_structured import operator
from gossamer.nn import SemiStructuredLinear
from gossamer.topology import NM

from . import joined
from .joined import STEPS


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
    batches = (joined.data(step, inputs=16, classes=16) for step in range(STEPS))
    found = joined.train(model, optimizer, sparsifier, batches, share=share)
    sparsifier.detach()
    return found


def _compared(wrapped: nn.Module) -> dict[str, Any]:
    alone, packs, pack = train(net(), share=False), [], operator.pack

    def spy(matrix: Tensor) -> tuple[Tensor, Tensor]:
        packs.append(matrix.shape)
        return pack(matrix)

    operator.pack = spy
    try:
        found = train(wrapped, share=True)
    finally:
        operator.pack = pack
    return {**joined.compare(found, alone), "packs": len(packs)}


def ddp_equals_masked() -> dict[str, Any]:
    return _compared(DistributedDataParallel(packed_net()))


def fsdp2_equals_masked() -> dict[str, Any]:
    """One layer is sharded by itself, the other with the model."""
    model, mesh = packed_net(), init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _compared(model)
