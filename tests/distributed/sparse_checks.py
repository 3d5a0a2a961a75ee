"""Checks of sparse layers for two gloo processes (ranks.py): DDP against one process on the joined batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import methods
from gossamer.errors import GossamerError
from gossamer.topology.structures import Block

from . import joined
from .checks import net
from .joined import STEPS, data
from .semi_structured import ddp_equals_masked, fsdp2_equals_masked


def recipes() -> dict[str, gossamer.Method]:
    return {
        "static": methods.static(0.3),
        "set": methods.set_(0.3, every=3),
        "set-drawn": methods.set_(0.3, every=3, newborn_std=0.1, grace=7),
        "rigl": methods.rigl(0.3, every=3, fraction=0.5),
        "rigl-itop": methods.rigl_itop(0.3, every=3),
        "blocks": replace(methods.rigl(0.3, every=3, fraction=0.5), structure=Block(2)),
    }


def train(method: gossamer.Method, *, share: bool, seed: int = 0, wrap_first: bool = True) -> dict[str, Any]:
    """`share`: every rank sees its half of the batch under DDP; seed: of the model before ranks agree."""
    layout: Any = "block" if isinstance(method.structure, Block) else "sparse"
    model = gossamer.convert(net(seed), method, seed=5 + seed, total_steps=STEPS, layout=layout)
    wrapped: nn.Module = DistributedDataParallel(model) if share and wrap_first else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = gossamer.sparsify(wrapped, method, optimizer, total_steps=STEPS, seed=5)
    if share and not wrap_first:
        wrapped = DistributedDataParallel(model)
    found = joined.train(wrapped, optimizer, sparsifier, map(data, range(STEPS)), share=share)
    sparsifier.detach()
    return found


@cache
def by_itself(name: str) -> dict[str, Any]:
    return train(recipes()[name], share=False)


def equal(name: str, **how: Any) -> dict[str, Any]:
    alone = by_itself(name)
    return joined.compare(train(recipes()[name], share=True, **how), alone)


def refused(method: gossamer.Method, layout: Any) -> dict[str, Any]:
    model = gossamer.convert(net(0), method, total_steps=STEPS, layout=layout)
    try:
        gossamer.sparsify(model, method, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=STEPS)
    except GossamerError as error:
        return {"message": str(error)}
    return {"message": ""}


def checks() -> dict[str, Callable[[], dict[str, Any]]]:
    uneven = replace(methods.rigl(0.3, every=3), structure=Block(4))  # 4 does not divide 10
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "refused": lambda: refused(methods.dsr(0.3, every=3), "sparse"),
        "refused:blocks": lambda: refused(uneven, "block"),
    }
    for name in recipes():
        table[f"ddp:{name}"] = lambda name=name: equal(name)
        # Ranks that start from other weights and other supports: rank 0 has seed 0.
        table[f"before:{name}"] = lambda name=name: equal(name, seed=dist.get_rank(), wrap_first=False)
    table |= {"semi:ddp": ddp_equals_masked, "semi:fsdp2": fsdp2_equals_masked}
    return table
