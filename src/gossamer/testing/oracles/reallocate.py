"""Methods that move parameters between layers: DSR, SNFS, rebalance. Symbols as in `drop_grow`; l counts weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._run import Draw, LossFunction, MakeOptimizer, Newborn, Run, Trace, pick, total
from ._shares import Numbers, share
from .drop_grow import regrown, survivors


def dsr_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    target: int | float,
    threshold: float,
    tolerance: float,
    every: int,
    double_at: tuple[int, ...] = (),
    stop: int | float,
    draw: Draw,
    reallocate: bool = True,
    newborn: Newborn = "neutral",
) -> Trace:
    """DSR (Mostafa and Wang, 2019, Algorithm 1): one threshold H for all weights.

    After step `every` and multiples of the period from there, below `stop`: drop every active |w| < H, but one of a
    weight at least stays. With K dropped and R_l left: H halves if K > (1 + delta) N, doubles if K < (1 - delta) N.
    Weight l grows its share K R_l / sum R at the largest `draw` of the positions that were inactive before.

    target: N, or with a float the share of all active weights. threshold: H at first. tolerance: delta.
    double_at: steps from which on the period, at first `every`, is twice as long.
    reallocate: whether R_l decides; if not, every weight grows what it dropped.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace, h = dict(masks), Trace(dict(masks)), threshold
    for t, batch in enumerate(batches):
        loss = run.masked_step(masks, batch)
        done = t + 1
        period = every * 2 ** len([time for time in double_at if done >= time])
        if done >= every and (done - every) % period == 0 and done < stop:
            kept = {n: survivors(was, run.weights[n].detach().abs(), h) for n, was in masks.items()}
            dropped = {n: int(was.sum() - kept[n].sum()) for n, was in masks.items()}
            k, wanted = sum(dropped.values()), target * total(masks) if isinstance(target, float) else target
            if k > (1 + tolerance) * wanted:
                h = h / 2
            elif k < (1 - tolerance) * wanted:
                h = 2 * h
            room = {n: int((~was).sum()) for n, was in masks.items()}
            if sum(room.values()) < k or not reallocate:  # not without the just dropped
                room = {n: int((~mask).sum()) for n, mask in kept.items()}
            left = {n: int(mask.sum()) for n, mask in kept.items()}
            more = share(left if reallocate else dropped, room, k)
            for n, was in masks.items():
                draws = {n: draw(n, done, was.shape)}
                masks |= regrown({n: was}, {n: kept[n]}, draws, left[n] + more[n])
                run.settle(n, was, masks[n], newborn)
        trace.steps.append(run.step(loss, masks))
    return trace


def snfs_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    every: int,
    stop: int | float,
    fraction: Callable[[int], float],
    drop: Literal["magnitude", "momentum"] = "magnitude",
    grow: Literal["momentum", "random"] = "momentum",
    reallocate: bool = True,
    draw: Draw,
) -> Trace:
    """SNFS, sparse momentum (Dettmers and Zettlemoyer, 2019): the optimizer's slots see the dense gradient always.

    After every `every`-th step, if fewer than `stop` are done, M being the momentum: q_l = mean |M| of the active
    entries of weight l; it drops the floor(p n_l) smallest |w| and regrows its share q_l / sum q of all that was
    dropped, where |M| is largest among the positions not kept. New weights are 0; M is left alone.

    fraction: p after so many completed steps. drop, grow: by what. draw: for random growth. reallocate: whether q_l
    decides; if not, every weight grows what it dropped.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss, gradients = run.forward_and_backward(masks, batch)
        for name, g in gradients.items():
            run.weights[name].grad = g
        run.optimizer_step()
        run.clear_weights(masks)
        done = t + 1
        if done % every == 0 and done < stop:
            m = {name: run.momentum(name).abs() for name in masks}
            by = m if drop == "momentum" else {name: run.weights[name].detach().abs() for name in masks}
            kept = {name: _kept(by[name], was, fraction(done)) for name, was in masks.items()}
            more = _quotas(m, masks, kept, reallocate)
            for name, was in masks.items():
                score = m[name] if grow == "momentum" else draw(name, done, was.shape)
                masks[name] = kept[name] | pick(score, was, more[name], among=~kept[name])
            run.clear_weights(masks)
        trace.steps.append(run.step(loss, masks))
    return trace


def rebalance_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    every: int,
    stop: int | float,
    fraction: Callable[[int], float],
    target: float,
) -> Trace:
    """RigL with growth where weights shrink gradients; ours, after what Lee et al. (2020) leave to future work.

    At t = every, 2 every, ... < stop, *instead of* the update: weight l drops the floor(phi n_l) smallest |w|. If fewer
    are left than it has inputs or outputs, it is to grow back up to that many of them. Of the rest of what all dropped
    it is to grow its share max(0, -log(b_l / target)), at the largest |g| of the positions not kept. b_l is the sum of
    the squares of the weight, before the drop, over its outputs; no less than 1e-6 target. If all shares are 0, every
    weight grows what it dropped.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        if t > 0 and t % every == 0 and t < stop:
            loss, gradients = run.forward_and_backward(masks, batch)
            kept = {name: _kept(run.weights[name].detach().abs(), was, fraction(t)) for name, was in masks.items()}
            dropped = {name: int(was.sum() - kept[name].sum()) for name, was in masks.items()}
            needs = {name: _need(run.weights[name].detach(), target) for name in masks}
            room = {name: int((~mask).sum()) for name, mask in kept.items()}
            parts = _rebalanced(needs, kept, dropped) if any(needs.values()) else dropped
            more = share(parts, room, sum(dropped.values()))
            for name, was in masks.items():
                g = gradients[name]
                slope = torch.zeros(was.shape) if g is None else g.abs()
                masks[name] = kept[name] | pick(slope, was, more[name], among=~kept[name])
                run.settle(name, was, masks[name], "neutral")
        else:
            loss = run.masked_step(masks, batch)
        trace.steps.append(run.step(loss, masks))
    return trace


def _rebalanced(needs: Mapping[str, float], kept: Mapping[str, Tensor], dropped: Mapping[str, int]) -> dict[str, float]:
    back = {}
    for name, mask in kept.items():
        rows = len(mask)
        wanted = max(rows, mask.numel() // rows) - int(mask.sum())
        back[name] = min(max(wanted, 0), dropped[name])
    rest = (sum(dropped.values()) - sum(back.values())) / math.fsum(needs.values())
    return {name: back[name] + rest * needs[name] for name in kept}


def _need(w: Tensor, target: float) -> float:
    outputs = len(w)
    b = math.fsum(value**2 for value in w.flatten().tolist()) / outputs
    return max(0.0, -math.log(max(b / target, 1e-6)))


def _kept(score: Tensor, active: Tensor, fraction: float) -> Tensor:
    n = int(active.sum())
    return pick(score, active, max(1, n - math.floor(fraction * n)), among=active)


def _quotas(
    m: Mapping[str, Tensor], was: Mapping[str, Tensor], kept: Mapping[str, Tensor], reallocate: bool
) -> Numbers:
    dropped = {name: int(was[name].sum() - kept[name].sum()) for name in was}
    room = {name: int((~kept[name]).sum()) for name in was}
    q = {name: math.fsum(m[name][was[name]].tolist()) / int(was[name].sum()) for name in was}
    return share(q if reallocate else dropped, room, sum(dropped.values()))
