"""SNFS, sparse momentum: momentum says which layers grow, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import check_choice, check_flag
from ..method import Init, Method, Zero
from ..topology import Allocation, Clock, DropGrow, Schedule, mean_momentum, own, scores
from ._fractions import cosine
from ._registry import named


@named(
    "snfs",
    needs="dense gradient every step, dense momentum",
    source="Dettmers and Zettlemoyer 2019 (1907.04840), sparse momentum",
)
def snfs(
    density: float,
    fraction: float | Schedule = 0.5,
    every: int | float = 100,
    stop: int | float = 1.0,
    drop: Literal["magnitude", "momentum"] = "magnitude",
    grow: Literal["momentum", "random"] = "momentum",
    reallocate: bool = True,
    allocation: Allocation | str | Mapping[str, Any] = "uniform",
    grace: int | float = 0,
    init: Init | None = None,
) -> Method:
    """SNFS (sparse momentum): drops the smallest weights; momentum says which layers regrow them, and where.

    With M the optimizer's momentum, which sees the dense gradient at every step (under Adam m / (sqrt(v) + 1e-8)):
    each layer drops floor(p n_l) of its smallest |w|; layer l regrows the share q_l = mean |M| of its active weights
    over the sum of all layers' means; it grows where |M| is largest.

    fraction: p; a number decays by cosine to .005. The authors' own sweeps favour .2 over their default .5.
    every: steps between rewirings (the paper: one epoch). stop: none from here on.
    drop, grow: "momentum" as drop score and "random" growth are the controls of the blog that describes SNFS.
    reallocate: False lets each layer regrow what it dropped; the control for free reallocation.
    grace: as in `set_`.
    init: the first support (None: at random), as in `rigl`; its counts are those that training starts with.

    Deviations: counts are exact at every rewiring (the authors' total drifts and is repaid later), a full layer's
    excess goes to the others in proportion to q, and the authors' exception for nearly dense layers is left out.
    Refused for optimizers that keep no momentum.
    """
    schedule = cosine(fraction, 0.005)
    check_flag("reallocate", reallocate)
    check_choice("drop", drop, ("magnitude", "momentum"))
    check_choice("grow", grow, ("momentum", "random"))
    drop_score, grow_score = getattr(scores, drop), getattr(scores, grow)
    return Method(
        name="snfs",
        density=density,
        allocation=allocation,
        init=scores.random if init is None else init,
        rule=DropGrow(drop_score, grow_score, schedule, quota=mean_momentum if reallocate else own, grace=grace),
        clock=Clock(every=every, stop=stop),
        inactive=Zero(slots="keep"),
        scope="global",
    )
