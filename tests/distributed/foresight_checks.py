"""Checks of scores for two gloo processes (ranks.py): against one process on the joined batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import foresight, methods
from gossamer.errors import AttachError
from gossamer.foresight import Saliency
from gossamer.foresight.probe import Probe
from gossamer.topology import Support

from .joined import BATCH, half

Batches = list[tuple[Tensor, Tensor]]


def net(seed: int) -> nn.Module:
    """Convolutions in channels_last, no batch norm, a buffer and biases that differ between seeds as weights do."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=4), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4)]
    return nn.Sequential(*layers).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def data(*, share: bool) -> Batches:
    """Two batches; `share`: this rank's half of each."""
    g = torch.Generator().manual_seed(1)
    part = half(share=share)
    pairs = []
    for _ in range(2):
        x = torch.randn(BATCH, 3, 6, 6, generator=g, dtype=torch.float64)
        pairs.append((x[part], torch.randint(0, 4, (BATCH,), generator=g)[part]))
    return pairs


SALIENCIES: dict[str, Callable[[Batches], Saliency]] = {
    "snip": lambda batches: foresight.snip(batches, 2),
    "force": lambda batches: foresight.force(batches, 4),
    "iter-snip": lambda batches: foresight.iter_snip(batches, 4),
    "grasp": lambda batches: foresight.grasp(batches, 2),
    "synflow": lambda batches: foresight.synflow((3, 6, 6), 5),
    "magnitude": lambda batches: foresight.magnitude(),
    "random": lambda batches: foresight.random(),
}


def digests(supports: Mapping[str, Support]) -> list[int]:
    return [support.digest() for support in supports.values()]


def found(model: nn.Module, saliency: Saliency) -> list[int]:
    return digests(foresight.find(model, saliency, 0.3))


def ranks_together(name: str) -> dict[str, Any]:
    """Halves of a batch; the same initial weights, under DDP, or others on every rank."""
    alone = found(net(0), SALIENCIES[name](data(share=False)))
    halves = SALIENCIES[name](data(share=True))
    same, other = net(0), net(dist.get_rank())
    before = [p.detach().clone() for p in other.parameters()]
    check = {
        "equal": found(same, halves) == alone,
        "ddp": found(DistributedDataParallel(net(0)), halves) == alone,
        "initialised differently": found(other, halves) == alone,
        "sparsified": digests(gossamer.sparsify(other, methods.static(0.3, init=halves)).supports) == alone,
    }
    check["other is another"] = dist.get_rank() == 0 or not torch.equal(before[0], net(0)[0].weight)
    return check


def gradient_of_the_joined_batch() -> dict[str, Any]:
    """Not only the ranks of scores: the gradient is that of the mean loss of all examples."""
    model = net(0)
    for x, y in data(share=False):
        (nn.functional.cross_entropy(model(x), y) / 2).backward()
    saliency, weights = SALIENCIES["snip"](data(share=True)), {n: p for n, p in model.named_parameters() if p.ndim > 1}
    probe = Probe(model, weights, saliency.examples, batches=2)
    probe.masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    found = saliency.objective.gradient(probe)
    return {n: bool(torch.allclose(found[n], w.grad, rtol=1e-9, atol=1e-15)) for n, w in weights.items()}


def one_rank_counts_alone() -> dict[str, Any]:
    """Counting effective weights is no collective."""
    if dist.get_rank():
        return {"counts": None}
    everything = {"5.weight": Support.from_mask(torch.ones(4, 32, dtype=torch.bool))}
    return {"counts": foresight.effective_counts(net(0), everything, (3, 6, 6))}


def sharded() -> dict[str, Any]:
    model = net(0).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    try:
        foresight.find(model, foresight.magnitude(), 0.3)
    except AttachError as error:
        return {"message": str(error)}
    return {"message": ""}


def checks() -> dict[str, Callable[[], dict[str, Any]]]:
    table: dict[str, Callable[[], dict[str, Any]]] = {
        "alone": one_rank_counts_alone,
        "gradient": gradient_of_the_joined_batch,
        "sharded": sharded,
    }
    return {**table, **{name: lambda name=name: ranks_together(name) for name in SALIENCIES}}  # type: ignore[misc]
