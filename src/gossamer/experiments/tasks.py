"""What a model is trained for: the loss, the metric, and how both are measured on a split."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A kind of data with its metric. Logits are (batch, classes) or (batch, positions, classes)."""

    name: str
    metric: str
    higher_is_better: bool

    def value(self, totals: Totals) -> float:
        """The metric of what was counted: accuracy in %, or bits per byte."""
        return totals.accuracy if self.higher_is_better else totals.loss / math.log(2)


TASKS = {
    "classification": Task("classification", "accuracy", True),
    "language": Task("language", "bits/byte", False),
}


@dataclass
class Totals:
    """Running sums over predictions.

    >>> totals = Totals()
    >>> _ = totals.add(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0]))
    >>> totals.accuracy, totals.count
    (50.0, 2)
    """

    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0

    def add(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Count a batch and return its mean cross-entropy, in nats, with its graph."""
        logits, targets = logits.flatten(0, -2), targets.flatten()
        loss = F.cross_entropy(logits, targets)
        self.loss_sum += float(loss.detach()) * len(targets)
        self.correct += int((logits.detach().argmax(-1) == targets).sum())
        self.count += len(targets)
        return loss

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / max(self.count, 1)

    @property
    def accuracy(self) -> float:
        """Share of right predictions in %."""
        return 100.0 * self.correct / max(self.count, 1)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 500,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Totals:
    """Run `model` in evaluation mode over a whole split and leave it in training mode as it was."""
    totals, training = Totals(), model.training
    model.eval()
    for rows, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
        with autocast():
            totals.add(model(rows), targets)
    model.train(training)
    return totals
