"""Dense to sparse: one-shot magnitude pruning, gradual magnitude pruning, GraNet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import ConfigError
from ..method import Init, Method, Zero
from ..topology import (
    Allocation,
    Clock,
    Cubic,
    DropGrow,
    Piecewise,
    PruneThen,
    Schedule,
    Select,
    Structure,
    Unstructured,
    check_density,
    scores,
)
from ._fractions import cosine
from ._registry import named


@named("one-shot", needs="a dense network until it prunes", source="Han et al. 2015 (1506.02626), magnitude pruning")
def one_shot(
    density: float,
    at: int | float = 0.5,
    scope: Literal["layer", "global"] = "global",
    allocation: Allocation | str | Mapping[str, Any] = "uniform",
    structure: Structure | None = None,
) -> Method:
    """One-shot magnitude pruning: train dense, keep the largest weights once, go on training those.

    at: when, a step or a fraction of training; 0 is before training. scope: one threshold over all weights, or
        "layer": the largest of each, as many as the allocation says.
    structure: which sets are allowed, e.g. `NM(2, 4)` with scope="layer"; None: any.

    Learning-rate schedule and optimizer state go on; to start the schedule again see `lottery`. Each layer keeps at
    least one entry.
    """
    check_density(density)
    dense_first = Piecewise(((0 if isinstance(at, int) else 0.0, 1.0), (at, density))) if at != 0 else density
    return Method(
        name="one-shot",
        density=dense_first,
        allocation=allocation,
        init=scores.magnitude,
        rule=Select(scores.magnitude),
        clock=Clock(every=math.inf, also=(at,)),
        scope=scope,
        structure=structure or Unstructured(),
    )


@named("gmp", needs="a dense network at first", source="Zhu and Gupta 2017 (1710.01878), equation 1")
def gmp(
    density: float,
    every: int | float = 100,
    start: int | float = 0.0,
    stop: int | float = 0.75,
    initial: float = 1.0,
    scope: Literal["layer", "global"] = "layer",
    allocation: Allocation | str | Mapping[str, Any] = "uniform",
    structure: Structure | None = None,
) -> Method:
    """GMP (gradual magnitude pruning): a dense network loses its smallest weights along a cubic schedule.

    density(t) = d_f + (d_i - d_f) (1 - (t - t_0) / (t_end - t_0))^3; every ΔT steps only the largest |w| are kept.

    every: ΔT. start, stop: t_0 and t_end; the final density is reached at `stop` exactly, and kept. initial: d_i.
    scope: "layer" prunes every layer to its own count, "global" by one threshold.
    structure: which sets are allowed, e.g. `Block(16)`; None: any. N:M has one density only: see `one_shot`.

    Pruned weights are zero, get no gradient and stay pruned: supports are nested. Each layer keeps at least one entry.
    """
    check_density(density)
    if check_density(initial) < density:
        raise ConfigError(f"initial={initial!r}: pruning starts from this density and ends at {density!r}; swap them")
    return Method(
        name="gmp",
        density=Cubic(initial, density, start, stop),
        allocation=allocation,
        init=scores.magnitude,
        rule=Select(scores.magnitude),
        clock=Clock(every=every, start=start, stop=stop, also=(stop,)),
        scope=scope,
        structure=structure or Unstructured(),
    )


@named("granet", needs="dense gradient every ΔT steps", source="Liu et al. 2021 (2106.10404), GraNet")
def granet(
    density: float,
    initial: float = 0.5,
    fraction: float | Schedule = 0.5,
    every: int | float = 100,
    prune_until: int | float = 0.7,
    stop: int | float = 1.0,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    newborn: Literal["neutral", "zero"] = "neutral",
    init: Init | None = None,
) -> Method:
    """GraNet: prunes gradually over all layers, and each time regenerates a share of every layer by gradient.

    Every ΔT steps, after the update: (1) keep the largest |w| over all layers, as many as the cubic schedule of `gmp`
    says; (2) in each layer drop the floor(phi n) smallest of what is left and grow as many where |g| is largest.

    initial: density at first, d_i, raised to `density` if below; 1.0 is dense-to-sparse. fraction: phi, a number
        decays by cosine to .005.
    every: ΔT (the paper: 1000 to 4000). prune_until: end of pruning; regeneration goes on until `stop`.
    newborn: optimizer slots of new weights.
    init: the first support (None: at random), as in `rigl`, at the density `initial`; refused where that is 1.

    Deviations: the final density is reached exactly (the authors' code stops one step short of it); phi n is rounded
    down, counts are exact, each layer keeps at least one entry.
    """
    schedule = cosine(fraction, 0.005)
    first, start = max(check_density(initial), check_density(density)), 0 if isinstance(prune_until, int) else 0.0
    return Method(
        name="granet",
        density=Cubic(first, density, start, prune_until),
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=PruneThen(DropGrow(scores.magnitude, scores.gradient, schedule)),
        clock=Clock(every=every, stop=stop, also=(prune_until,)),
        inactive=Zero(newborn=newborn),
        scope="global",
    )
