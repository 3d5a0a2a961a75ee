"""DeepR: noisy descent on connections of fixed sign; what crosses zero is replaced at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..method import Init, Langevin, Method, Zero
from ..topology import Allocation, Below, Clock, DropGrow, scores
from ._registry import named


@named(
    "deepr", needs="a sign per weight (1 byte), noise on the active weights", source="Bellec et al. 2018 (1711.05136)"
)
def deepr(
    density: float,
    l1: float = 1e-5,
    temperature: float = 1e-5,
    every: int | float = 1,
    stop: int | float = 0.95,
    scope: Literal["layer", "global"] = "layer",
    allocation: Allocation | str | Mapping[str, Any] = "uniform",
    newborn: Literal["neutral", "zero"] = "neutral",
    init: Init | None = None,
) -> Method:
    """DeepR: active weights do noisy descent; those that cross zero are replaced by random new ones.

    Every connection k has a fixed random sign s_k; with theta_k = s_k w_k, after each update of the active ones
    theta <- theta - lr alpha + sqrt(2 lr T) nu, nu ~ N(0, 1). Where theta < 0 the connection becomes inactive, and as
    many random inactive ones become active with theta = 0.

    l1: alpha. temperature: T. every: steps between replacements; stop: none from here on (noise and pull go on).
    scope: "layer" keeps each layer's count; "global" grows anywhere, as the paper does, in proportion to the room.
    newborn: optimizer slots of new weights.
    init: the first support (None: at random), e.g. `foresight.snip(loader)`, whose counts then stand, not the
        allocation's.

    Any optimizer takes the place of plain SGD. Deviations: active weights start at the model's own initial values,
    which give them their signs; just-dropped connections are re-grown only when nothing else is left, and keep their
    value. Each layer keeps at least one entry.
    """
    return Method(
        name="deepr",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(
            scores.sign_flip,
            scores.random,
            threshold=Below(0.0),
            revive=False,
        ),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(newborn=newborn),
        scope=scope,
        action=Langevin(l1, temperature),
    )
