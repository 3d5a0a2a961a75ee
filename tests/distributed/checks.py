"""Checks of masks for two gloo processes (ranks.py): DDP and FSDP2 against one process on the joined batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import methods
from gossamer.errors import GossamerError
from gossamer.topology import NM, Block, Support

from . import joined
from .joined import STEPS, data

COUNTED = ("rewire", "rigl")  # whose collectives are counted


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 4)]
    return nn.Sequential(*layers).double()


def recipes() -> dict[str, gossamer.Method]:
    return {
        "static": methods.static(0.3),
        "set": methods.set_(0.3, every=3),
        "rigl": methods.rigl(0.3, every=3, fraction=0.5),
        "rigl-global": methods.rigl(0.3, every=3, fraction=0.5, scope="global"),
        "rewire": methods.rewire(0.3, exploit=gossamer.Reset(7)),
        "rewire-global": methods.rewire(0.3, exploit=gossamer.Fix(0.7), scope="global"),
        "rewire-scaled": methods.rewire(0.3, every=2, exploit=None, scale=0.4, scale_on="update"),
        "set-drawn": methods.set_(0.3, every=3, newborn_std=0.1, grace=7),
        "deepr": methods.deepr(0.3, temperature=1e-3),
        "deepr-global": methods.deepr(0.3, temperature=1e-3, every=2, scope="global"),
        "dsr": methods.dsr(0.3, every=3, target=0.2, threshold=0.02, double_at=(), grace=4),
        "snfs": methods.snfs(0.3, every=3),
        "topkast": methods.topkast(0.3, every=2, decay=0.01),
        "topkast-global": methods.topkast(0.3, backward=0.95, scope="global"),
        "sr-ste": methods.sr_ste(0.5, decay=0.01, group=2),
        "srigl": methods.srigl(0.3, every=3, fraction=0.5),
        "granet": methods.granet(0.3, every=3),
        # The two shards of the middle layer, five rows each, cut a pair of outputs.
        "rewire-tiles": methods.rewire(0.5, allocation="uniform", structure=NM(1, 2, transposable=True)),
        "rigl-blocks": methods.rigl(0.3, every=3, fraction=0.5, structure=Block(2)),
        "gmp": methods.gmp(0.3, every=3),
        "gmp-global": methods.gmp(0.3, every=3, scope="global"),
    }


def train(model: nn.Module, method: gossamer.Method, *, share: bool, seed: int = 5) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS, seed=seed)
    found = joined.train(model, optimizer, sparsifier, map(data, range(STEPS)), share=share)
    found["state"] = sparsifier.state_dict()
    sparsifier.detach()
    return found


@cache
def by_itself(name: str) -> dict[str, Any]:
    return train(net(0), recipes()[name], share=False)


def ddp_equals_one_process(name: str) -> dict[str, Any]:
    alone = by_itself(name)
    return joined.compare(train(DistributedDataParallel(net(0)), recipes()[name], share=True), alone)


def sparsified_before_ddp(name: str) -> dict[str, Any]:
    """Ranks start from other weights and other global seeds; DDP and the controller both take rank 0's."""
    alone = by_itself(name)
    model = net(dist.get_rank())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = gossamer.sparsify(model, recipes()[name], optimizer, total_steps=STEPS, seed=5)
    found = joined.train(DistributedDataParallel(model), optimizer, sparsifier, map(data, range(STEPS)), share=True)
    return joined.compare(found, alone)


def fsdp2_equals_unsharded(name: str) -> dict[str, Any]:
    alone = by_itself(name)
    model = net(0)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = train(model, recipes()[name], share=True)
    found = joined.compare(sharded, alone)
    supports = {n: Support.from_state(s) for n, s in sharded["state"]["supports"].items()}
    fresh = gossamer.sparsify(net(1), recipes()[name], total_steps=STEPS)
    fresh.load_state_dict(sharded["state"])  # a sharded run's state fits an unsharded model
    found["state_portable"] = all(fresh.supports[n] == s for n, s in supports.items())
    return found


def tampered_support() -> dict[str, Any]:
    model = DistributedDataParallel(net(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, methods.set_(0.3, every=4), optimizer, total_steps=STEPS)
    message = ""
    try:
        for step in range(8):
            x, y = data(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if step == 1 and dist.get_rank() == 1:
                site = sparsifier.sites["3.weight"]
                site.assign(site.mask.flip(0), 1)
            optimizer.step()
    except GossamerError as error:
        message = f"{type(error).__name__}: {error}"
    return {"message": message}


def scale_on_sharded_gradient() -> dict[str, Any]:
    model = net(0)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    method = methods.rewire(0.3, scale=0.5, scale_on="gradient")
    try:
        gossamer.sparsify(model, method, torch.optim.SGD(model.parameters(), lr=0.1))
    except GossamerError as error:
        return {"message": str(error)}
    return {"message": ""}


def collectives(name: str, *, sharded: bool) -> dict[str, Any]:
    """What the fourth optimizer step asks of the network: a rewiring of both, after a start that ranks agreed on."""
    model: nn.Module = net(0)
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    gossamer.sparsify(model, recipes()[name], optimizer, total_steps=STEPS)
    for step in range(4):
        x, y = data(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with CommDebugMode() as seen:
            optimizer.step()
    return {"counts": {str(op): count for op, count in seen.get_comm_counts().items()}}


def checks() -> dict[str, Callable[[], dict[str, Any]]]:
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "tampered": tampered_support,
        "sharded-scale": scale_on_sharded_gradient,
    }
    for name in COUNTED:
        for sharded in (False, True):
            table[f"collectives:{name}:{sharded}"] = lambda n=name, s=sharded: collectives(n, sharded=s)
    for name in recipes():
        table[f"ddp:{name}"] = lambda name=name: ddp_equals_one_process(name)
        table[f"before-ddp:{name}"] = lambda name=name: sparsified_before_ddp(name)
        table[f"fsdp2:{name}"] = lambda name=name: fsdp2_equals_unsharded(name)
    return table
