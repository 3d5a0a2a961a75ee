"""Methods whose inactive weights are zero and whose layers keep their counts: static, SET, RigL, ITOP, DeepR.

Symbols: m support, n its size, w weights, zero off m, g = dl/dtheta at every position, phi or zeta the fraction
dropped, t completed optimizer steps, T length of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._run import (
    Draw,
    LossFunction,
    MakeOptimizer,
    Newborn,
    Run,
    Scope,
    Tensors,
    Trace,
    groups,
    pick,
    pick_together,
    total,
)


def static_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
) -> Trace:
    """Sparse training on supports that never change: the gradient, the weights and their slots are zero off them."""
    run = Run(model, list(masks), make_optimizer, loss_fn)
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
    newborn_value: Draw | None = None,
    grace: int = 0,
) -> Trace:
    """SET (Mocanu et al., 2018): a rewiring follows every `every`-th optimizer step, if fewer than `stop` are done.

    fraction: zeta after so many completed steps. Per weight: drop floor(zeta |P|) of the positive active weights and
    floor(zeta |Q|) of the negative ones, those closest to zero, and every active exact zero (or, with
    ``split_signs=False``, the floor(zeta n) smallest |w|); at zeta = 0 nothing. Grow as many at the largest `draw`
    among all positions that were not kept.

    newborn_value: their first values; None: 0. grace: weights that became active fewer steps ago are not dropped.

    SET-ITOP (Liu et al., 2021) is this with ``split_signs=False``.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    born = {name: torch.full(mask.shape, -math.inf) for name, mask in masks.items()}
    for t, batch in enumerate(batches):
        loss = run.masked_step(masks, batch)
        done = t + 1
        if done % every == 0 and done < stop:
            for name, was in masks.items():
                w, young = run.weights[name].detach(), was & (done - born[name] < grace)
                zeta = fraction(done)
                kept = _kept_by_sign(w, was, zeta, young) if split_signs else _kept(w, was, zeta, young)
                grown = pick(draw(name, done, w.shape), was, int(was.sum() - kept.sum()), among=~kept)
                masks[name] = kept | grown
                born[name][grown & ~was] = done
                value = None if newborn_value is None else newborn_value(name, done, w.shape)
                run.settle(name, was, masks[name], newborn, value)
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
    scope: Scope = "layer",
    grace: int = 0,
) -> Trace:
    """RigL (Evci et al., 2020, Algorithm 1): at t = every, 2 every, ... < stop, rewire *instead of* the update.

    Per weight, with n active entries: drop the k = floor(phi(t) n) smallest |w|; grow the k largest |g| among all
    positions that were not kept, the just dropped included. No parameter at all is updated in such a step.

    scope: "global" does this once over all weights; each keeps its largest entry. grace: as in SET.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    born = {name: torch.full(mask.shape, -math.inf) for name, mask in masks.items()}
    for t, batch in enumerate(batches):
        if t > 0 and t % every == 0 and t < stop:
            loss, gradients = run.forward_and_backward(masks, batch)
            young = {name: was & (t - born[name] < grace) for name, was in masks.items()}
            now: Tensors = {}
            for group in groups(masks, scope):
                now |= _rewired(run, {name: masks[name] for name in group}, gradients, fraction(t), young)
            for name, was in masks.items():
                born[name][now[name] & ~was] = t
                run.settle(name, was, now[name], newborn)
            masks = now
        else:
            loss = run.masked_step(masks, batch)
        trace.steps.append(run.step(loss, masks))
    return trace


def rigl_itop_oracle(
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
    """RigL-ITOP (Liu et al., 2021): the update of every `every`-th step is made, then drop and grow follow.

    Per weight: drop the floor(phi n) smallest |w|, as updated; grow as many at the largest |g| of the same batch, among
    all positions that were not kept.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss, gradients = run.forward_and_backward(masks, batch)
        run.update(masks, gradients)
        done = t + 1
        if done % every == 0 and done < stop:
            for name, was in masks.items():
                masks |= _rewired(run, {name: was}, gradients, fraction(done), {name: torch.zeros_like(was)})
                run.settle(name, was, masks[name], newborn)
        trace.steps.append(run.step(loss, masks))
    return trace


