"""Top-KAST: the largest weights take part, a larger set is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import check_number
from ..method import Init, Live, Method
from ..topology import Allocation, Clock, Schedule, Select, Structure, Unstructured, check_density, scores
from ._registry import named


@named(
    "topkast",
    needs="dense trainable weights (4 bytes each), gradient of the next in rank every step",
    source="Jayakumar et al. 2020 (2106.03517)",
)
def topkast(
    density: float,
    backward: float | Schedule | None = None,
    every: int | float = 1,
    stop: int | float = math.inf,
    decay: float = 1e-4,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    scope: Literal["layer", "global"] = "layer",
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """Top-KAST: the largest weights take part; those and the next in rank are trained, the rest is left alone.

    With A the top D of |w| and B the top D + M: the forward pass uses w on A and zero elsewhere; only weights in B are
    updated. The exploration regulariser decay w^2 / 2 on A and decay w^2 / (2 D) on B without A is in the gradient, so
    that a weight in reserve must earn its place.

    backward: D + M, the density of B; a Schedule may let B shrink to A late in training. None is twice the density, at
        most 1: our choice, the paper tries several.
    every: steps between two choices of A and B. stop: none from here on; math.inf is never.
    decay: of the regulariser, instead of the optimizer's weight decay; 0 leaves it out.
    allocation: the paper keeps D in every layer ("uniform"); "erk" is safer on nets of unequal layers.
    scope: "layer", or "global" for one threshold over all weights.
    structure: which sets are allowed, e.g. `NM(2, 4)` or `Block(16)` of `gossamer.topology`; None: any.
    init: the first A (None: the largest |w|), e.g. `foresight.synflow(inputs=(3, 32, 32))`. With every=1 it lasts
        one step: what stays
        are its counts of layers, and with scope="global" not these either.

    With M = 1 - D and decay 0 this is `ste`. What the optimizer itself would do to weights outside B (momentum, weight
    decay) is undone. Deviation: the regulariser is quadratic, as in common implementations; |w| is the other reading.
    """
    check_density(density)
    check_number("decay", decay, "lambda, the strength of the exploration regulariser")
    reach = min(1.0, 2 * density) if backward is None else backward
    return Method(
        name="topkast",
        density=density,
        allocation=allocation,
        init=scores.magnitude if init is None else init,
        rule=Select(scores.magnitude),
        clock=Clock(every=every, stop=stop),
        inactive=Live(reach=reach, decay=decay / density, active_decay=decay),
        scope=scope,
        structure=structure or Unstructured(),
    )
