"""What the transcriptions share: a private copy of the model, the record of its training, selection by a full sort."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Tensors = dict[str, Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer | Sequence[Optimizer]]
LossFunction = Callable[[Callable[..., Any], Any], Tensor]  # (model, batch) -> scalar loss; only calls the model
Draw = Callable[[str, int, torch.Size], Tensor]  # (weight name, step, shape) -> random numbers
Newborn = Literal["neutral", "zero"]
Scope = Literal["layer", "global"]

# Running means of squares (or of their maxima): a newborn entry starts from the mean of the surviving ones.
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum")


@dataclass(frozen=True)
class Step:
    """What one optimizer step left behind.

    loss: of this step's forward pass. masks: the supports that the next forward pass uses. weights: theta on them.
    trainable: the dense w; equal to `weights` where inactive weights are zero. others: all remaining parameters.
    """

    loss: float
    masks: Tensors
    weights: Tensors
    trainable: Tensors
    others: Tensors


@dataclass
class Trace:
    """A run: the first supports and one `Step` per batch."""

    masks: Tensors
    steps: list[Step] = field(default_factory=list)


def pick(scores: Tensor, active: Tensor, count: int, among: Tensor | None = None) -> Tensor:
    """Return the mask of the `count` first of `among`: highest score, then active ones, then lower flat index."""
    score, was = scores.flatten().tolist(), active.flatten().tolist()
    candidates = range(len(score)) if among is None else among.flatten().nonzero().flatten().tolist()
    order = sorted(candidates, key=lambda i: (-score[i], not was[i], i))
    chosen = torch.zeros(len(score), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view(scores.shape)


def pick_together(
    scores: Mapping[str, Tensor],
    active: Mapping[str, Tensor],
    count: int,
    among: Mapping[str, Tensor] | None = None,
    each: int = 0,
) -> Tensors:
    """The `count` first over all weights; earlier weights win ties. `each`: so many of every weight come before all."""
    among = among or {name: torch.ones_like(active[name]) for name in scores}
    safe = {name: pick(scores[name], active[name], each, among[name]) for name in scores}
    rest = pick(
        torch.cat([scores[name].flatten() for name in scores]),
        torch.cat([active[name].flatten() for name in scores]),
        max(0, count - sum(int(mask.sum()) for mask in safe.values())),
        torch.cat([(among[name] & ~safe[name]).flatten() for name in scores]),
    )
    parts = rest.split([scores[name].numel() for name in scores])
    return {name: safe[name] | part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def groups(names: Mapping[str, Any], scope: Scope) -> list[list[str]]:
    """Which weights compete."""
    return [list(names)] if scope == "global" else [[name] for name in names]


def total(masks: Mapping[str, Tensor]) -> int:
    """The number of entries of all masks."""
    return sum(int(mask.sum()) for mask in masks.values())


class Run:
    """A private copy of the model with its optimizer(s)."""

    def __init__(
        self, model: nn.Module, weights: Sequence[str], make_optimizer: MakeOptimizer, loss_fn: LossFunction
    ) -> None:
        self.model, self.loss_fn = copy.deepcopy(model), loss_fn
        self.weights = {name: self.model.get_parameter(name) for name in weights}
        made = make_optimizer(list(self.model.parameters()))
        self.optimizers = [made] if isinstance(made, Optimizer) else list(made)

    def forward_and_backward(self, masks: Mapping[str, Tensor], batch: Any) -> tuple[float, dict[str, Tensor | None]]:
        """Loss at theta and g on every position; the remaining parameters get their own gradient."""
        self.model.zero_grad(set_to_none=True)
        theta = {name: torch.where(masks[name], w.detach(), 0.0).requires_grad_() for name, w in self.weights.items()}
        loss = self.loss_fn(lambda *a, **k: torch.func.functional_call(self.model, theta, a, k), batch)
        loss.backward()
        return loss.item(), {name: leaf.grad for name, leaf in theta.items()}

    def optimizer_step(self) -> None:
        """One step of every optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()

    def update(self, masks: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        """An update of the active weights only."""
        for name, g in gradients.items():
            self.weights[name].grad = None if g is None else torch.where(masks[name], g, 0.0)
        self.optimizer_step()
        self.clear(masks)

    def masked_step(self, masks: Mapping[str, Tensor], batch: Any) -> float:
        """A whole step of sparse training on fixed supports; returns the loss."""
        loss, gradients = self.forward_and_backward(masks, batch)
        self.update(masks, gradients)
        return loss

    @torch.no_grad()
    def clear_weights(self, masks: Mapping[str, Tensor]) -> None:
        """Zero weights off the supports."""
        for name, mask in masks.items():
            self.weights[name][~mask] = 0.0

    @torch.no_grad()
    def clear(self, masks: Mapping[str, Tensor]) -> None:
        """Zero weights and slots off the supports."""
        self.clear_weights(masks)
        for name, mask in masks.items():
            for slot, value in self._slots(name):
                value[~mask] = self._untouched(name, slot)

    @torch.no_grad()
    def settle(self, name: str, was: Tensor, now: Tensor, newborn: Newborn, value: Tensor | None = None) -> None:
        """Values and slots after a rewiring; what was dropped and grown again keeps both.

        value: of newborn entries; None: 0.
        """
        stayed, born = was & now, now & ~was
        self.weights[name][born] = 0.0 if value is None else value[born]
        for slot, held in self._slots(name):
            averaged = newborn == "neutral" and slot in _SECOND_MOMENTS and bool(stayed.any())
            held[born] = held[stayed].mean() if averaged else self._untouched(name, slot)
        self.clear({name: now})

    def momentum(self, name: str) -> Tensor:
        """M: the first moment; under Adam and its like m / (sqrt(v) + 1e-8)."""
        slots = dict(self._slots(name))
        if "momentum_buffer" in slots:
            return slots["momentum_buffer"]
        return slots["exp_avg"] / (slots["exp_avg_sq"].sqrt() + 1e-8)

    def learning_rate(self, name: str) -> float:
        """Gamma, or eta, now."""
        return float(self._group(name)["lr"])

    def step(self, loss: float, masks: Mapping[str, Tensor]) -> Step:
        """Record copies of everything."""
        trainable = {name: w.detach().clone() for name, w in self.weights.items()}
        theta = {name: torch.where(masks[name], w, 0.0) for name, w in trainable.items()}
        others = {k: v.detach().clone() for k, v in self.model.named_parameters() if k not in self.weights}
        return Step(loss, dict(masks), theta, trainable, others)

    def _slots(self, name: str) -> list[tuple[str, Tensor]]:
        """Optimizer state of the weight's own shape."""
        w = self.weights[name]
        held = [o.state[w] for o in self.optimizers if w in o.state]
        return [(k, v) for state in held for k, v in state.items() if isinstance(v, Tensor) and v.shape == w.shape]

    def _group(self, name: str) -> dict[str, Any]:
        return next(
            group
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            if any(p is self.weights[name] for p in group["params"])
        )

    def _untouched(self, name: str, slot: str) -> float:
        """Where the optimizer starts a slot: 0, but Rprop's step sizes at lr, Adagrad's sums at its setting."""
        group = self._group(name)
        start = {"step_size": group["lr"], "sum": group.get("initial_accumulator_value", 0.0)}
        return float(start.get(slot, 0.0))
