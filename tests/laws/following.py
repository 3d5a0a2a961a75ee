"""A run of the library beside that of an oracle, compared after every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from gossamer.seeding import generator_for
from gossamer.testing import oracles

from .settings import OPTIMIZERS, batches, loss_of, train_step

STEPS = 55
SEED = 11
KINDS = ["sgd-momentum", "adamw", "adam-amsgrad-foreach", "rmsprop"]


def maker(kind: str) -> Any:
    """How an optimizer of `settings.OPTIMIZERS` is made of parameters."""
    name, arguments = OPTIMIZERS[kind]
    return lambda params: getattr(torch.optim, name)(params, **arguments)


def data_for(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Batches that fit the first layer."""
    first = model[0]
    return batches((20,) if isinstance(first, nn.Linear) else (first.in_channels, 6, 6), STEPS)


def draws(event: str, kind: Callable[..., Tensor] = torch.rand) -> Callable[[str, int, torch.Size], Tensor]:
    """The library's random numbers of an event: a generator per seed, weight and step, nothing else."""
    return lambda name, step, shape: kind(shape, generator=generator_for(SEED, name, f"{event} {step}"))


def cosine(first: float, last: float, end: float) -> Callable[[int], float]:
    """From the first to the last value, over `end` steps."""
    return lambda t: last + (first - last) / 2 * (1 + math.cos(math.pi * min(t / end, 1.0)))


@dataclass
class Beside:
    """A sparsified model, and what an oracle needs to do the same."""

    model: nn.Module
    initial: nn.Module
    kind: str
    optimizer: torch.optim.Optimizer
    sparsifier: gossamer.Sparsifier

    @property
    def masks(self) -> dict[str, Tensor]:
        """The first supports."""
        return {name: support.mask for name, support in self.sparsifier.supports.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Their sizes."""
        return {name: support.count for name, support in self.sparsifier.supports.items()}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the weights."""
        return {name: support.shape for name, support in self.sparsifier.supports.items()}

    def compare(self, oracle: Callable[..., oracles.Trace], *first: Any, **arguments: Any) -> None:
        """Train both ways; everything must be the same after every step."""
        data = data_for(self.model)
        trace = oracle(self.initial, *first, maker(self.kind), data, loss_of, **arguments)
        follow(self.model, self.sparsifier, self.optimizer, trace)


def beside(build: Callable[[], nn.Module], kind: str, method: gossamer.Method, **options: Any) -> Beside:
    """Attach the method to one of two equal models."""
    model, initial = build(), build()
    optimizer = maker(kind)(model.parameters())
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS, seed=SEED, **options)
    return Beside(model, initial, kind, optimizer, sparsifier)


def follow(
    model: nn.Module, sparsifier: gossamer.Sparsifier, optimizer: torch.optim.Optimizer, trace: oracles.Trace
) -> None:
    """Train the library's way and compare everything after every step."""
    for name, support in sparsifier.supports.items():
        assert torch.equal(support.mask, trace.masks[name]), f"first support of {name}"
    changes = 0
    before = {n: s.mask for n, s in sparsifier.supports.items()}
    for step, (batch, expected) in enumerate(zip(data_for(model), trace.steps, strict=True)):
        loss = train_step(model, [optimizer], batch)
        assert loss == expected.loss, f"step {step}"
        parameters = dict(model.named_parameters())
        for name, support in sparsifier.supports.items():
            assert torch.equal(support.mask, expected.masks[name]), f"support of {name} after step {step}"
            assert torch.equal(parameters[name], expected.weights[name]), f"{name} after step {step}"
            site = sparsifier.sites[name]
            latent = parameters[name] if site.trainable is None else site.trainable
            assert torch.equal(latent, expected.trainable[name]), f"latent of {name} after step {step}"
            changes += not torch.equal(support.mask, before[name])
            before[name] = support.mask
        for name, value in expected.others.items():
            assert torch.equal(parameters[name], value), f"{name} after step {step}"
    assert changes, "a run without a rewiring shows nothing"
