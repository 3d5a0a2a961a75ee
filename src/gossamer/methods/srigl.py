"""SRigL: RigL with a constant fan-in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..method import Init, Method, Zero
from ..topology import Allocation, Clock, DropGrow, FanIn, FanInDropGrow, Schedule, scores
from ._fractions import cosine
from ._registry import named


@named("srigl", needs="dense gradient every ΔT steps", source="Lasby et al. 2023 (2305.02299)")
def srigl(
    density: float,
    fraction: float | Schedule = 0.3,
    every: int | float = 100,
    stop: int | float = 0.75,
    min_salient: float | int = 0.3,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    newborn: Literal["neutral", "zero"] = "neutral",
    init: Init | None = None,
) -> Method:
    """SRigL: RigL in which all active neurons of a layer have the same number of inputs; idle ones are removed.

    Drops by |w| over the layer, removes neurons with too few salient inputs, and grows by |g| neuron by neuron until
    each has the constant fan-in; see `FanInDropGrow` for the steps.

    fraction, every, stop: alpha, ΔT, T_end as in `rigl`. min_salient: gamma_sal, .3 for conv nets and .95 for vision
        transformers in the paper; 0 removes none but neurons without any salient input.
    allocation: "erk" for conv nets, "uniform" for transformers in the paper; counts are then rounded so that every
        neuron can have the same number. newborn: optimizer slots of new weights.
    init: the first support (None: at random), as in `rigl`; its counts are rounded in the same way.

    The growth step is consumed as in `rigl`. A layer has at most its count: fan-in times active neurons, rounded down.
    """
    schedule = cosine(fraction, end=stop)
    return Method(
        name="srigl",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=FanInDropGrow(DropGrow(scores.magnitude, scores.gradient, schedule), min_salient),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(newborn=newborn),
        structure=FanIn(exact=True),
        at="replace",
    )
