"""Checks of learned methods for two gloo processes (ranks.py): DDP against one process; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import Learned, methods
from gossamer.errors import GossamerError

from .joined import data, half

STEPS = 20


def recipes() -> dict[str, Learned]:
    return {"cs": methods.cs(0.3, penalty=1e-3), "str": methods.str_(0.3, s_init=-2.5)}


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def train(method: Learned, *, joined: bool) -> dict[str, Any]:
    """joined: under DDP, which takes rank 0's weights, each rank on its half of the batch."""
    model: nn.Module = net(dist.get_rank() if joined else 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS)
    if joined:
        model = DistributedDataParallel(model)
    part = half(share=joined)
    for step in range(STEPS):
        x, y = data(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    weights = {name.removeprefix("module."): p.detach().clone() for name, p in model.named_parameters()}
    return {"weights": weights, "supports": {n: s.digest() for n, s in sparsifier.supports.items()}}


def same(method: Learned) -> dict[str, Any]:
    alone, joined = train(method, joined=False), train(method, joined=True)
    difference = max(float((joined["weights"][n] - w).abs().max()) for n, w in alone["weights"].items())
    return {"difference": difference, "supports_equal": alone["supports"] == joined["supports"]}


def refused(model: nn.Module) -> dict[str, Any]:
    try:
        gossamer.sparsify(model, methods.cs(0.3), total_steps=STEPS)
    except GossamerError as error:
        return {"message": str(error)}
    return {"message": ""}


def checks() -> dict[str, Callable[[], dict[str, Any]]]:
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "sharded": lambda: refused(fully_shard(net(0), mesh=init_device_mesh("cpu", (2,)))),
        "wrapped": lambda: refused(DistributedDataParallel(net(0))),
    }
    for name, method in recipes().items():
        table[name] = lambda method=method: same(method)
    return table
