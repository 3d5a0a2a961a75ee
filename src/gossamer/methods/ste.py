"""Straight-through methods: the largest weights take part, all are trained by the dense gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import ConfigError
from ..method import Init, Live, Method
from ..topology import NM, Allocation, Clock, Select, Structure, Unstructured, check_density, scores
from ._registry import named


@named(
    "ste",
    needs="dense trainable weights (4 bytes each), dense gradient every step",
    source="Wortsman et al. 2019 (1906.00586), discovering neural wirings; Bengio et al. 2013 (1308.3432)",
)
def ste(
    density: float,
    every: int | float = 1,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    scope: Literal["layer", "global"] = "layer",
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """STE (DNW): the largest weights take part, all weights are trained as if they did.

    m = top d of |w|, theta = m w, and dl/dw := dl/dtheta at every position (straight through the mask). This is
    `rewire` without exploitation.

    every: steps between two choices of the support. allocation: "uniform" in the sources. scope: "layer" or "global".
    structure: which sets are allowed, e.g. `NM(2, 4)` or `Block(16)` of `gossamer.topology`; None: any.
    init: the first support (None: the largest |w|), as in `rewire`: with every=1 it lasts one step, and what stays
        are its counts of layers.
    """
    return Method(
        name="ste",
        density=density,
        allocation=allocation,
        init=scores.magnitude if init is None else init,
        rule=Select(scores.magnitude),
        clock=Clock(every=every),
        inactive=Live(),
        scope=scope,
        structure=structure or Unstructured(),
    )


@named(
    "sr-ste",
    needs="dense trainable weights (4 bytes each), dense gradient every step",
    source="Zhou et al. 2021 (2102.04010), equation 9",
)
def sr_ste(
    density: float,
    decay: float = 2e-4,
    group: int | None = 4,
    every: int | float = 1,
    allocation: Allocation | str | Mapping[str, Any] = "uniform",
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """SR-STE: straight-through training of N:M sparse weights with a decay on those that are left out.

    As `ste`, but lambda (1 - m) w is added to the gradient, so that weights which are left out shrink and the support
    settles. m keeps the N largest of every M consecutive inputs.

    decay: lambda; inside the gradient, so scaled by the learning rate and seen by momentum. Adam and its like normalise
        it together with the gradient: tune it there.
    group: M; N = density M must be a whole number (2:4 at density .5). None: no groups, the largest of each layer.
    every: steps between two choices of the support. allocation: with groups "uniform" is the only one that fits.
    init: the first support (None: the largest |w|). With every=1 it lasts one step. With groups scores must rank
        within each weight:
        ``foresight.synflow(..., scope="layer")``; then nothing of it stays, else its counts of layers.

    structure: instead of `group`, any other, e.g. `NM(2, 4, transposable=True)` of `gossamer.topology`.

    Deviations: groups run along the inputs at a fixed kernel position (the hardware layout); the authors' code has a
    version with another order. Inputs that do not divide by M are refused.
    """
    return Method(
        name="sr-ste",
        density=density,
        allocation=allocation,
        init=scores.magnitude if init is None else init,
        rule=Select(scores.magnitude),
        clock=Clock(every=every),
        inactive=Live(decay=decay),
        structure=_groups(density, group) if structure is None else structure,
    )


def _groups(density: float, group: int | None) -> Structure:
    if group is None:
        return Unstructured()
    check_density(density)
    if type(group) is not int or group < 1:
        raise ConfigError(f"group={group!r}: this is M, how many inputs form a group, an int >= 1, or None for none")
    n = round(density * group)
    if not 1 <= n <= group or abs(n - density * group) > 1e-9:
        raise ConfigError(
            f"density={density!r} of group={group!r} is {density * group:g} weights, no whole number from 1; use "
            "another group size, e.g. density=0.5 with group=4, or group=None for no groups"
        )
    return NM(n, group)
