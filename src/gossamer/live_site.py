"""A site of a live method: the dense weights that train, and the sparse view of them that the model computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import distributed, optimizer_state
from .errors import AttachError
from .inactive import Live
from .latent import Latent
from .masking import keep_on
from .sites import DenseSite
from .topology import Support


@dataclass
class LiveSite(DenseSite):
    """A Parameter that holds exact zeros off its support between steps, with its dense trainable weights beside it.

    latent: these; None before `start`.
    """

    inactive: Live
    latent: Latent | None = field(init=False, default=None, repr=False)
    _before: Tensor | None = field(init=False, default=None, repr=False)  # the update, where it is scaled or confined
    _own_grad: Tensor | None = field(init=False, default=None, repr=False)  # without the decay

    # -- reading --

    @property
    def trainable(self) -> Tensor | None:
        """The local part of the dense trainable weights."""
        return None if self.latent is None else self.latent.values

    @property
    def handed_over(self) -> bool:
        """Whether the parameter holds the trainable weights at the moment."""
        return self.latent is not None and self.latent.handed_over

    @property
    def _trained(self) -> Tensor:
        return self.weight if self.latent is None or self.handed_over else self.latent.values

    @property
    def _started(self) -> Latent:
        assert self.latent is not None
        return self.latent

    def whole_trainable(self) -> Tensor:
        """The dense trainable weights of the whole parameter. A collective when it is sharded."""
        return self._whole(self._started.values)

    def bytes(self) -> int:
        """What this site holds beside model and optimizer between steps, on this rank."""
        return super().bytes() + self._started.values.nbytes

    def check_identity(self) -> None:
        """As of `DenseSite`; raise too if something wrote other weights over the sparse view."""
        super().check_identity()
        self._started.check(self.mask, self.name)

    def _fits_beside(self) -> bool:
        values = self._started.values
        return self.weight.device == values.device and self.weight.dtype == values.dtype

    # -- the optimizer and the gradient --

    def check_optimizer(self, optimizer: Optimizer, needs: frozenset[str]) -> None:
        """Raise if s would have to act where it cannot, or a score needs a momentum that there is not."""
        super().check_optimizer(optimizer, needs)
        scale, on = self._scale(optimizer)
        if on == "gradient" and scale not in (0.0, 1.0) and distributed.is_sharded(self.parameter):
            raise AttachError(
                f"{self.name} is sharded (FSDP2): scale={scale} cannot act on its gradient, which is gated once per "
                'micro-batch there; use scale_on="update"'
            )

    def _scale(self, optimizer: Optimizer | None) -> tuple[float, str]:
        """s, and whether it acts on the gradient or on the update of inactive weights."""
        adaptive = optimizer is not None and optimizer_state.normalises_gradient(optimizer)
        return self.inactive.scale, self.inactive.scale_on or ("update" if adaptive else "gradient")

    def _passing(self) -> float:
        scale, on = self._scale(self.optimizer)
        return 0.0 if self.traits.reach is not None else 1.0 if on == "update" else scale

    def add_decay(self, scale: float) -> None:
        """Add lambda w to the gradient that the optimizer sees; `scale` is the loss scale still inside the gradient.

        The gradient itself is put back after the update: it belongs to the user, who may go on accumulating into it.
        """
        inactive, grad = self.inactive, self.parameter.grad
        if grad is None or not (inactive.decay or inactive.active_decay):
            return
        w = self._started.values
        pull = torch.where(self.mask, inactive.active_decay * w, inactive.decay * w)
        if self.traits.reach is not None:
            keep_on(self.traits.reach, pull, out=pull)
        self._own_grad, self.parameter.grad = grad, grad.clone()
        distributed.local(self.parameter.grad).add_(pull, alpha=scale)

    def _take_back_decay(self) -> None:
        if self._own_grad is not None:
            self.parameter.grad, self._own_grad = self._own_grad, None

    # -- the optimizer step --

    def hand_over(self) -> None:
        """Put the trainable weights where the optimizer will step on them."""
        scale, on = self._scale(self.optimizer)
        if (on == "update" and scale != 1.0) or self.traits.reach is not None:
            self._before = self._started.values.clone()
        self._started.hand_over()

    def show_sparse(self) -> None:
        """Put the sparse view back: the trainable weights on the support, zero elsewhere."""
        self._started.show_sparse(self.mask)
        self.informed.confirm()

    def act_on_inactive(self, step: int) -> None:
        """After the update of `step`: what its forward pass left out is scaled by s and decayed."""
        self._take_back_decay()
        trained = self.weight
        if self._before is not None and self.traits.reach is not None:
            torch.where(self.traits.reach, trained, self._before, out=trained)
        elif self._before is not None:
            scaled = self._before + self.inactive.scale * (trained - self._before)
            torch.where(self.mask, trained, scaled, out=trained)
        self._before = None
        decay = self.inactive.exploit.decay(step) if self.inactive.exploit else 0.0
        if decay == 1.0:
            keep_on(self.mask, trained, out=trained)
        elif decay:
            torch.where(self.mask, trained, trained - decay * trained, out=trained)

    def abandon_step(self) -> None:
        """Make the weight sparse again after an update that raised or a change from outside."""
        self._before = None
        self._take_back_decay()
        super().abandon_step()

    # -- supports --

    def start(self, mask: Tensor | None, needs: frozenset[str], signs: torch.Generator | None) -> None:
        """Keep the weight as trainable weights, then as `DenseSite`."""
        self.latent = Latent(self.module, self.parameter)
        super().start(mask, needs, signs)

    def _make_sparse(self) -> None:
        self.show_sparse()

    def _settle(self, old: Tensor, new: Tensor, generator: torch.Generator | None) -> None:
        """Nothing moves: dropped weights go on training, and the sparse view is made after the step."""

    def synchronise(self) -> None:
        """Take rank 0's support and trainable weights. A collective; sharded weights agree by construction."""
        if not distributed.is_sharded(self.parameter):
            distributed.broadcast(self._started.values)
        super().synchronise()

    def load(self, support: Support, trainable: Tensor | None, traits: Mapping[str, Tensor]) -> None:
        """Take over what `check_state` found to fit."""
        assert trainable is not None
        whole = trainable.to(self.parameter.device, self.parameter.dtype)
        self._started.values.copy_(distributed.shard(whole, self.parameter))
        super().load(support, trainable, traits)
