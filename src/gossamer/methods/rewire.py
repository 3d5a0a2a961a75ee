"""The seed paper's method: top-magnitude supports, dense updates, exploitation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..method import Exploit, Init, Live, Method, Reset
from ..topology import Allocation, Clock, Select, Structure, Unstructured, scores
from ._registry import named


@named(
    "rewire",
    needs="dense trainable weights (4 bytes each), dense gradient every step",
    source="Advances in Sparse Neural Model Training, Algorithm 1; Stosic & Stosic 2021 (2105.12920)",
)
def rewire(
    density: float,
    every: int | float = 1,
    scale: float = 1.0,
    scale_on: Literal["gradient", "update"] | None = None,
    exploit: Exploit | None = Reset(1000),  # noqa: B008 - a frozen value
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    scope: Literal["layer", "global"] = "layer",
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """Rewire: the largest weights take part, all weights are trained, inactive ones are reset now and then.

    In symbols, at each step t: p = the top d of |w| (re-chosen every r steps), the rest n; loss and activation
    gradients use p only; the optimizer updates every weight with dl/dw (times s for n); then n is zeroed every
    z-th step (`Reset`), from v*T on (`Fix`), or shrunk by n - beta*n (`Regularize`).

    every: r, steps between two choices of the support; math.inf never changes it.
    scale: s, the share of gradient (SGD) or update (Adam and other normalising optimizers) that n receives.
    scale_on: "gradient" or "update" to decide that by hand.
    exploit: Reset(z), Fix(v), Regularize(beta) or None.
    allocation: how density is shared over weights. The paper keeps d in every layer ("uniform"); the default
        "erk" is safer on nets of unequal layers (a documented deviation).
    scope: "layer", or "global" for one threshold over all weights; each layer keeps at least one entry.
    structure: which sets are allowed, e.g. `NM(2, 4)` or `Block(16)` of `gossamer.topology`; None: any.
    init: the first support (None: the largest |w|), e.g. `foresight.synflow(inputs=(3, 32, 32))`. With every=1 it
        lasts one step: what stays
        are its counts of layers, and with scope="global" not these either.

    Deviations: magnitudes are compared (the print omits |.|); the update is w - gamma*dl/dw (printed with a plus);
    v is a fraction of training; Reset acts when (t+1) % z == 0, so not at the very first step; zeroing acts on
    the weights that were inactive in the step's forward pass, which makes z=1 equal to no rewiring as the paper
    says. Optimizer state of n is kept.
    """
    return Method(
        name="rewire",
        density=density,
        allocation=allocation,
        init=scores.magnitude if init is None else init,
        rule=Select(scores.magnitude),
        clock=Clock(every=every),
        inactive=Live(scale=scale, scale_on=scale_on, exploit=exploit),
        scope=scope,
        structure=structure or Unstructured(),
    )
