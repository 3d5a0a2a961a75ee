"""What the controller knows of every weight that it keeps sparse, however its values are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import AttachError, CheckpointError
from .gate import GradientGate
from .inactive import Live, Zero
from .topology import Support


@dataclass
class Site:
    """One target weight. What follows of live methods has nothing to do where inactive weights are zero.

    name: canonical name of the weight; parameter: what holds its values, `attribute` of `module`.
    gate: what passes of the gradient, and whether one arrived.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    inactive: Zero | Live
    optimizer: Optimizer | None = None
    gate: GradientGate = field(init=False, repr=False)

    @property
    def live(self) -> bool:
        """Whether inactive weights keep a value."""
        return isinstance(self.inactive, Live)

    @property
    def trainable(self) -> Tensor | None:
        """The local part of the dense trainable weights of a live method, None for others."""
        return None

    @property
    def handed_over(self) -> bool:
        """Whether the parameter holds the trainable weights of a live method at the moment."""
        return False

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole weight."""
        raise NotImplementedError

    def check_identity(self) -> None:
        """Raise if the module now holds another Parameter than the one that was attached."""
        if getattr(self.module, self.attribute, None) is not self.parameter:
            raise AttachError(
                f"{self.name} was replaced by another Parameter since sparsify() (fully_shard(), .to() or a manual "
                "assignment does that); call sparsify() after such changes"
            )

    def take_optimizer(self, optimizer: Optimizer) -> None:
        """Remember who steps this weight."""
        self.optimizer, self.gate.attached = optimizer, True

    def add_decay(self, scale: float) -> None:
        """Add lambda w to the gradient that the optimizer sees, where the method does."""

    def hand_over(self) -> None:
        """Put the trainable weights where the optimizer will step on them."""

    def show_sparse(self) -> None:
        """Put the sparse view back."""

    def act_on_inactive(self, step: int) -> None:
        """After the update of `step`: what its forward pass left out becomes what the method says."""

    def whole_trainable(self) -> Tensor | None:
        """The dense trainable weights of the whole parameter, or None."""
        return None

    def check_state(self, support: Support, trainable: Tensor | None, traits: Mapping[str, Tensor]) -> None:
        """Raise if a saved support, saved trainable weights or traits (all whole) do not fit this weight."""
        if tuple(support.shape) != tuple(self.shape):
            raise CheckpointError(
                f"the saved support of {self.name} has shape {tuple(support.shape)}, the weight has "
                f"{tuple(self.shape)}: this state belongs to another model"
            )
        if self.live and (trainable is None or trainable.shape != self.shape):
            raise CheckpointError(f"the state holds no trainable weights of {self.name} that fit its shape")
