"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..method import Method, Zero
from ..topology import Allocation, Clock, DropGrow, Linear, Schedule, scores
from ._registry import named


@named("set", needs="nothing", source="Mocanu et al. 2018 (1707.04780)")
def set_(
    density: float,
    fraction: float | Schedule = 0.3,
    every: int | float = 100,
    stop: int | float = 1.0,
    split_signs: bool = True,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    newborn: Literal["neutral", "zero"] = "neutral",
) -> Method:
    """SET: drops the weights closest to zero and grows as many at random positions.

    fraction: zeta, the share of active weights dropped per rewiring. A number decays linearly to 0 at the end of
        training, as in the seed paper's comparison; pass `Constant(0.3)` for the original's constant fraction.
    every: steps between rewirings (the original: one epoch). stop: no rewiring from here on; a whole number is a
        step, a fraction is of training.
    split_signs: drop zeta of the positive and zeta of the negative weights (the original), not of all by |w|.
    newborn: optimizer slots of new weights, "neutral" or "zero"; their value is 0.

    Rewiring follows the optimizer step; just-dropped positions may be grown again. Deviations: counts are exact
    (the reference drops one more per sign); new weights are 0, as in its Keras code (its NumPy code draws
    N(0, 0.1^2)).
    """
    schedule = Linear(fraction) if isinstance(fraction, int | float) else fraction
    return Method(
        name="set",
        density=density,
        allocation=allocation,
        init=scores.random,
        rule=DropGrow(scores.signed_magnitude if split_signs else scores.magnitude, scores.random, schedule),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(newborn=newborn),
    )
