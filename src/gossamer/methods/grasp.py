"""GraSP: a support that keeps the gradient up at initialisation, then static."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from .. import foresight
from ..method import Method
from ..topology import Allocation
from ._registry import named


@named("grasp", needs="a product with the Hessian before training", source="Wang et al. 2020 (2002.07376), algorithm 1")
def grasp(
    density: float,
    batches: int = 1,
    positions: Literal["scores", "random"] = "scores",
    temperature: float = 200.0,
    batch_norm: Literal["train", "eval"] = "train",
    scope: Literal["global", "layer"] = "global",
    allocation: Allocation | str | Mapping[str, Any] = "erk",
    allow_collapse: bool = False,
    data: Iterable[Any] | foresight.Examples | None = None,
    inputs: tuple[int, ...] | foresight.Ones | None = None,
) -> Method:
    """GraSP: keeps the weights whose removal would shrink the gradient most at initialisation, then trains them.

    In symbols: keep the top d of w (H g) over all layers together, with g and H the gradient and the Hessian of the
    loss; removing w_q changes ||g||^2 by -2 w_q (H g)_q to first order. Signs count: negative scores go first.

    batches: of training examples, for g and H alike; the authors take 10 examples per class on CIFAR.
    temperature: what the model's output is divided by before the loss. The other arguments are as in `snip`.

    Deviations: H is that of the mean over all batches, where the authors add up two halves of disjoint classes.
    """
    init = foresight.grasp(data, batches, positions, temperature, batch_norm, scope, allow_collapse, inputs=inputs)
    return Method(name="grasp", density=density, allocation=allocation, init=init)
