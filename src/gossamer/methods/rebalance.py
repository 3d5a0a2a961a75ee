"""Rebalance: RigL whose growth goes to the layers that pass on too little gradient. An experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..method import Init, Method, Zero
from ..topology import Allocation, Clock, DropGrow, Schedule, gain_below, scores
from ._fractions import cosine
from ._registry import named


@named(
    "rebalance",
    needs="dense gradient every ΔT steps",
    source="Lee et al. 2020 (1906.06307), named there as future work; no published method",
)
def rebalance(
    density: float,
    fraction: float | Schedule = 0.3,
    every: int | float = 100,
    stop: int | float = 0.75,
    target: float = 1.0,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    init: Init | None = None,
) -> Method:
    """Rebalance: RigL, with more growth in layers whose weights shrink gradients. An experiment.

    Every ΔT steps, instead of an optimizer step: layer l, with n_l active weights and b_l = ||W_l||^2 / outputs before
    anything is dropped, drops the floor(phi n_l) smallest |w|. A layer left with fewer than max(inputs, outputs) first
    regrows up to that; of all else that was dropped it grows the share max(0, -log(b_l / target)) over the sum of
    these, always where |g| is largest. b_l is what a layer multiplies the expected squared norm of a white gradient by.
    If no layer is below the target each regrows what it dropped: RigL.

    fraction, every, stop, allocation: as in `rigl`. target: the gain b that a layer should have; 2 for ReLU nets
        without normalisation, 1 with.
    init: as in `rigl`; its counts are those that training starts with.

    Deviations: this is a reading of a proposal, with no procedure to follow. Gains come from the weights alone, not
    from the gradients of a batch; they leave out what activation functions and normalisation do. New weights start at
    0, so a layer's gain follows only as they train. Each layer keeps at least one entry.
    """
    return Method(
        name="rebalance",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(scores.magnitude, scores.gradient, cosine(fraction, end=stop), quota=gain_below(target)),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(),
        scope="global",
        at="replace",
    )
