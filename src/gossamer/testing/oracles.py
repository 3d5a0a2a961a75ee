"""Literal transcriptions of the published procedures: slow, plain and independent of the rest of the library.

Every named method must equal its oracle step by step. Nothing here imports the library's own parts; supports come
from a full sort, the dense gradient from a straight-through forward pass (`torch.func.functional_call` with the
sparse weights as leaves), the update from the real optimizer on the dense weights. The given model is not changed.
Modules that keep a second list of their weights (`torch.nn.LSTM` and its like) cannot be called that way.

Symbols: w dense weights, m support, theta = w on m and 0 elsewhere, p = w on m, n = w off m, g = dl/dtheta at every
position, t = completed optimizer steps, T = length of training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Tensors = dict[str, Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer | Sequence[Optimizer]]
LossFunction = Callable[[Callable[..., Any], Any], Tensor]  # (model, batch) -> scalar loss; only calls the model
Draw = Callable[[str, int, torch.Size], Tensor]  # (weight name, completed steps, shape) -> uniforms
Exploit = tuple[Literal["fix", "reset", "regularize"], float]
Newborn = Literal["neutral", "zero"]

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


def rewire_oracle(
    model: nn.Module,
    weights: Sequence[str],
    counts: Mapping[str, int],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    every: int | float = 1,
    scale: float = 1.0,
    scale_on: Literal["gradient", "update"] = "gradient",
    exploit: Exploit | None = None,
    total_steps: int,
    scope: Literal["layer", "global"] = "layer",
) -> Trace:
    """Algorithm 1 of *Advances in Sparse Neural Model Training*, with the knobs r and s of its figures.

    counts: entries per weight; with ``scope="global"`` only their sum counts, and ties go to earlier `weights`.
    every: r. scale: s. exploit: ("fix", v), ("reset", z), ("regularize", beta) or None.

    Corrected misprints: |w_i| is compared with tau; the update is w - gamma dl/dw; v is compared with t / T; RESET
    acts when (t + 1) mod z = 0. n in lines 9-11 are the weights that took no part in line 6.
    """
    run = _Run(model, weights, make_optimizer, loss_fn)
    w = run.weights
    masks = _largest(w, {name: torch.zeros_like(w[name], dtype=torch.bool) for name in w}, counts, scope)
    trace = Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss, gradients = run.forward_and_backward(masks, batch)
        before = {name: w[name].detach().clone() for name in w}
        for name, g in gradients.items():
            if g is not None and scale != 1.0 and scale_on == "gradient":
                g = torch.where(masks[name], g, scale * g if scale else torch.zeros_like(g))
            w[name].grad = g
        run.optimizer_step()
        with torch.no_grad():
            for name in w:
                n = ~masks[name]
                if scale != 1.0 and scale_on == "update":
                    w[name][n] = before[name][n] + scale * (w[name][n] - before[name][n])
                w[name][n] = _exploited(w[name][n], exploit, t, total_steps)
            if (t + 1) % every == 0:
                masks = _largest(w, masks, counts, scope)
        trace.steps.append(run.step(loss, masks))
    return trace


def static_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
) -> Trace:
    """Sparse training on supports that never change: the gradient, the weights and their slots are zero off them."""
    run = _Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    trace = Trace(dict(masks))
    for batch in batches:
        trace.steps.append(run.step(run.masked_step(masks, batch), masks))
    return trace


def set_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    every: int,
    stop: int | float,
    fraction: Callable[[int], float],
    draw: Draw,
    split_signs: bool = True,
    newborn: Newborn = "neutral",
) -> Trace:
    """SET (Mocanu et al., 2018): a rewiring follows every `every`-th optimizer step, if fewer than `stop` are done.

    fraction: zeta after so many completed steps. Per weight: drop floor(zeta |P|) of the positive active weights and
    floor(zeta |Q|) of the negative ones, those closest to zero, and every active exact zero (or, with
    ``split_signs=False``, the floor(zeta n) smallest |w|); at zeta = 0 nothing. Grow as many at the largest `draw`
    among all positions that were not kept.
    """
    run = _Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss = run.masked_step(masks, batch)
        done = t + 1
        if done % every == 0 and done < stop:
            for name, was in masks.items():
                w = run.weights[name].detach()
                kept = _kept_by_sign(w, was, fraction(done)) if split_signs else _kept(w, was, fraction(done))
                grown = pick(draw(name, done, w.shape), was, int(was.sum() - kept.sum()), among=~kept)
                masks[name] = kept | grown
                run.settle(name, was, masks[name], newborn)
        trace.steps.append(run.step(loss, masks))
    return trace


def rigl_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    every: int,
    stop: int | float,
    fraction: Callable[[int], float],
    newborn: Newborn = "neutral",
) -> Trace:
    """RigL (Evci et al., 2020, Algorithm 1): at t = every, 2 every, ... < stop, rewire *instead of* the update.

    Per weight, with n active entries: drop the k = floor(phi(t) n) smallest |w|; grow the k largest |g| among all
    positions that were not kept, the just dropped included. No parameter at all is updated in such a step.
    """
    run = _Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        if t > 0 and t % every == 0 and t < stop:
            loss, gradients = run.forward_and_backward(masks, batch)
            for name, was in masks.items():
                w, g = run.weights[name].detach(), gradients[name]
                kept = _kept(w, was, fraction(t))
                score = torch.zeros_like(w) if g is None else g.abs()
                grown = pick(score, was, int(was.sum() - kept.sum()), among=~kept)
                masks[name] = kept | grown
                run.settle(name, was, masks[name], newborn)
        else:
            loss = run.masked_step(masks, batch)
        trace.steps.append(run.step(loss, masks))
    return trace


def pick(scores: Tensor, active: Tensor, count: int, among: Tensor | None = None) -> Tensor:
    """Return the mask of the `count` first of `among`: highest score, then active ones, then lower flat index."""
    score, was = scores.flatten().tolist(), active.flatten().tolist()
    candidates = range(len(score)) if among is None else among.flatten().nonzero().flatten().tolist()
    order = sorted(candidates, key=lambda i: (-score[i], not was[i], i))
    chosen = torch.zeros(len(score), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view(scores.shape)


def _largest(w: Mapping[str, Tensor], masks: Tensors, counts: Mapping[str, int], scope: str) -> Tensors:
    """Line 4: the top-|w| supports, tau being such that |p| is the count."""
    magnitude = {name: value.detach().abs() for name, value in w.items()}
    if scope == "layer":
        return {name: pick(magnitude[name], masks[name], counts[name]) for name in w}
    together = pick(
        torch.cat([magnitude[name].flatten() for name in w]),
        torch.cat([masks[name].flatten() for name in w]),
        sum(counts[name] for name in w),
    )
    parts = together.split([value.numel() for value in w.values()])
    return {name: part.view(w[name].shape) for name, part in zip(w, parts, strict=True)}


def _exploited(n: Tensor, exploit: Exploit | None, t: int, total_steps: int) -> Tensor:
    """Lines 9-11."""
    kind, value = exploit or ("none", 0.0)
    if kind == "fix" and t / total_steps >= value:
        return torch.zeros_like(n)
    if kind == "reset" and (t + 1) % value == 0:
        return torch.zeros_like(n)
    if kind == "regularize":
        return n - value * n
    return n


def _kept(w: Tensor, active: Tensor, fraction: float) -> Tensor:
    n = int(active.sum())
    return pick(w.abs(), active, n - math.floor(fraction * n), among=active)


def _kept_by_sign(w: Tensor, active: Tensor, fraction: float) -> Tensor:
    if fraction == 0:
        return active
    return _kept(w, active & (w > 0), fraction) | _kept(w, active & (w < 0), fraction)


class _Run:
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
        for optimizer in self.optimizers:
            optimizer.step()

    def masked_step(self, masks: Mapping[str, Tensor], batch: Any) -> float:
        """An update of the active weights only."""
        loss, gradients = self.forward_and_backward(masks, batch)
        for name, g in gradients.items():
            self.weights[name].grad = None if g is None else torch.where(masks[name], g, 0.0)
        self.optimizer_step()
        self.clear(masks)
        return loss

    @torch.no_grad()
    def clear(self, masks: Mapping[str, Tensor]) -> None:
        """Zero weights and slots off the supports."""
        for name, mask in masks.items():
            self.weights[name][~mask] = 0.0
            for slot, value in self._slots(name):
                value[~mask] = self._untouched(name, slot)

    @torch.no_grad()
    def settle(self, name: str, was: Tensor, now: Tensor, newborn: Newborn) -> None:
        """Values and slots after a rewiring; what was dropped and grown again keeps both."""
        stayed, born = was & now, now & ~was
        self.weights[name][born] = 0.0
        for slot, value in self._slots(name):
            averaged = newborn == "neutral" and slot in _SECOND_MOMENTS and bool(stayed.any())
            value[born] = value[stayed].mean() if averaged else self._untouched(name, slot)
        self.clear({name: now})

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

    def _untouched(self, name: str, slot: str) -> float:
        """Where the optimizer starts a slot: 0, but Rprop's step sizes at lr, Adagrad's sums at its setting."""
        groups = [g for o in self.optimizers for g in o.param_groups]
        group = next(g for g in groups if any(p is self.weights[name] for p in g["params"]))
        start = {"step_size": group["lr"], "sum": group.get("initial_accumulator_value", 0.0)}
        return float(start.get(slot, 0.0))
