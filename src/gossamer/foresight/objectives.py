"""Objectives: a scalar R of the network; what saliency makes of it is ``dR/dw * w``, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .. import distributed
from ..errors import ConfigError, DivergedError, check_choice
from ..topology import Entries, Score, score, scores
from .connectivity import connected
from .probe import Probe, Tensors, gradients

BatchNorm = Literal["train", "eval"]
Data = Literal["examples", "inputs"] | None


class Objective(Protocol):
    """What an objective provides."""

    @property
    def name(self) -> str:
        """How it is printed."""

    @property
    def data(self) -> Data:
        """What it looks at beside the weights."""

    @property
    def score(self) -> Score:
        """Ranks entries: ``weight`` is the initial one, ``grad`` of `gradient`, ``active`` the round's mask."""

    def gradient(self, probe: Probe) -> Tensors:
        """dR/dw of every entry by weight name, at the weights under the probe's masks."""


@score("grad")
def signed_saliency(entries: Entries) -> Tensor:
    """``w dR/dw``: how much R falls, to first order, when the weight is removed."""
    return entries.weight * entries.require("grad")


@dataclass(frozen=True)
class Sensitivity:
    """R = the loss; score ``|w dL/dw|``, the gradient averaged over the batches (and ranks) before the absolute value.

    batch_norm: "train" (statistics of the batch) or "eval" (running ones, the identity in a new network).

    Source: SNIP, Lee et al. 2019 (1810.02340), equation 6, whose normalisation changes no rank. Deviation: weights
    only, where the authors' code prunes biases as well (all of them, since they start at 0).
    """

    batch_norm: BatchNorm = "train"
    name = "sensitivity"
    data: ClassVar[Data] = "examples"
    score = scores.saliency

    def __post_init__(self) -> None:
        """Check the choice."""
        check_choice("batch_norm", self.batch_norm, ("train", "eval"))

    def gradient(self, probe: Probe) -> Tensors:
        """dL/dw at the masked weights."""
        return _mean(probe, list(probe.batches()), lambda leaves, loss: gradients(loss, leaves), self.batch_norm)


@dataclass(frozen=True)
class Slope(Sensitivity):
    """R = the loss; score ``|dL/dw|``: how much it falls, to first order, when the weight moves by a given step.

    For weights that start at zero, such as those added to an offset: removing one changes nothing.

    Source: the grow score of RigL (Evci et al. 2020, 1911.11134), before training.
    """

    name = "slope"
    score = scores.gradient


@dataclass(frozen=True)
class GradientFlow:
    """R = half the squared norm of the loss gradient; score ``w (H g)``, the highest are kept.

    Removing w_q changes the squared norm of the gradient by -2 w_q (H g)_q to first order: what is kept is what holds
    it up. Both g and H g are means over the same batches; both are of the active weights alone.
    temperature: logits are divided by it. batch_norm: as in `Sensitivity`.

    Source: GraSP, Wang et al. 2020 (2002.07376), equation 8 and algorithm 1. Deviation: H is that of the mean over all
    batches, where the authors split theirs in two halves of disjoint classes to save memory.
    """

    temperature: float = 200.0
    batch_norm: BatchNorm = "train"
    name = "gradient flow"
    data: ClassVar[Data] = "examples"
    score = signed_saliency

    def __post_init__(self) -> None:
        """Check the arguments."""
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if not (number and 0 < self.temperature < math.inf):
            raise ConfigError(f"temperature = {self.temperature!r}: expected a finite number above 0, e.g. 200")
        check_choice("batch_norm", self.batch_norm, ("train", "eval"))

    def gradient(self, probe: Probe) -> Tensors:
        """H g at the masked weights."""
        batches, settings = list(probe.batches()), (self.batch_norm, self.temperature)
        g = _mean(probe, batches, lambda leaves, loss: gradients(loss, leaves), *settings)
        g = {name: torch.where(probe.masks[name], value, 0.0) for name, value in g.items()}

        def product(leaves: Tensors, loss: Tensor) -> Tensors:
            own = gradients(loss, leaves, create_graph=True)
            return gradients(torch.stack([(g[name] * own[name]).sum() for name in g]).sum(), leaves)

        return _mean(probe, batches, product, *settings)


@dataclass(frozen=True)
class SynapticFlow:
    """R = 1^T |f|(1), the flow through the network made linear and positive; score ``|w dR/dw|``. No data, float64.

    The scores of every layer that all paths cross add up to R, and what comes into a hidden unit goes out of it.

    Source: SynFlow, Tanaka et al. 2020 (2006.05467), equations 2 and 3. Deviations: float64 (float32 overflows from
    about 50 layers on), biases zero, normalisation and elementwise activations passed by.
    """

    name = "synaptic flow"
    data: ClassVar[Data] = "inputs"
    score = scores.saliency

    def gradient(self, probe: Probe) -> Tensors:
        """dR/d|w| at the masked weights: not negative."""
        leaves = {
            name: torch.where(probe.masks[name], w.detach().double().abs(), 0.0).requires_grad_()
            for name, w in probe.weights.items()
        }
        flow, found = probe.flow_gradients(leaves)
        if not flow and connected(probe):
            raise DivergedError(
                "synflow: nothing flows through the network, though paths are left: all weights of a layer are zero, "
                "or products along paths are below what float64 can hold; initialise with larger weights"
            )
        return found


@dataclass(frozen=True)
class Plain:
    """No scalar at all: a score of the initial weights, such as `scores.magnitude` or `scores.random`."""

    score: Score
    data: ClassVar[Data] = None

    def __post_init__(self) -> None:
        """Check the score."""
        if not isinstance(self.score, Score):
            raise ConfigError(f"score is {self.score!r}: expected a Score such as scores.magnitude")

    @property
    def name(self) -> str:
        """Name of the score."""
        return self.score.name

    def gradient(self, probe: Probe) -> Tensors:
        """Nothing."""
        return {}


def _mean(
    probe: Probe,
    batches: list[object],
    differentiate: Callable[[Tensors, Tensor], Tensors],
    batch_norm: BatchNorm,
    temperature: float = 1.0,
) -> Tensors:
    """The mean over the batches, and over all ranks, of what `differentiate` makes of each batch's loss."""
    total = Tensors()
    for batch in batches:
        leaves = probe.leaves()
        with probe.loss(batch, leaves, batch_norm=batch_norm, temperature=temperature) as loss:
            found = differentiate(leaves, loss)
        for name, value in found.items():
            total[name] = total[name] + value.detach() if name in total else value.detach()
    means = {name: (value / len(batches)).contiguous() for name, value in total.items()}  # as collectives want them
    if distributed.active():
        for value in means.values():
            dist.all_reduce(value)
            value /= dist.get_world_size()
    return means
