"""Literal transcriptions of the learned methods: plain autograd on the loss as printed, nothing of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._run import LossFunction, Tensors


@dataclass(frozen=True)
class LearnedStep:
    """What one step left behind: w (dense, or sparse after the cut), s (none after the cut), and the others."""

    loss: float
    weights: Tensors
    gates: Tensors
    others: Tensors


class _Run:
    """Detached leaves of a model, and its forward pass with other weights."""

    def __init__(self, model: nn.Module, weights: Sequence[str], loss_fn: LossFunction) -> None:
        leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        self.model, self.loss_fn = model, loss_fn
        self.buffers = {n: b.clone() for n, b in model.named_buffers()}
        self.w = {n: leaves[n] for n in weights}
        self.others = {n: p for n, p in leaves.items() if n not in weights}
        self.order = leaves

    def loss(self, theta: Tensors, batch: Any) -> Tensor:
        values = {**self.others, **theta, **self.buffers}
        return self.loss_fn(lambda *inputs: torch.func.functional_call(self.model, values, inputs), batch)

    def record(self, loss: Tensor, s: Tensors) -> LearnedStep:
        w, gates, others = ({n: v.detach().clone() for n, v in part.items()} for part in (self.w, s, self.others))
        return LearnedStep(float(loss.detach()), w, gates, others)

    def cut(self, score: Tensors, theta: Tensors, density: float | None) -> Tensors:
        """Hard masks: score > 0, or the round(d N) highest of all; theta on them becomes w."""
        if density is None:
            masks = {n: score[n] > 0 for n in self.w}
        else:
            flat = torch.cat([score[n].reshape(-1) for n in self.w])
            count = round(density * flat.numel())
            keep = torch.zeros(flat.numel(), dtype=torch.bool)
            keep[torch.sort(flat, descending=True, stable=True).indices[:count]] = True
            parts = keep.split([score[n].numel() for n in self.w])
            masks = {n: part.view(score[n].shape) for n, part in zip(self.w, parts, strict=True)}
        with torch.no_grad():
            for n, w in self.w.items():
                w.copy_(torch.where(masks[n], theta[n], torch.zeros_like(w)))
        return masks

    def static_step(self, masks: Tensors, optimizer: Optimizer, batch: Any) -> LearnedStep:
        optimizer.zero_grad()
        loss = self.loss(self.w, batch)
        loss.backward()
        for n, w in self.w.items():
            w.grad = torch.where(masks[n], w.grad, torch.zeros_like(w))  # type: ignore[arg-type]
        optimizer.step()
        with torch.no_grad():
            for n, w in self.w.items():
                w.masked_fill_(~masks[n], 0.0)
        return self.record(loss, {})


def cs_oracle(
    model: nn.Module,
    weights: Sequence[str],
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    s0: float,
    penalty: float,
    temperature: float,
    gate_lr: float,
    gate_momentum: float,
    end: int,
    density: float | None = None,
    rate: Callable[[int], float] = lambda step: 1.0,
) -> list[LearnedStep]:
    """Continuous Sparsification, pruning mode (Savarese et al., 2020): soft gates for `end` steps, then a hard mask.

    The loss is ``L(w sigmoid(beta s) / sigmoid(s0)) + penalty sum sigmoid(beta s)``; s has an SGD of its own. `rate`
    multiplies both learning rates in a step.
    """
    run = _Run(model, weights, loss_fn)
    s = {n: torch.full_like(w, s0).requires_grad_() for n, w in run.w.items()}
    optimizer = make_optimizer(list(run.order.values()))  # type: ignore[arg-type]
    gates = torch.optim.SGD(list(s.values()), lr=gate_lr, momentum=gate_momentum, nesterov=gate_momentum > 0)
    peak = [group["lr"] for group in optimizer.param_groups]
    scale = torch.sigmoid(torch.tensor(s0, dtype=torch.float64)).item()
    steps: list[LearnedStep] = []
    masks: Tensors = {}
    for t, batch in enumerate(batches):
        for group, lr in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = lr * rate(t)
        gates.param_groups[0]["lr"] = gate_lr * rate(t)
        if t >= end:
            steps.append(run.static_step(masks, optimizer, batch))
            continue
        beta = temperature ** (t / (end - 1))
        optimizer.zero_grad()
        gates.zero_grad()
        data_loss = run.loss({n: w * (torch.sigmoid(beta * s[n]) / scale) for n, w in run.w.items()}, batch)
        (data_loss + penalty * sum(torch.sigmoid(beta * each).sum() for each in s.values())).backward()
        optimizer.step()
        gates.step()
        if t + 1 == end:
            with torch.no_grad():
                theta = {n: w * (torch.sigmoid(temperature * s[n]) / scale) for n, w in run.w.items()}
            masks = run.cut({n: each.detach() for n, each in s.items()}, theta, density)
        steps.append(run.record(data_loss, s if t + 1 < end else {}))
    return steps


def str_oracle(
    model: nn.Module,
    weights: Sequence[str],
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    s_init: float,
    end: int,
    density: float | None = None,
) -> list[LearnedStep]:
    """STR (Kusupati et al., 2020): ``theta = sign(w) relu(|w| - sigmoid(s))``, one optimizer and decay for w and s."""
    run = _Run(model, weights, loss_fn)
    s = {n: torch.tensor(s_init, dtype=w.dtype).requires_grad_() for n, w in run.w.items()}
    optimizer = make_optimizer([*run.order.values(), *s.values()])  # type: ignore[list-item]
    steps: list[LearnedStep] = []
    masks: Tensors = {}
    for t, batch in enumerate(batches):
        if t >= end:
            steps.append(run.static_step(masks, optimizer, batch))
            continue
        optimizer.zero_grad()
        loss = run.loss(
            {n: torch.sign(w) * torch.relu(torch.abs(w) - torch.sigmoid(s[n])) for n, w in run.w.items()}, batch
        )
        loss.backward()
        optimizer.step()
        if t + 1 == end:
            with torch.no_grad():
                score = {n: w.abs() - torch.sigmoid(s[n]) for n, w in run.w.items()}
                theta = {n: torch.sign(w) * torch.relu(score[n]) for n, w in run.w.items()}
            masks = run.cut(score, theta, density)
            for each in s.values():
                each.grad = None
        steps.append(run.record(loss, s if t + 1 < end else {}))
    return steps
