"""SynFlow: a support that keeps the flow through the network, found without data, then static."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .. import foresight
from ..method import Method
from ..topology import Allocation
from ._registry import named


@named("synflow", needs="gradients in float64 before training", source="Tanaka et al. 2020 (2006.05467), algorithm 1")
def synflow(
    density: float,
    rounds: int = 100,
    positions: Literal["scores", "random"] = "scores",
    scope: Literal["global", "layer"] = "global",
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    allow_collapse: bool = False,
    inputs: tuple[int, ...] | foresight.Ones | None = None,
    tokens: bool = False,
) -> Method:
    """SynFlow: keeps the weights that the flow through the network needs, found without data, then trains them.

    With R = 1^T f(1), f the network of absolute weights without biases, normalisation and activation functions: in
    round t of T keep the N d^(t/T) largest |w dR/dw| of the weights that are left, over all layers together.

    rounds: T; few rounds may leave layers empty. positions: "random" keeps the counts of layers only.
    scope: "global" ranks all weights together, "layer" within each; only then does `allocation` count, which shares
        out the density. allow_collapse: go on where no path through the network is left.
    inputs: shape of one example without the batch dimension, e.g. (3, 32, 32). tokens: the model takes whole numbers.
        The command line fills in both.

    Deviations: float64, where the authors' float32 overflows on deep networks; batch norm is passed by, where the
    authors' keeps its running statistics.
    """
    init = foresight.synflow(inputs, rounds, positions, scope, allow_collapse, tokens=tokens)
    return Method(name="synflow", density=density, allocation=allocation, init=init)
