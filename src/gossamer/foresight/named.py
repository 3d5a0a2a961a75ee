"""The published ways to prune at initialisation, each one a `Saliency`.

In all of them `data` is an iterable of batches (pairs of inputs and targets, unless `forward` says otherwise) or
`Examples`, which has its own `forward` and `loss`; `inputs` is the shape of one example without the batch dimension, or
`Ones`, e.g. ``Ones((7,), tokens=True)`` for seven whole numbers. ``gossamer train`` fills in both. What they share is
described in `Saliency`: positions, scope, allow_collapse; other fields are set by ``dataclasses.replace``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..topology import scores
from .examples import Examples, Forward, Loss, Ones, as_ones, cross_entropy, pair
from .objectives import BatchNorm, GradientFlow, Plain, Sensitivity, Slope, SynapticFlow
from .saliency import Positions, Saliency, Scope

Data = Iterable[Any] | Examples | None
Inputs = Sequence[int] | int | Ones | None


def snip(
    data: Data = None,
    batches: int = 1,
    positions: Positions = "scores",
    batch_norm: BatchNorm = "train",
    scope: Scope = "global",
    allow_collapse: bool = False,
    *,
    inputs: Inputs = None,
    forward: Forward = pair,
    loss: Loss = cross_entropy,
) -> Saliency:
    """SNIP: keep the weights whose removal would change the loss most, ``|w dL/dw|``, in one round.

    batches: averaged over; the authors take one of 100 examples. batch_norm: "eval" is the authors' and the identity
    in a new network; "train" scores the network as it will train.

    Source: Lee et al. 2019 (1810.02340). The authors train another draw of the weights than the one that was scored:
    the control "reinit" does so.
    """
    fields = _fields(positions, scope, allow_collapse, batches=batches)
    return _scored("snip", Sensitivity(batch_norm), data, inputs, forward, loss, **fields)


def iter_snip(
    data: Data = None,
    rounds: int = 60,
    batches: int = 1,
    positions: Positions = "scores",
    batch_norm: BatchNorm = "train",
    scope: Scope = "global",
    allow_collapse: bool = False,
    *,
    inputs: Inputs = None,
    forward: Forward = pair,
    loss: Loss = cross_entropy,
) -> Saliency:
    """Iterative SNIP: a little pruning per round, scored again on what is left; what is pruned stays so.

    Source: de Jorge et al. 2021 (2006.09081), section 4.3 and the authors' 60 rounds.
    """
    fields = _fields(positions, scope, allow_collapse, batches=batches)
    return _scored("iter-snip", Sensitivity(batch_norm), data, inputs, forward, loss, rounds=rounds, **fields)


def force(
    data: Data = None,
    rounds: int = 60,
    batches: int = 1,
    positions: Positions = "scores",
    batch_norm: BatchNorm = "train",
    scope: Scope = "global",
    allow_collapse: bool = False,
    *,
    inputs: Inputs = None,
    forward: Forward = pair,
    loss: Loss = cross_entropy,
) -> Saliency:
    """FORCE: iterative SNIP in which a pruned weight may come back, scored with its initial value.

    Source: de Jorge et al. 2021 (2006.09081), algorithm 1. Deviations: the loss is the cross-entropy, where the
    authors' code takes the negative log-likelihood of raw logits; counts are exact, where theirs also keeps what ties
    with the threshold.
    """
    fields = _fields(positions, scope, allow_collapse, batches=batches)
    fields |= {"rounds": rounds, "revive": True}
    return _scored("force", Sensitivity(batch_norm), data, inputs, forward, loss, **fields)


def grasp(
    data: Data = None,
    batches: int = 1,
    positions: Positions = "scores",
    temperature: float = 200.0,
    batch_norm: BatchNorm = "train",
    scope: Scope = "global",
    allow_collapse: bool = False,
    *,
    inputs: Inputs = None,
    forward: Forward = pair,
    loss: Loss = cross_entropy,
) -> Saliency:
    """GraSP: keep the weights that hold up the norm of the gradient, ``w (H g)``.

    batches: the authors take 10 examples per class (CIFAR). temperature: what the output of `forward` is divided by.

    Source: Wang et al. 2020 (2002.07376).
    """
    fields = _fields(positions, scope, allow_collapse, batches=batches)
    return _scored("grasp", GradientFlow(temperature, batch_norm), data, inputs, forward, loss, **fields)


def synflow(
    inputs: Inputs = None,
    rounds: int = 100,
    positions: Positions = "scores",
    scope: Scope = "global",
    allow_collapse: bool = False,
    *,
    tokens: bool = False,
) -> Saliency:
    """SynFlow: keep the flow through the network of absolute weights, in many rounds and without data.

    inputs: shape of one example, e.g. (3, 32, 32). tokens: the model takes whole numbers. Attention's softmax is no
    linear map: on Transformers the scores are not conserved from layer to layer.

    Source: Tanaka et al. 2020 (2006.05467), algorithm 1.
    """
    fields = _fields(positions, scope, allow_collapse, rounds=rounds)
    return Saliency(SynapticFlow(), ones=as_ones(inputs, tokens), label="synflow", **fields)


def slope(
    data: Data = None,
    batches: int = 1,
    positions: Positions = "scores",
    batch_norm: BatchNorm = "train",
    scope: Scope = "global",
    allow_collapse: bool = False,
    *,
    inputs: Inputs = None,
    forward: Forward = pair,
    loss: Loss = cross_entropy,
) -> Saliency:
    """Slope: keep the weights by which the loss is steepest, ``|dL/dw|``; for weights that start at zero.

    batches, batch_norm: as in `snip`.

    Source: the grow score of RigL (Evci et al. 2020, 1911.11134), before training.
    """
    fields = _fields(positions, scope, allow_collapse, batches=batches)
    return _scored("slope", Slope(batch_norm), data, inputs, forward, loss, **fields)


def magnitude(
    inputs: Inputs = None,
    positions: Positions = "scores",
    scope: Scope = "global",
    allow_collapse: bool = False,
) -> Saliency:
    """Magnitude at initialisation: keep the largest ``|w|`` of the whole network.

    Initial weights are the smaller the wider a layer, so wide layers are emptied first. inputs: shape of one example,
    wanted only to tell whether an empty layer cuts the network.
    """
    ones = as_ones(inputs)
    fields = _fields(positions, scope, allow_collapse)
    return Saliency(Plain(scores.magnitude), ones=ones, label="magnitude", **fields)


def random() -> Saliency:
    """Random: positions drawn uniformly, counts by the method's allocation; the usual first support."""
    return Saliency(Plain(scores.random), scope="layer", label="random")


def _fields(positions: Positions, scope: Scope, allow_collapse: bool, **others: Any) -> dict[str, Any]:
    return {"positions": positions, "scope": scope, "allow_collapse": allow_collapse, **others}


def _scored(
    label: str, objective: Any, data: Data, inputs: Inputs, forward: Forward, loss: Loss, **fields: Any
) -> Saliency:
    examples = data if data is None or isinstance(data, Examples) else Examples(data, forward, loss)
    return Saliency(objective, examples=examples, ones=as_ones(inputs), label=label, **fields)


INITS: dict[str, Callable[..., Saliency]] = {
    "random": random,
    "magnitude": magnitude,
    "snip": snip,
    "iter-snip": iter_snip,
    "force": force,
    "grasp": grasp,
    "synflow": synflow,
    "slope": slope,
}
Saliency.spellings = INITS  # how configs name one
