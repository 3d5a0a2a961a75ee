"""Training for two gloo processes (ranks.py): on their halves of a batch, or each by itself on the joined batch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gossamer

STEPS, BATCH = 24, 8


def half(*, share: bool) -> slice:
    """What this rank sees of a batch; share: each its half."""
    return slice(dist.get_rank() * BATCH // 2, (dist.get_rank() + 1) * BATCH // 2) if share else slice(None)


def data(step: int, inputs: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    """The joined batch of a step."""
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, inputs, generator=g, dtype=torch.float64)
    return x, torch.randint(0, classes, (BATCH,), generator=g)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparsifier: gossamer.Sparsifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    share: bool,
) -> dict[str, Any]:
    """The weights in the end, whole, and a digest of each support after every step.

    Gradients are averaged by whoever wraps the model.
    """
    part, digests = half(share=share), []
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
        digests.append([support.digest() for support in sparsifier.supports.values()])
    weights = {}
    for name, p in model.named_parameters():
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        weights[name.removeprefix("module.")] = whole.detach().clone()
    return {"weights": weights, "digests": digests}


def compare(joined: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """How two results of `train` differ, and in how many steps supports moved."""
    before = alone["digests"]
    return {
        "difference": max(float((joined["weights"][n] - w).abs().max()) for n, w in alone["weights"].items()),
        "supports_equal": joined["digests"] == before,
        "rewirings": sum(x != y for x, y in pairwise(before)),
    }
