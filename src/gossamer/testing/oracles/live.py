"""Methods whose inactive weights keep a value: the support is the largest of all weights.

Symbols: w dense weights, m support, theta = w on m and 0 elsewhere, p = w on m, n = w off m, g = dl/dtheta at every
position, t = completed optimizer steps, T = length of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._run import LossFunction, MakeOptimizer, Run, Scope, Tensors, Trace, groups, pick, pick_together

Exploit = tuple[Literal["fix", "reset", "regularize"], float]
Weights = Mapping[str, Tensor]


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
    scope: Scope = "layer",
) -> Trace:
    """Algorithm 1 of *Advances in Sparse Neural Model Training*, with the knobs r and s of its figures.

    counts: entries per weight; with ``scope="global"`` only their sum counts, ties go to earlier `weights`, and each
    weight keeps its largest entry in any case.
    every: r. scale: s. exploit: ("fix", v), ("reset", z), ("regularize", beta) or None.

    Corrected misprints: |w_i| is compared with tau; the update is w - gamma dl/dw; v is compared with t / T; RESET
    acts when (t + 1) mod z = 0. n in lines 9-11 are the weights that took no part in line 6.
    """
    run = Run(model, weights, make_optimizer, loss_fn)
    w = run.weights
    masks = _largest(w, _nothing(w), counts, scope)
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


def ste_oracle(
    model: nn.Module,
    weights: Sequence[str],
    counts: Mapping[str, int],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    every: int = 1,
    scope: Scope = "layer",
) -> Trace:
    """STE, or DNW (Wortsman et al., 2019): m = top |w|, ``dl/dw := dl/dtheta``, a plain optimizer step on all of w."""
    run = Run(model, weights, make_optimizer, loss_fn)
    w = run.weights
    masks = _largest(w, _nothing(w), counts, scope)
    trace = Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss, gradients = run.forward_and_backward(masks, batch)
        for name, g in gradients.items():
            w[name].grad = g
        run.optimizer_step()
        if (t + 1) % every == 0:
            masks = _largest(w, masks, counts, scope)
        trace.steps.append(run.step(loss, masks))
    return trace


def sr_ste_oracle(
    model: nn.Module,
    weights: Sequence[str],
    keep: tuple[int, int] | Mapping[str, int],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    decay: float,
    every: int = 1,
) -> Trace:
    """SR-STE (Zhou et al., 2021, equation 9): ``w <- w - gamma (g + lambda (1 - m) w)``.

    keep: (N, M), the N largest |w| of every M consecutive inputs of an output, at each kernel position; or a count per
    weight, the largest of it. decay: lambda.
    """

    def select(masks: Weights) -> Tensors:
        if isinstance(keep, tuple):
            return {name: _n_of_m(w[name].detach().abs(), masks[name], *keep) for name in w}
        return _largest(w, masks, keep, "layer")

    run = Run(model, weights, make_optimizer, loss_fn)
    w = run.weights
    masks = select(_nothing(w))
    trace = Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss, gradients = run.forward_and_backward(masks, batch)
        for name, g in gradients.items():
            out = (~masks[name]).to(w[name].dtype)
            w[name].grad = None if g is None else g + decay * (out * w[name].detach())
        run.optimizer_step()
        if (t + 1) % every == 0:
            masks = select(masks)
        trace.steps.append(run.step(loss, masks))
    return trace


def topkast_oracle(
    model: nn.Module,
    weights: Sequence[str],
    counts: Mapping[str, int],
    reach: Callable[[int], Mapping[str, int]],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    density: float,
    decay: float,
    every: int = 1,
    stop: int | float,
    scope: Scope = "layer",
) -> Trace:
    """Top-KAST (Jayakumar et al., 2020): A = top D of |w| takes part, B = top D + M is trained, the rest stays put.

    counts: sizes of A. reach: sizes of B after so many completed steps. density: D. decay: of the penalty
    ``decay w^2 / 2`` on A and ``decay w^2 / (2 D)`` on B without A.
    """
    run = Run(model, weights, make_optimizer, loss_fn)
    w = run.weights
    a = _largest(w, _nothing(w), counts, scope)
    b = _union(a, _largest(w, a, reach(0), scope))
    trace = Trace(dict(a))
    for t, batch in enumerate(batches):
        loss, gradients = run.forward_and_backward(a, batch)
        before = {name: w[name].detach().clone() for name in w}
        for name, g in gradients.items():
            penalty = torch.where(a[name], decay * before[name], decay / density * before[name])
            w[name].grad = None if g is None else torch.where(b[name], g + penalty, 0.0)
        run.optimizer_step()
        done = t + 1
        with torch.no_grad():
            for name in w:
                w[name][~b[name]] = before[name][~b[name]]
        if done % every == 0 and done < stop:
            a, b = _largest(w, a, counts, scope), _largest(w, a, reach(done), scope)
            b = _union(a, b)
        trace.steps.append(run.step(loss, a))
    return trace


def _nothing(w: Weights) -> Tensors:
    return {name: torch.zeros_like(value, dtype=torch.bool) for name, value in w.items()}


def _union(a: Weights, b: Weights) -> Tensors:
    return {name: a[name] | b[name] for name in a}


def _largest(w: Weights, masks: Weights, counts: Mapping[str, int], scope: Scope) -> Tensors:
    """The top-|w| supports, tau being such that |p| is the count."""
    chosen: Tensors = {}
    for group in groups(w, scope):
        magnitude = {name: w[name].detach().abs() for name in group}
        chosen |= pick_together(magnitude, masks, sum(counts[name] for name in group), each=1 if len(group) > 1 else 0)
    return chosen


def _n_of_m(magnitude: Tensor, active: Tensor, n: int, m: int) -> Tensor:
    mask = torch.zeros_like(active)
    outputs, inputs, *kernel = magnitude.shape
    for output, first in product(range(outputs), range(0, inputs, m)):
        for position in product(*(range(size) for size in kernel)):
            group: Any = (output, slice(first, first + m), *position)
            mask[group] = pick(magnitude[group], active[group], n)
    return mask


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
