"""SRigL: RigL with a constant fan-in. Symbols as in `drop_grow`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._run import LossFunction, MakeOptimizer, Newborn, Run, Trace, pick


def srigl_oracle(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    counts: Mapping[str, int],
    make_optimizer: MakeOptimizer,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    every: int,
    stop: int | float,
    fraction: Callable[[int], float],
    min_salient: float | int,
    newborn: Newborn = "neutral",
) -> Trace:
    """SRigL (Lasby et al., 2023): at t = every, 2 every, ... < stop, rewire *instead of* the update.

    counts: K, the most that a weight may hold. min_salient: gamma, or with an int the number itself; see `_rewired`.
    """
    run = Run(model, list(masks), make_optimizer, loss_fn)
    run.clear(masks)
    masks, trace = dict(masks), Trace(dict(masks))
    for t, batch in enumerate(batches):
        if t > 0 and t % every == 0 and t < stop:
            loss, gradients = run.forward_and_backward(masks, batch)
            for name, was in masks.items():
                w, g = run.weights[name].detach(), gradients[name]
                slope = torch.zeros_like(w) if g is None else g.abs()
                masks[name] = _rewired(w.abs(), slope, was, counts[name], fraction(t), min_salient)
                run.settle(name, was, masks[name], newborn)
        else:
            loss = run.masked_step(masks, batch)
        trace.steps.append(run.step(loss, masks))
    return trace


def _rewired(
    magnitude: Tensor, slope: Tensor, active: Tensor, budget: int, fraction: float, min_salient: float | int
) -> Tensor:
    """One weight; a neuron is an index of dimension 0.

    Salient are the n - k largest |w| of the n active entries and the k = floor(phi n) largest |g| of all. A neuron with
    fewer than max(1, floor(gamma f)) salient entries is ablated, f being the fan-in of the active neurons so far; but
    ceil(K / width) neurons stay, those with most. Each of the a that stay gets floor(K / a) entries: its own of the
    n - k, the largest if there are more, then by |g|.
    """
    n, neurons = int(active.sum()), range(len(active))
    k, width = math.floor(fraction * n), active[0].numel()
    largest = pick(magnitude, active, n - k, among=active)
    salient = largest | pick(slope, active, k)
    number = [int(salient[i].sum()) for i in neurons]
    before = [int(active[i].sum()) for i in neurons if active[i].any()]
    f = sum(before) // len(before)
    least = min_salient if isinstance(min_salient, int) else max(1, math.floor(min_salient * f))
    by_number = sorted(neurons, key=lambda i: (-number[i], i))
    stay = [i for place, i in enumerate(by_number) if number[i] >= least or place < math.ceil(budget / width)]
    fan_in = min(budget // len(stay), width)
    mask = torch.zeros_like(active)
    for i in stay:
        kept = pick(magnitude[i], active[i], fan_in, among=largest[i])
        mask[i] = kept | pick(slope[i], active[i], fan_in - int(kept.sum()), among=~kept)
    return mask
