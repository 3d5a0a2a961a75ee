"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import check_flag
from ..method import Init, Method, Zero
from ..topology import Allocation, Clock, DropGrow, Linear, Schedule, Structure, Unstructured, scores
from ._fractions import cosine
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
    newborn_std: float = 0.0,
    grace: int | float = 0,
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """SET: drops the weights closest to zero and grows as many at random positions.

    fraction: zeta, the share of active weights dropped per rewiring. A number decays linearly to 0 at the end of
        training, as in the seed paper's comparison; pass `Constant(0.3)` for the original's constant fraction.
    every: steps between rewirings (the original: one epoch). stop: no rewiring from here on; a whole number is a
        step, a fraction is of training.
    split_signs: drop zeta of the positive and zeta of the negative weights (the original), not of all by |w|.
    newborn: optimizer slots of new weights, "neutral" or "zero". newborn_std: their values are drawn from
        N(0, newborn_std^2); 0.1 in the reference's NumPy code, 0 in its Keras code and here.
    allocation: "erk" at a density that is given; the original has "er", its density following from epsilon = 20.
    grace: new weights are not dropped before this age, in steps or as a fraction of training; 0 in the paper.
    structure: which sets are allowed, e.g. `Block(16)` of `gossamer.topology`, which needs
        split_signs=False; None: any.
    init: the first support (None: at random), e.g. `foresight.snip(loader)`, whose counts then stand, not the
        allocation's.

    Rewiring follows the optimizer step; just-dropped positions may be grown again. Deviations: counts are exact
    (the reference drops one more per sign).
    """
    check_flag("split_signs", split_signs)
    schedule = Linear(fraction) if isinstance(fraction, int | float) else fraction
    drop = scores.signed_magnitude if split_signs else scores.magnitude
    return Method(
        name="set",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(drop, scores.random, schedule, grace=grace),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(newborn=newborn, newborn_std=newborn_std),
        structure=structure or Unstructured(),
    )


@named("set-itop", needs="nothing", source="Liu et al. 2021 (2102.02887), ITOP")
def set_itop(
    density: float,
    fraction: float | Schedule = 0.5,
    every: int | float = 1500,
    stop: int | float = 1.0,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    newborn: Literal["neutral", "zero"] = "neutral",
    grace: int | float = 0,
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """SET-ITOP: SET that drops much and waits long, so that each new weight is reliably explored.

    fraction: zeta; a number decays by cosine to .005 at the end of training. every: steps between rewirings, long
        against the 100 of SET and RigL. stop: no rewiring from here on. newborn, grace: as in `set_`.
    structure: which sets are allowed, e.g. `Block(16)` of `gossamer.topology`; None: any.
    init: as in `set_`.

    Weights are dropped by |w|, both signs together. Deviations: counts are exact; in the authors' code random growth
    is a coin toss per position and ties at the threshold are dropped as well.
    """
    schedule = cosine(fraction, 0.005)
    return Method(
        name="set-itop",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(scores.magnitude, scores.random, schedule, grace=grace),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(newborn=newborn),
        structure=structure or Unstructured(),
    )
