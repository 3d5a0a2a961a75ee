"""Magnitude at initialisation: the largest initial weights of the whole network, then static."""

from __future__ import annotations

from typing import Literal

from .. import foresight
from ..method import Method
from ._registry import named


@named("magnitude", needs="nothing", source="baseline; named so in Frankle et al. 2021 (2009.08576)")
def magnitude(
    density: float,
    positions: Literal["scores", "random"] = "scores",
    allow_collapse: bool = False,
    inputs: tuple[int, ...] | None = None,
) -> Method:
    """Magnitude at initialisation: keeps the largest initial weights of the whole network, then trains them.

    In symbols: keep the top d of |w| over all layers together. Initial weights are the smaller the more inputs a unit
    has, so wide layers are emptied first.

    positions: "random" keeps the counts of layers only.
    allow_collapse: go on where no path through the network is left.
    inputs: shape of one example, to tell whether shortcuts lead around an empty layer; the command line fills it in.
    """
    init = foresight.magnitude(inputs, positions, allow_collapse=allow_collapse)
    return Method(name="magnitude", density=density, init=init)
