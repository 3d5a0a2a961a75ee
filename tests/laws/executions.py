"""Pairs of runs that differ in their execution alone: masked weights, and sparse layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from gossamer import Method
from gossamer.optimizer_state import slots
from gossamer.targets import choose

from .settings import OPTIMIZERS, mlp

SEED = 3


def data(shape: tuple[int, ...], dtype: torch.dtype, steps: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    made = [(torch.randn(size, *shape, generator=g), torch.randint(0, 4, (size,), generator=g)) for _ in range(steps)]
    return [(x.to(dtype), y) for x, y in made]


class Run:
    """A model, its optimizer and its sparsifier, masked or of sparse layers; optionally only some layers."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: str,
        *,
        sparse: bool,
        steps: int,
        only: list[str] | None = None,
    ) -> None:
        self.model = copy.deepcopy(model)
        if sparse:
            self.model = gossamer.convert(self.model, method, seed=SEED, total_steps=steps, targets=only)
        kind, arguments = OPTIMIZERS[optimizer]
        self.optimizer = getattr(torch.optim, kind)(self.model.parameters(), **arguments)
        self.sparsifier = gossamer.sparsify(self.model, method, self.optimizer, total_steps=steps, seed=SEED)

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(batch[0]), batch[1]).backward()
        self.optimizer.step()

    def dense(self, name: str, held: Tensor) -> Tensor:
        """What belongs to the entries of a weight, over all of it."""
        site = self.sparsifier.sites[name]
        if held.shape == site.shape:
            return held
        whole = held.new_zeros(site.shape.numel())
        whole[site.layer.positions()] = held
        return whole.view(site.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and slots by name, dense."""
        found = {}
        for row in choose(self.model, None, layers=True):
            held = {"value": row.parameter.detach(), **slots(self.optimizer, row.parameter)}
            whole = {k: self.dense(row.name, v) if row.name in self.sparsifier.sites else v for k, v in held.items()}
            found.update({f"{row.name} {key}": tensor.clone() for key, tensor in whole.items()})
        return found


def pair(
    method: Method, optimizer: str, dtype: torch.dtype, make: Callable[[], nn.Module] = mlp, **options: Any
) -> tuple[Run, Run]:
    model = make().to(dtype)
    return Run(model, method, optimizer, sparse=False, **options), Run(model, method, optimizer, sparse=True, **options)


def same_supports(masked: Run, sparse: Run) -> None:
    for name, support in masked.sparsifier.supports.items():
        assert torch.equal(support.index, sparse.sparsifier.supports[name].index), name


def close(mine: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert (tensor - other[name]).abs().max() <= tolerance * other[name].abs().max() + 1e-12, name
