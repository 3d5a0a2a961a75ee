"""The soft phase of a learned method: gates that train beside the weights, driven by the optimizer's step hooks."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from . import optimizer_state
from .gated import GatedWeight
from .reparametrise import SoftGate, SoftThreshold


class SoftPhase:
    """All gated weights of a model, by name."""

    def __init__(self, weights: Mapping[str, GatedWeight], gate: SoftGate | SoftThreshold) -> None:
        self.weights, self._gate = dict(weights), gate

    def new_backward(self) -> bool:
        """Whether a gradient arrived at a gate since this was last asked."""
        arrived = [weight.take_arrival() for weight in self.weights.values()]
        return any(arrived)

    def forget_gradients(self) -> None:
        """Forget a step that did not finish."""
        for weight in self.weights.values():
            weight.forget()

    def before_update(self, optimizer: Optimizer) -> None:
        """Check the weights that `optimizer` steps, then take the gradients of their gates."""
        own = self._own(optimizer)
        for weight in own:
            weight.check_identity()
        for weight in own:
            weight.before_update()

    def after_update(self, optimizer: Optimizer) -> None:
        """Step the gates beside the weights that `optimizer` stepped."""
        for weight in self._own(optimizer):
            weight.after_update()

    def guard(self, optimizer: Optimizer) -> None:
        """In a step that a GradScaler makes a fused optimizer skip, too, the gates are none of its business."""
        if optimizer_state.found_inf(optimizer):
            for weight in self._own(optimizer):
                weight.drop_gradient()

    def set_beta(self, step: int, last: int) -> None:
        """Set beta to that of `step`, of `last` in all."""
        beta = self._gate.beta(step, last)
        for weight in self.weights.values():
            weight.gating.beta.fill_(beta)

    def _own(self, optimizer: Optimizer) -> list[GatedWeight]:
        return [weight for weight in self.weights.values() if weight.optimizer is optimizer]
