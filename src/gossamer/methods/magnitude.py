"""Magnitude at initialisation: the largest initial weights of the whole network, then static."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .. import foresight
from ..method import Method
from ..topology import Allocation
from ._registry import named


@named("magnitude", needs="nothing", source="baseline; named so in Frankle et al. 2021 (2009.08576)")
def magnitude(
    density: float,
    positions: Literal["scores", "random"] = "scores",
    scope: Literal["global", "layer"] = "global",
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    allow_collapse: bool = False,
    inputs: tuple[int, ...] | foresight.Ones | None = None,
) -> Method:
    """Magnitude at initialisation: keeps the largest initial weights of the whole network, then trains them.

    In symbols: keep the top d of |w| over all layers together. Initial weights are the smaller the more inputs a unit
    has, so wide layers are emptied first.

    positions: "random" keeps the counts of layers only.
    scope: "global" ranks all weights together, "layer" within each; only then does `allocation` count, which shares
        out the density. allow_collapse: go on where no path through the network is left.
    inputs: shape of one example without the batch dimension, to tell whether the network is cut; whole numbers:
        ``foresight.Ones((7,), tokens=True)``. The command line fills it in.
    """
    init = foresight.magnitude(inputs, positions, scope, allow_collapse)
    return Method(name="magnitude", density=density, allocation=allocation, init=init)
