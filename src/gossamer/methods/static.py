"""Static sparse training: the support is drawn once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..method import Init, Method
from ..topology import Allocation, FanIn, Static, Structure, Unstructured, equal_per_filter, resolve_allocation, scores
from ._registry import named


@named(
    "static",
    needs="nothing",
    source="baseline; allocations: Mocanu et al. 2018, Evci et al. 2020 (1911.11134)",
)
def static(
    density: float,
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    init: Init | None = None,
    structure: Structure | None = None,
) -> Method:
    """Static: a support found once, at random unless told otherwise, and never changed.

    allocation: "erk", "er", "uniform", "equal_per_layer", "equal_per_filter", or a mapping of name globs to
        densities or counts. With "equal_per_filter" every filter of a layer gets the same number of weights (to
        within one) and positions are random within each filter. "equal_per_layer:reference" and its like count as
        the code of DCTpS does.
    init: the first support (None: at random), e.g. `foresight.snip(loader)`, whose counts then stand, not the
        allocation's.
    structure: which sets are allowed: `FanIn(exact=True)` (in text fanin:true), the same number for every filter of a
        layer; `Complementary()`, filters that share out the inputs; `NM(2, 4)`; `Block(16)`; `Channels()`. None: any,
        and `FanIn()` with "equal_per_filter". Counts are rounded to what it can have.

    The floor every dynamic method must beat. Kept weights start at the model's own initial values, unscaled.
    """
    chosen = resolve_allocation(allocation)
    if structure is None:
        structure = FanIn() if chosen is equal_per_filter else Unstructured()
    return Method(
        name="static",
        density=density,
        allocation=chosen,
        init=scores.random if init is None else init,
        rule=Static(),
        structure=structure,
    )
