"""Dense to sparse: one-shot pruning, gradual pruning, GraNet. Symbols as in `drop_grow`; N entries, d density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._run import LossFunction, MakeOptimizer, Newborn, Run, Scope, Tensors, Trace, pick, pick_together, total
from ._shares import share


def cubic(initial: float, final: float, start: int, stop: int, t: int) -> float:
    """``d_f + (d_i - d_f) (1 - (t - t_0) / (t_end - t_0))^3``, constant outside (Zhu and Gupta, 2017, equation 1)."""
    if t <= start or t >= stop:
        return initial if t <= start and t < stop else final
    return final + (initial - final) * (1 - (t - start) / (stop - start)) ** 3


def one_shot_oracle(
    model: nn.Module,
    parts: Mapping[str, int],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    density: float,
    at: int,
    scope: Scope = "global",
) -> Trace:
    """Magnitude pruning (Han et al., 2015): dense training, the largest |w| stay after step `at`, training goes on.

    parts: as in `gmp_oracle`.
    """

    def density_at(t: int) -> float:
        return density if t >= at else 1.0

    return _pruned(model, parts, make_optimizer, batches, loss_fn, density_at, lambda t: t == at, scope)


def gmp_oracle(
    model: nn.Module,
    parts: Mapping[str, int],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    density: float,
    initial: float = 1.0,
    every: int,
    start: int,
    stop: int,
    scope: Scope = "layer",
) -> Trace:
    """Gradual magnitude pruning (Zhu and Gupta, 2017): every ΔT steps the largest |w| stay, as many as `cubic` says.

    parts: what the counts of the weights are in proportion to (``scope="layer"``). start, stop: t_0 and t_end; pruning
    happens after steps t_0 + k ΔT < t_end and t_end.
    """

    def density_at(t: int) -> float:
        return cubic(initial, density, start, stop, t)

    def due(t: int) -> bool:
        return t == stop or (start <= t < stop and (t - start) % every == 0)

    return _pruned(model, parts, make_optimizer, batches, loss_fn, density_at, due, scope)


def _pruned(
    model: nn.Module,
    parts: Mapping[str, int],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    density_at: Callable[[int], float],
    due: Callable[[int], bool],
    scope: Scope,
) -> Trace:
    run = Run(model, list(parts), make_optimizer, loss_fn)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in run.weights.items()}
    masks = _largest(run, masks, parts, density_at(0), scope)
    run.clear(masks)
    trace = Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss = run.masked_step(masks, batch)
        if due(t + 1):
            masks = _largest(run, masks, parts, density_at(t + 1), scope)
            run.clear(masks)
        trace.steps.append(run.step(loss, masks))
    return trace


def _largest(run: Run, masks: Tensors, parts: Mapping[str, int], density: float, scope: Scope) -> Tensors:
    """The largest |w| of what is active: round(d N) over all weights, or that number shared out. None loses all."""
    magnitude = {name: w.detach().abs() for name, w in run.weights.items()}
    size = {name: w.numel() for name, w in run.weights.items()}
    count = round(density * sum(size.values()))
    if scope == "global":
        return pick_together(magnitude, masks, count, masks, each=1)
    held = {name: int(mask.sum()) for name, mask in masks.items()}
    counts = share(share(parts, size, count, least=1), held, count)  # rounding may ask for one more than is left
    return {name: pick(magnitude[name], masks[name], counts[name], masks[name]) for name in masks}


def granet_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    density: float,
    initial: float,
    fraction: Callable[[int], float],
    every: int,
    prune_until: int,
    stop: int | float,
    newborn: Newborn = "neutral",
) -> Trace:
    """GraNet (Liu et al., 2021): after every ΔT-th step below `stop`, prune over all weights, then regenerate.

    The same after step `prune_until`, so that the final density is reached.

    (1) The largest |w| over all weights stay, as many as `cubic` says from 0 to `prune_until`; each weight keeps its
    largest. (2) Each weight drops its floor(phi n) smallest of what is left, n being their number, and grows as many
    where |g| of this batch is largest among all positions that were not kept, the just pruned included.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    size = sum(mask.numel() for mask in masks.values())
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        loss, gradients = run.forward_and_backward(masks, batch)
        run.update(masks, gradients)
        done = t + 1
        if (done % every == 0 and done < stop) or done == prune_until:
            count = round(cubic(initial, density, 0, prune_until, done) * size)
            magnitude = {name: w.detach().abs() for name, w in run.weights.items()}
            pruned = pick_together(magnitude, masks, min(count, total(masks)), masks, each=1)
            for name, was in masks.items():
                n = int(pruned[name].sum())
                kept = pick(magnitude[name], pruned[name], n - math.floor(fraction(done) * n), pruned[name])
                g = gradients[name]
                slope = torch.zeros_like(magnitude[name]) if g is None else g.abs()
                masks[name] = kept | pick(slope, pruned[name], n - int(kept.sum()), ~kept)
                run.settle(name, was, masks[name], newborn)
        trace.steps.append(run.step(loss, masks))
    return trace
