"""What happens to the weights that do not take part, and to the active ones beside the optimizer's update."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from .errors import ConfigError, check_choice, check_number
from .topology import Schedule, as_schedule, check_density


class Exploit(Protocol):
    """What pulls the inactive weights of a live method towards zero (seed paper, section 3.3)."""

    needs_total: bool

    def resolve(self, total_steps: int | None) -> Exploit:
        """Return a copy whose times are in steps."""

    def decay(self, step: int) -> float:
        """Fraction of each inactive weight removed after the update of `step` (0 = nothing, 1 = all)."""

    def frozen(self, step: int) -> bool:
        """Whether the support may no longer change after the update of `step`."""


@dataclass(frozen=True)
class Reset:
    """RESET: inactive weights become zero after every z-th update, ``(t + 1) % z == 0``.

    z is `every`, in optimizer steps. Optimizer state is kept, so momentum goes on moving them.

    >>> [Reset(2).decay(t) for t in range(4)]
    [0.0, 1.0, 0.0, 1.0]
    """

    every: int = 1000
    needs_total = False

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(
                f"Reset(every={self.every!r}): every is z, a whole number of optimizer steps >= 1; "
                "write exploit=None for no reset"
            )

    def resolve(self, total_steps: int | None) -> Reset:
        """Nothing to resolve: `every` is in steps."""
        return self

    def decay(self, step: int) -> float:
        """1 on every z-th step, else 0."""
        return 1.0 if (step + 1) % self.every == 0 else 0.0

    def frozen(self, step: int) -> bool:
        """Never: weights may be swapped between resets."""
        return False


@dataclass(frozen=True)
class Fix:
    """FIX: from ``t / T >= v`` on, inactive weights are zero, so the support no longer changes.

    v is `start`, a fraction of training, in [0, 1].

    >>> fix = Fix(0.5).resolve(4)
    >>> [fix.decay(t) for t in range(4)]
    [0.0, 0.0, 1.0, 1.0]
    """

    start: float = 0.5
    total_steps: int | None = None
    needs_total = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= 1.0:
            raise ConfigError(
                f"Fix(start={self.start!r}): start is v, a fraction of training between 0 and 1, e.g. Fix(0.5)"
            )

    def resolve(self, total_steps: int | None) -> Fix:
        """Return a copy that knows T."""
        return dataclasses.replace(self, total_steps=total_steps)

    def decay(self, step: int) -> float:
        """1 from step v*T on."""
        return 1.0 if self.frozen(step) else 0.0

    def frozen(self, step: int) -> bool:
        """From step v*T on."""
        if self.total_steps is None:
            raise ConfigError("Fix needs total_steps: pass total_steps=T to sparsify()")
        return step >= self.start * self.total_steps


@dataclass(frozen=True)
class Regularize:
    """REGULARIZE: every update is followed by ``n <- n - beta * n`` on the inactive weights n.

    beta is `decay_rate`, not multiplied by the learning rate; 2e-4 in the seed paper (after Zhou et al., 2021).
    """

    decay_rate: float = 2e-4
    needs_total = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay_rate <= 1.0:
            raise ConfigError(
                f"Regularize({self.decay_rate!r}): this is beta, the fraction removed per step, between 0 and 1"
            )

    def resolve(self, total_steps: int | None) -> Regularize:
        """Nothing to resolve."""
        return self

    def decay(self, step: int) -> float:
        """Beta, at every step."""
        return self.decay_rate

    def frozen(self, step: int) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Zero:
    """Inactive weights are zero and get no gradient.

    slots: "zero" also clears their optimizer slots; "keep" lets dense gradients flow into the slots (SNFS).
    newborn: slots of weights that just became active: "neutral" = first moments 0, second moments the mean of
        the surviving active ones, so that the first Adam update is not 3.16 lr; "zero" = literally zero.
    newborn_std: their value is drawn from N(0, newborn_std^2); 0 starts them at zero.
    """

    slots: Literal["zero", "keep"] = "zero"
    newborn: Literal["neutral", "zero"] = "neutral"
    newborn_std: float = 0.0

    def __post_init__(self) -> None:
        check_choice("Zero(slots=...)", self.slots, ("zero", "keep"))
        check_choice("Zero(newborn=...)", self.newborn, ("neutral", "zero"))
        check_number("newborn_std", self.newborn_std, "the standard deviation of a new weight's first value")


@dataclass(frozen=True)
class Live:
    """Inactive weights keep a value beside the model and go on being trained.

    scale: s, the factor on what inactive weights receive; 1 = the dense gradient.
    scale_on: "gradient" or "update" (what the optimizer adds, decoupled weight decay included). None picks
        "gradient" for SGD and ASGD and "update" for optimizers that normalise the gradient and would undo s.
    exploit: Reset, Fix, Regularize or None.
    decay: lambda; ``lambda w`` is added to the gradient of inactive weights, after s (SR-STE).
    active_decay: the same for active weights.
    reach: density of the weights that are trained, a schedule or a number from the method's density to 1: the largest
        scores, a superset of the support. What is beyond is left exactly as it is (Top-KAST). None: all are.
    """

    scale: float = 1.0
    scale_on: Literal["gradient", "update"] | None = None
    exploit: Exploit | None = None
    decay: float = 0.0
    active_decay: float = 0.0
    reach: float | Schedule | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, int | float) and 0.0 <= self.scale <= 1.0):
            raise ConfigError(
                f"scale={self.scale!r}: this is s, the share of the gradient that inactive weights receive, "
                "between 0 (none) and 1 (all of it)"
            )
        if self.scale_on is not None:
            check_choice("scale_on", self.scale_on, ("gradient", "update"))
        if self.exploit is not None and not hasattr(self.exploit, "decay"):
            raise ConfigError(f"exploit={self.exploit!r}: expected gossamer.Reset(z), Fix(v), Regularize(beta) or None")
        for name in ("decay", "active_decay"):
            check_number(name, getattr(self, name), "lambda, what is added to the gradient per weight")
        if self.reach is not None and not callable(self.reach):
            check_density(self.reach)
        if self.reach is not None and self.scale != 1.0:
            raise ConfigError(
                f"scale={self.scale!r} with reach={self.reach!r}: reach says which inactive weights are trained, and "
                "those are trained fully; use scale=1"
            )

    @property
    def needs_total(self) -> bool:
        """Whether it holds times that are fractions of training."""
        return as_schedule(self.reach or 1.0).needs_total or (self.exploit is not None and self.exploit.needs_total)

    def resolve(self, total_steps: int | None) -> Live:
        """Return a copy with times in steps."""
        exploit = None if self.exploit is None else self.exploit.resolve(total_steps)
        reach = None if self.reach is None else as_schedule(self.reach).resolve(total_steps)
        return dataclasses.replace(self, exploit=exploit, reach=reach)


class Action(Protocol):
    """What is done to the active weights after every update, beside what the optimizer does."""

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Entries` it reads; "generator" where it draws."""

    def __call__(self, weight: Tensor, *, lr: float, sign: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Return the new values. All tensors have the shape of the weight; what is inactive is cleared afterwards."""


@dataclass(frozen=True)
class Langevin:
    """``w <- w - lr alpha s + sqrt(2 lr T) nu``: L1 pull towards zero and Gaussian noise nu ~ N(0, 1).

    alpha is `l1`, T `temperature`, s the fixed sign of the connection, lr the learning rate of the weight.

    Source: DeepR (Bellec et al. 2018, 1711.05136), the terms beside the gradient step.
    """

    l1: float = 1e-5
    temperature: float = 1e-5

    def __post_init__(self) -> None:
        check_number("l1", self.l1, "alpha, the pull towards zero")
        check_number("temperature", self.temperature, "T, the strength of the noise")

    @property
    def needs(self) -> frozenset[str]:
        """The signs, and random numbers if there is noise."""
        return frozenset({"sign", "generator"} if self.temperature else {"sign"})

    def __call__(self, weight: Tensor, *, lr: float, sign: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Return the new values; noise is drawn on the CPU in float32, the same on every device."""
        assert sign is not None
        moved = weight - lr * self.l1 * sign.to(weight.dtype)
        if self.temperature:
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            moved = moved + math.sqrt(2 * lr * self.temperature) * noise.to(weight.device, weight.dtype)
        return moved
