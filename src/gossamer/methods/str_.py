"""STR: a learned soft threshold per layer."""

from __future__ import annotations

from ..reparametrise import Learned, SoftThreshold
from ._registry import named


@named("str", needs="dense weights, one threshold per weight tensor", source="Kusupati et al. 2020 (2002.03231)")
def str_(density: float | None, s_init: float = -3200.0, finalize: int | float | None = None) -> Learned:
    """STR: a soft threshold per layer, trained with the weights.

    theta = sign(w) relu(|w| - sigmoid(s)), one s per weight tensor, stepped by the weight's own optimizer with the
    same weight decay, which is what raises the threshold at first.

    density: our addition: keep exactly round(d N) entries, those of the largest |w| - sigmoid(s) of all weights; None:
        those above the threshold, an outcome of weight decay and s_init. Every weight keeps one entry at least.
    s_init: the paper's -3200 never moves in a training of a few thousand steps; -8 to -4 do.
    finalize: when the threshold becomes a support, a step or a fraction of training; None: 0.75 with a density, so that
        what the cut leaves is trained, else 1.0, as published.
    """
    if finalize is None:
        finalize = 1.0 if density is None else 0.75
    return Learned(name="str", density=density, gate=SoftThreshold(s_init), finalize=finalize)
