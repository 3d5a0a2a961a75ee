"""A learned method is a value: the gate that computes the weights, when it becomes a support, and how many are kept."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError
from .method import Choices
from .topology import check_density


@dataclass(frozen=True)
class SoftGate:
    """``theta = w sigmoid(beta s) / sigmoid(s0)``, one s per weight; the loss gains ``lambda sum sigmoid(beta s)``.

    s0 is `initial_value`, lambda `penalty`, B (the last beta) `temperature`; s is stepped by SGD with Nesterov momentum
    and without weight decay: `lr`, `momentum`. Source: Savarese et al. 2020 (1912.04427).

    >>> gate = SoftGate()
    >>> [round(gate.beta(step, 5), 2) for step in range(5)]
    [1.0, 3.76, 14.14, 53.18, 200.0]
    """

    initial_value: float = 0.0
    penalty: float = 1e-8
    temperature: float = 200.0
    lr: float = 0.1
    momentum: float = 0.9
    own_step = True  # s is stepped by the controller, right after the weight

    def __post_init__(self) -> None:
        _check_number("s_init", self.initial_value, "s0, the first value of every gate", -80, 80)
        _check_number("penalty", self.penalty, "lambda, the weight of the gates in the loss", 0, math.inf)
        _check_number("temperature", self.temperature, "B, the last beta", 1, 1e6)
        _check_number("gate_lr", self.lr, "the learning rate of the gates", 0, math.inf)
        _check_number("gate_momentum", self.momentum, "the momentum of the gates, below 1", 0, math.nextafter(1, 0))

    @property
    def choices(self) -> Choices:
        """What it chooses, in words."""
        return Choices(
            init="all gates half open",
            drop="gate s <= 0",
            grow="gate s > 0",
            where="anywhere",
            when="every step",
            inactive="live",
            gradient="dense, through the gate",
            newborn="current value, slots kept",
            budget="outcome of s0 and lambda",
            structure="unstructured",
            omits=(),
        )

    def initial(self, weight: Tensor) -> Tensor:
        """Return s0 everywhere."""
        return torch.full_like(weight, self.initial_value)

    def apply(self, weight: Tensor, extra: Tensor, beta: float | Tensor) -> Tensor:
        """Return ``w sigmoid(beta s) / sigmoid(s0)``; w itself, bit for bit, at beta = 1 and s = s0 = 0."""
        return weight * (torch.sigmoid(beta * extra) / self._scale)

    @property
    def _scale(self) -> float:
        return 1 / (1 + math.exp(-self.initial_value))

    def openness(self, weight: Tensor, extra: Tensor) -> Tensor:
        """Return s."""
        return extra.detach()

    def beta(self, step: int, end: int) -> float:
        """Return ``B ** (step / (end - 1))``: 1 at first, B in the last forward pass before the gates are cut."""
        return float(self.temperature ** (min(step, end - 1) / max(end - 1, 1)))

    @property
    def last_beta(self) -> float:
        """B, at which the gates are cut."""
        return float(self.temperature)

    def penalty_gradient(self, extra: Tensor, beta: float | Tensor) -> Tensor:
        """Return the gradient of ``lambda sum sigmoid(beta s)``."""
        opening = torch.sigmoid(beta * extra)
        return self.penalty * beta * opening * (1 - opening)


@dataclass(frozen=True)
class SoftThreshold:
    """``theta = sign(w) relu(|w| - sigmoid(s))``, one s per weight tensor, trained as the weights are.

    Source: Kusupati et al. 2020 (2002.03231).

    >>> SoftThreshold(0.0).apply(torch.tensor([2.0, -0.75, 0.25]), torch.tensor(0.0), 1.0)
    tensor([ 1.5000, -0.2500,  0.0000])
    """

    initial_value: float = -3200.0
    own_step = False  # s is stepped by the weight's optimizer

    def __post_init__(self) -> None:
        _check_number("s_init", self.initial_value, "the first threshold is sigmoid(s_init)", -math.inf, 80)

    @property
    def choices(self) -> Choices:
        """What it chooses, in words."""
        return Choices(
            init="all",
            drop="|w| <= sigmoid(s)",
            grow="|w| > sigmoid(s)",
            where="anywhere",
            when="every step",
            inactive="live",
            gradient="none below the threshold, weight decay only",
            newborn="current value, slots kept",
            budget="outcome of weight decay and s_init",
            structure="unstructured",
            omits=("dense gradients",),
        )

    def initial(self, weight: Tensor) -> Tensor:
        """Return one number."""
        return torch.full((), self.initial_value, dtype=weight.dtype, device=weight.device)

    def apply(self, weight: Tensor, extra: Tensor, beta: float | Tensor) -> Tensor:
        """Return the soft-thresholded weight; there is no temperature."""
        return torch.sign(weight) * torch.relu(weight.abs() - torch.sigmoid(extra))

    def openness(self, weight: Tensor, extra: Tensor) -> Tensor:
        """Return ``|w| - sigmoid(s)``."""
        return weight.detach().abs() - torch.sigmoid(extra.detach())

    def beta(self, step: int, end: int) -> float:
        """Return 1."""
        return 1.0

    @property
    def last_beta(self) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A frozen learned method; `sparsify` runs it.

    density: fraction kept by the cut at `finalize`; None leaves it to the gates.
    gate: `SoftGate` or `SoftThreshold`.
    finalize: when the gates become a support: an int counts steps, a float is a fraction of training in (0, 1].
    """

    name: str
    density: float | None
    gate: SoftGate | SoftThreshold
    finalize: int | float

    def __post_init__(self) -> None:
        if self.density is not None:
            check_density(self.density)
        time = self.finalize
        fits = (type(time) is int and time >= 1) or (type(time) is float and 0 < time <= 1)
        if not fits:
            raise ConfigError(
                f"finalize={time!r}: this is when the gates become a support, an int >= 1 in steps or a float in "
                "(0, 1], a fraction of training, e.g. 0.75"
            )

    @property
    def needs(self) -> frozenset[str]:
        """ "total_steps" where `finalize` is a fraction of training."""
        return frozenset({"total_steps"} if isinstance(self.finalize, float) else ())

    @property
    def choices(self) -> Choices:
        """What it chooses, in words."""
        if self.density is None:
            return self.gate.choices
        return dataclasses.replace(self.gate.choices, budget="in all, cut at finalize")

    def resolve(self, total_steps: int | None) -> Learned:
        """Return a copy in which `finalize` is a step.

        Raises:
            ConfigError: `total_steps` is needed and absent, or training ends before `finalize`.
        """
        if total_steps is not None and not (type(total_steps) is int and total_steps >= 1):
            raise ConfigError(f"total_steps={total_steps!r}: expected the number of optimizer steps, >= 1")
        if isinstance(self.finalize, int):
            if total_steps is not None and self.finalize > total_steps:
                raise ConfigError(
                    f"finalize={self.finalize} is after the last of {total_steps} steps, so the model would stay "
                    "dense; use 1.0 for the end of training"
                )
            return self
        if total_steps is None:
            raise ConfigError(
                f"method {self.name!r} has times that are fractions of training and needs total_steps: "
                "pass total_steps=<number of optimizer steps> to sparsify()"
            )
        return dataclasses.replace(self, finalize=max(1, round(self.finalize * total_steps)))


def _check_number(name: str, value: object, what: str, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:  # type: ignore[operator]
        bounds = f" between {low:g} and {high:g}" if math.isfinite(low + high) else " in range"
        raise ConfigError(f"{name}={value!r}: this is {what}, a finite number{bounds}")
