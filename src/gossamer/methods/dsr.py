"""DSR: one threshold for all layers, which adapts; parameters go where weights survive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import check_flag
from ..method import Init, Method, Zero
from ..topology import Adaptive, Allocation, Clock, DropGrow, own, scores, survivors
from ._registry import named


@named("dsr", needs="nothing", source="Mostafa and Wang 2019 (1902.05967), Algorithm 1")
def dsr(
    density: float,
    target: int | float = 0.1,
    threshold: float = 1e-3,
    tolerance: float = 0.1,
    every: int | float = 100,
    double_at: tuple[float, ...] = (0.25, 0.5, 0.75),
    stop: int | float = 0.95,
    reallocate: bool = True,
    allocation: Allocation | str | Mapping[str, Any] = "uniform",
    newborn: Literal["neutral", "zero"] = "neutral",
    grace: int | float = 0,
    init: Init | None = None,
) -> Method:
    """DSR: drops below one adaptive threshold for all layers; layers regrow in proportion to what survived.

    At each reallocation: drop every active |w| < H, in all layers; with K dropped in all, H halves if
    K > (1 + delta) N and doubles if K < (1 - delta) N; layer l grows K R_l / sum R at random, R_l being what survived
    there, not at positions just dropped.

    target: N, the number to drop per reallocation, an int, or a share of all active weights, a float. 0.1 is our
        choice; the paper gives numbers per network (20,000 of 293,000 for WRN-28-2, 400,000 of 5.1 million for
        ResNet-50: 7 to 8 %).
    threshold: H at first. tolerance: delta.
    every: steps between reallocations; double_at: times at which that period doubles; stop: none from here on.
    reallocate: False lets each layer regrow what it dropped; the control for free reallocation.
    newborn: optimizer slots of new weights; grace: as in `set_`.
    init: the first support (None: at random), as in `rigl`; its counts are those that training starts with.

    Deviations: growth is exact (largest remainders; what a full layer cannot take goes to the others), each layer
    keeps at least one entry, slots of dropped weights are cleared.
    """
    check_flag("reallocate", reallocate)
    return Method(
        name="dsr",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(
            scores.magnitude,
            scores.random,
            threshold=Adaptive(target, threshold, tolerance),
            quota=survivors if reallocate else own,
            grace=grace,
            revive=False,
        ),
        clock=Clock(every=every, stop=stop, double_at=double_at),
        inactive=Zero(newborn=newborn),
        scope="global",
    )
