"""SNIP, in one round or many: a support found by the gradient of the loss at initialisation, then static."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from .. import foresight
from ..method import Method
from ._registry import named


@named("snip", needs="a gradient before training", source="Lee et al. 2019 (1810.02340)")
def snip(
    density: float,
    batches: int = 1,
    positions: Literal["scores", "random"] = "scores",
    batch_norm: Literal["train", "eval"] = "train",
    allow_collapse: bool = False,
    data: Iterable[Any] | None = None,
) -> Method:
    """SNIP: keeps the weights whose removal would change the loss most at initialisation, then trains them.

    In symbols: keep the top d of |w dL/dw| over all layers together, the gradient averaged over the batches.

    batches: of training examples; the authors take one of 100. positions: "random" keeps the counts of layers only.
    batch_norm: "train" scores with the statistics of the batch, "eval" is the authors'.
    allow_collapse: go on where no path through the network is left.
    data: iterable of (inputs, target); the command line takes training examples. For other losses and batches use
        ``static(density, init=foresight.snip(...))``.
    """
    init = foresight.snip(data, batches, positions, batch_norm, allow_collapse=allow_collapse)
    return Method(name="snip", density=density, init=init)


@named("iter-snip", needs="gradients before training", source="de Jorge et al. 2021 (2006.09081), section 4.3")
def iter_snip(
    density: float,
    rounds: int = 60,
    batches: int = 1,
    positions: Literal["scores", "random"] = "scores",
    batch_norm: Literal["train", "eval"] = "train",
    allow_collapse: bool = False,
    data: Iterable[Any] | None = None,
) -> Method:
    """Iterative SNIP: SNIP that removes a little per round and scores again what is left, then trains that.

    In round t of T: of the weights that are left keep the N d^(t/T) with the largest |w dL/dw|, the gradient taken at
    the network that is left. What is removed stays removed.

    rounds: T. batches: of training examples per round, other ones each round.
    positions, batch_norm, allow_collapse, data: as in `snip`.
    """
    init = foresight.iter_snip(data, rounds, batches, positions, batch_norm, allow_collapse=allow_collapse)
    return Method(name="iter-snip", density=density, init=init)
