"""FORCE: iterative SNIP whose removed weights may come back, then static."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from .. import foresight
from ..method import Method
from ..topology import Allocation
from ._registry import named


@named("force", needs="gradients before training", source="de Jorge et al. 2021 (2006.09081), algorithm 1")
def force(
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
    """FORCE: removes weights round by round at initialisation, may take them back, then trains what is left.

    In round t of T: with g = dL/dw of every weight at the sparse network of the round before, keep the N d^(t/T)
    largest |w_0 g| of *all* weights, w_0 their initial values. The first round is SNIP.

    rounds: T. batches: of training examples per round, other ones each round; the authors take 1 (CIFAR-10) to 40
        (ImageNet) of 128 examples.
    The other arguments are as in `snip`.

    Deviations: the loss is the cross-entropy (the authors' code takes the negative log-likelihood of raw logits);
    counts are exact.
    """
    init = foresight.force(data, rounds, batches, positions, batch_norm, scope, allow_collapse, inputs=inputs)
    return Method(name="force", density=density, allocation=allocation, init=init)
