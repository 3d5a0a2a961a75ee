"""RigL: drop the smallest weights, grow where the gradient is largest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..method import Init, Method, Zero
from ..topology import Allocation, Clock, DropGrow, Schedule, Structure, Unstructured, scores
from ._fractions import cosine
from ._registry import named


@named("rigl", needs="dense gradient every ΔT steps", source="Evci et al. 2020 (1911.11134), Algorithm 1")
def rigl(
    density: float,
    fraction: float | Schedule = 0.3,
    every: int | float = 100,
    stop: int | float = 0.75,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    scope: Literal["layer", "global"] = "layer",
    newborn: Literal["neutral", "zero"] = "neutral",
    grace: int | float = 0,
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """RigL: drops the smallest active weights and grows those with the largest gradient.

    Every ΔT steps, instead of an optimizer step: drop the k = floor(phi*n) smallest |w| of the n active ones, grow
    the k largest |g| among all others; phi follows a cosine from alpha to 0 at T_end.

    fraction: alpha; a number decays by cosine, a Schedule is taken as it is.
    every: ΔT, optimizer steps; multiply it for small batches. stop: T_end, a step or a fraction of training.
    allocation: "erk" or "uniform" (the paper's uniform keeps the first layer dense: use targets for that).
    scope: "global" lets all weights compete, in dropping and in growing; each keeps at least one entry.
    newborn: optimizer slots of new weights, "neutral" or "zero" (the paper's; a jump of 3.16 lr under Adam).
    grace: new weights are not dropped before this age, in steps or as a fraction of training; 0 in the paper.
    structure: which sets are allowed, e.g. `Block(16)` or `Channels()` of `gossamer.topology`; None: any.
    init: the first support (None: at random), e.g. `foresight.snip(loader)`, whose counts then stand, not the
        allocation's.

    The growth step is consumed: no parameter moves, the clock and learning-rate schedule advance; its gradient is
    dense, so a norm clip before `optimizer.step()` sees the dense norm. Just-dropped positions may grow again and
    then keep value and slots; new ones start at 0. First at ΔT, last before T_end.
    """
    clock = Clock(every=every, stop=stop)
    schedule = cosine(fraction, end=stop)
    return Method(
        name="rigl",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(scores.magnitude, scores.gradient, schedule, grace=grace),
        clock=clock,
        inactive=Zero(newborn=newborn),
        structure=structure or Unstructured(),
        scope=scope,
        at="replace",
    )


@named("rigl-itop", needs="dense gradient every ΔT steps", source="Liu et al. 2021 (2102.02887), ITOP")
def rigl_itop(
    density: float,
    fraction: float | Schedule = 0.5,
    every: int | float = 4000,
    stop: int | float = 1.0,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    newborn: Literal["neutral", "zero"] = "neutral",
    grace: int | float = 0,
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """RigL-ITOP: RigL that drops much and waits long, so that each new weight is reliably explored.

    fraction: alpha; a number decays by cosine to .005 at the end of training. every: ΔT, optimizer steps, long
        against RigL's 100. stop: no rewiring from here on. newborn, grace: as in `rigl`.
    structure: as in `rigl`.
    init: as in `rigl`.

    Unlike RigL it takes the update first and then rewires: drops by the new |w|, grows by |g| of the same batch.
    Deviations: counts are exact; the authors' code also drops what ties with the threshold.
    """
    schedule = cosine(fraction, 0.005)
    return Method(
        name="rigl-itop",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(scores.magnitude, scores.gradient, schedule, grace=grace),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(newborn=newborn),
        structure=structure or Unstructured(),
    )