def deepr_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    l1: float,
    temperature: float,
    every: int = 1,
    stop: int | float,
    coin: Callable[[str, torch.Size], Tensor],
    noise: Draw,
    draw: Draw,
    scope: Scope = "layer",
    newborn: Newborn = "neutral",
) -> Trace:
    """DeepR (Bellec et al., 2018): w = s theta with a fixed sign s; what becomes negative in theta is replaced.

    After the optimizer's step on the active weights: ``theta <- theta - eta alpha + sqrt(2 eta T) nu``. Then, after
    every `every`-th step, if fewer than `stop` are done: theta < 0 becomes dormant, and as many dormant connections,
    at the largest `draw`, become active with theta = 0.

    l1: alpha. temperature: T. coin: (weight name, shape) -> where s = 1 among weights that are 0 at first; the others
    keep the sign they have. noise: nu of step t. scope: whether a connection is replaced within its weight or anywhere.

    Where all would go the largest theta stays. Connections that became dormant just now come back, with their value,
    only when there is no other; then the first positions do.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    signs = {}
    for name, w in run.weights.items():
        drawn = torch.where(coin(name, w.shape), 1.0, -1.0)
        signs[name] = torch.where(w.detach() == 0, drawn.to(w.dtype), w.detach().sign())
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss = run.masked_step(masks, batch)
        with torch.no_grad():
            for name, w in run.weights.items():
                eta = run.learning_rate(name)
                moved = w - eta * l1 * signs[name]
                if temperature:
                    moved = moved + math.sqrt(2 * eta * temperature) * noise(name, t, w.shape).to(w.dtype)
                w[masks[name]] = moved[masks[name]]
        done = t + 1
        if done % every == 0 and done < stop:
            theta = {name: signs[name] * w.detach() for name, w in run.weights.items()}
            kept = {name: survivors(was, theta[name], 0.0) for name, was in masks.items()}
            draws = {name: draw(name, done, was.shape) for name, was in masks.items()}
            for group in groups(masks, scope):
                was = {name: masks[name] for name in group}
                now = regrown(was, {name: kept[name] for name in group}, draws, total(was))
                for name in group:
                    masks[name] = now[name]
                    run.settle(name, was[name], now[name], newborn)
        trace.steps.append(run.step(loss, masks))
    return trace


def survivors(active: Tensor, value: Tensor, limit: float) -> Tensor:
    """What of the active entries is not below the limit; the highest of them if all are."""
    kept = active & ~(value < limit)
    return kept if bool(kept.any()) else pick(value, active, 1, among=active)


def regrown(was: Mapping[str, Tensor], kept: Mapping[str, Tensor], draws: Mapping[str, Tensor], count: int) -> Tensors:
    """`kept` and new entries at the largest draws, `count` in all; the just dropped only where nothing else is left."""
    fresh = {name: ~was[name] for name in was}
    missing = count - total(kept)
    grown = pick_together({name: draws[name] for name in was}, was, min(missing, total(fresh)), fresh)
    dropped = {name: was[name] & ~kept[name] for name in was}
    level = {name: torch.zeros(was[name].shape) for name in was}
    revived = pick_together(level, was, missing - total(grown), dropped)
    return {name: kept[name] | grown[name] | revived[name] for name in was}


def _rewired(
    run: Run,
    masks: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None],
    fraction: float,
    young: Mapping[str, Tensor],
) -> Tensors:
    """One drop by |w| and one growth by |g| among weights that compete; of several, each keeps its largest entry."""
    magnitude, slope = {}, {}
    for name, active in masks.items():
        w, g = run.weights[name].detach(), gradients[name]
        first = torch.where(young[name], math.inf, w.abs())
        largest = pick(first, active, 1 if len(masks) > 1 else 0, among=active)
        magnitude[name] = torch.where(largest, math.inf, first)
        slope[name] = torch.zeros_like(w) if g is None else g.abs()
    n = total(masks)
    can_go = sum(int((active & magnitude[name].isfinite()).sum()) for name, active in masks.items())
    kept = pick_together(magnitude, masks, n - min(math.floor(fraction * n), can_go), masks)
    grown = pick_together(slope, masks, n - total(kept), {name: ~kept[name] for name in masks})
    return {name: kept[name] | grown[name] for name in masks}


def _kept(w: Tensor, active: Tensor, fraction: float, young: Tensor) -> Tensor:
    """All but the floor(zeta n) smallest |w|, of those that are not too young."""
    n, old = int(active.sum()), int((active & ~young).sum())
    first = torch.where(young, math.inf, w.abs())
    return pick(first, active, n - min(math.floor(fraction * n), old), among=active)


def _kept_by_sign(w: Tensor, active: Tensor, fraction: float, young: Tensor) -> Tensor:
    if fraction == 0:
        return active
    positive, negative = active & (w > 0), active & (w < 0)
    kept = _kept(w, positive, fraction, young & positive) | _kept(w, negative, fraction, young & negative)
    return kept | (young & active)
