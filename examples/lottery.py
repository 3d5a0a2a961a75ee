"""Lottery tickets on the digits: prune once or level by level, rewind to an early step, train what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import gossamer
from gossamer.experiments import data
from gossamer.lottery import find_ticket

STEPS, BATCH, LR = 200, 64, 0.1
DIGITS = data.load("digits")


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def train(model: nn.Module, attach: Callable[[Any], Any], start: int, stop: int) -> None:
    """From step `start` to `stop`; learning rate and batches depend on the step alone."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    attach(optimizer)  # the only line that a search needs
    for step in range(start, stop):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)
        x, y = DIGITS.train.batch(step, BATCH, seed=0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def accuracy(model: nn.Module) -> float:
    x, y = DIGITS.valid.whole()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    methods = {
        "one-shot": gossamer.methods.lottery(0.02),
        "iterative, 4 levels": gossamer.methods.lottery(0.02, levels=4),
        "learning rate only": gossamer.methods.lottery(0.02, levels=4, mode="learning_rate"),
    }
    for label, method in methods.items():
        model = build()
        ticket = find_ticket(model, train, method, total_steps=STEPS)
        ticket.train(model, train)
        levels = ", ".join(f"{density:.3f}" for density in ticket.densities)
        steps = STEPS + method.depth * (ticket.stop - ticket.start)
        print(f"{label:20} valid accuracy {accuracy(model):.1%}, {steps} steps, densities {levels}")


if __name__ == "__main__":
    main()
