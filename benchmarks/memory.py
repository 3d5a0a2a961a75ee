"""Bytes that a method holds beside model and optimizer between two steps, per eligible weight.

    python benchmarks/memory.py

Counts every tensor alive in the process that is neither a parameter, a buffer, optimizer state nor the batch.
"""

from __future__ import annotations

import gc

import torch
from torch import nn

import gossamer
from gossamer import methods

WIDTH, DENSITY = 2048, 0.1
BOUNDS = {"static": 1.1, "set": 1.1, "rigl": 1.1, "rewire": 5.1}


def storages() -> dict[int, int]:
    """Address -> bytes of every tensor storage that Python can reach."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def held(method: gossamer.Method | None) -> tuple[int, int]:
    """(bytes beyond parameters, buffers and optimizer state, eligible weights) after a few steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=100) if method else None
    before: dict[int, int] = {}
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(torch.randn(32, 784)), torch.randint(10, (32,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        del loss
    own = [*model.parameters(), *model.buffers()]
    own += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    before = {t.untyped_storage().data_ptr(): 0 for t in own}
    extra = sum(size for address, size in storages().items() if address not in before)
    eligible = sparsifier.summary().eligible if sparsifier else 1
    if sparsifier:
        sparsifier.detach()
    return extra, eligible


def main() -> None:
    baseline, _ = held(None)
    table = {
        "static": methods.static(DENSITY),
        "set": methods.set_(DENSITY, every=2),
        "rigl": methods.rigl(DENSITY, every=2),
        "rewire": methods.rewire(DENSITY),
    }
    print(f"{'method':8}{'bytes per eligible weight':>27}{'bound':>7}")
    for name, method in table.items():
        extra, eligible = held(method)
        print(f"{name:8}{(extra - baseline) / eligible:27.3f}{BOUNDS[name]:7.1f}")


if __name__ == "__main__":
    main()
