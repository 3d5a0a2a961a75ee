"""SNIP, in one round or many: a support found by the gradient of the loss at initialisation, then static."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from .. import foresight
from ..method import Method
from ..topology import Allocation
from ._registry import named


@named("snip", needs="a gradient before training", source="Lee et al. 2019 (1810.02340)")
def snip(
    density: float,
    batches: int = 1,
    positions: Literal["scores", "random"] = "scores",
    batch_norm: Literal["train", "eval"] = "train",
    scope: Literal["global", "layer"] = "global",
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    allow_collapse: bool = False,
    data: Iterable[Any] | foresight.Examples | None = None,
    inputs: tuple[int, ...] | foresight.Ones | None = None,
) -> Method:
    """SNIP: keeps the weights whose removal would change the loss most at initialisation, then trains them.

    In symbols: keep the top d of |w dL/dw| over all layers together, the gradient averaged over the batches.

    batches: of training examples; the authors take one of 100. positions: "random" keeps the counts of layers only.
    batch_norm: "train" scores with the statistics of the batch, "eval" is the authors'.
    scope: "global" ranks all weights together, "layer" within each; only then does `allocation` count, which shares
        out the density. allow_collapse: go on where no path through the network is left.
    data: iterable of (inputs, target), or ``foresight.Examples(loader, forward=..., loss=...)`` for other batches and
        losses; the command line takes training examples.
    inputs: shape of one example, without the batch dimension, to tell whether the network is cut; whole numbers:
        ``foresight.Ones((7,), tokens=True)``. The command line fills it in.
    """
    init = foresight.snip(data, batches, positions, batch_norm, scope, allow_collapse, inputs=inputs)
    return Method(name="snip", density=density, allocation=allocation, init=init)


@named("iter-snip", needs="gradients before training", source="de Jorge et al. 2021 (2006.09081), section 4.3")
def iter_snip(
    density: float,
    rounds: int = 60,
    batches: int = 1,
    positions: Literal["scores", "random"] = "scores",
    batch_norm: Literal["train", "eval"] = "train",
    scope: Literal["global", "layer"] = "global",
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    allow_collapse: bool = False,
    data: Iterable[Any] | foresight.Examples | None = None,
    inputs: tuple[int, ...] | foresight.Ones | None = None,
) -> Method:
    """Iterative SNIP: SNIP that removes a little per round and scores again what is left, then trains that.

    In round t of T: of the weights that are left keep the N d^(t/T) with the largest |w dL/dw|, the gradient taken at
    the network that is left. What is removed stays removed.

    rounds: T. batches: of training examples per round, other ones each round.
    The other arguments are as in `snip`.
    """
    init = foresight.iter_snip(data, rounds, batches, positions, batch_norm, scope, allow_collapse, inputs=inputs)
    return Method(name="iter-snip", density=density, allocation=allocation, init=init)
