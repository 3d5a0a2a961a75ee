"""A site: one target weight as the controller sees it. The only place that touches parameter storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from . import distributed, optimizer_state
from .errors import AttachError
from .gate import GradientGate
from .inactive import Action, Live, Zero
from .latent import Latent
from .masking import keep_on
from .nn.hybrid import Hybrid
from .nn.semi_structured import SemiStructured
from .site import Site
from .topology import Entries, Support
from .topology.selection import count_true
from .traits import Traits


@dataclass
class DenseSite(Site):
    """A Parameter that holds exact zeros off its support; for live methods, its dense trainable weights beside it.

    parameter: of shape (out, in, *kernel) or as its layer has it.
    mask: bool, of the shape of the local part of the parameter; replaced, never changed in place.
    two_four: whether supports that follow are 2:4 along inputs, and along outputs, if the first is.
    latent: the dense trainable weights of a live method, None for others.
    traits: what else is remembered per entry.
    """

    two_four: tuple[bool, bool] = (False, False)
    mask: Tensor = field(init=False)
    latent: Latent | None = field(init=False, default=None, repr=False)
    traits: Traits = field(init=False, repr=False)
    stashed_grad: Tensor | None = field(init=False, default=None)
    _kind: str = field(init=False, repr=False)
    _slot_ids: tuple[int, ...] = field(init=False, default=(), repr=False)
    _version: int = field(init=False, default=-1, repr=False)  # of the parameter when it was last made sparse
    _undisturbed: bool = field(init=False, default=False, repr=False)  # nothing wrote to it since
    _before: Tensor | None = field(init=False, default=None, repr=False)
    _own_grad: Tensor | None = field(init=False, default=None, repr=False)  # without the decay

    def __post_init__(self) -> None:
        self.mask = torch.ones_like(self.weight, dtype=torch.bool)
        self.traits = Traits(self.name, self.parameter)
        self.gate = GradientGate(self.parameter, lambda: self.mask if self.traits.reach is None else self.traits.reach)
        self._kind = f"{self.weight.dtype} on {self.weight.device}"

    # -- reading --

    @property
    def trainable(self) -> Tensor | None:
        """The local part of the dense trainable weights of a live method, None for others."""
        return None if self.latent is None else self.latent.values

    @property
    def handed_over(self) -> bool:
        """Whether the parameter holds the trainable weights at the moment."""
        return self.latent is not None and self.latent.handed_over

    @property
    def weight(self) -> Tensor:
        """The local part of the parameter, detached."""
        return distributed.local(self.parameter.detach())

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole weight."""
        return self.parameter.shape

    @property
    def count(self) -> int:
        """Number of active entries of the whole weight. A collective when the parameter is sharded."""
        return count_true(self.whole_mask())

    def support(self) -> Support:
        """The support of the whole weight. A collective when the parameter is sharded."""
        return Support.from_mask(self.whole_mask())

    def whole_mask(self) -> Tensor:
        """The support as a bool mask; treat it as read-only. A collective when the parameter is sharded."""
        return self._whole(self.mask)

    def entries(self, needs: frozenset[str], generator: torch.Generator | None, step: int = 0) -> Entries:
        """Aligned tensors over the whole weight that scores look at; gradients are unscaled.

        Raises:
            AttachError: a score needs the momentum and the optimizer keeps none.
        """
        whole = self._whole
        fields: dict[str, Any] = dict(self.traits.entries(needs, step))
        if "grad" in needs:
            fields["grad"] = self._gradient()
        if "momentum" in needs:
            fields["momentum"] = whole(optimizer_state.momentum(self.optimizer, self.parameter, self.name))
        source = self.weight if self.trainable is None or self.handed_over else self.trainable
        return Entries(weight=whole(source), active=whole(self.mask), generator=generator, **fields)

    def _gradient(self) -> Tensor:
        if self.stashed_grad is None:  # the weight took no part in this backward pass
            return self._zeros()
        return self._whole(distributed.local(self.stashed_grad))

    def _zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.parameter.dtype, device=self.parameter.device)

    def _whole(self, part: Tensor) -> Tensor:
        return distributed.gather(part, self.parameter)

    def check_identity(self) -> None:
        """Raise if the module now holds another Parameter than the one that was attached, or one that was cast."""
        super().check_identity()
        weight, beside = self.weight, self.mask if self.trainable is None else self.trainable
        if weight.device != beside.device or (beside is self.trainable and weight.dtype != beside.dtype):
            raise AttachError(
                f"{self.name} is {weight.dtype} on {weight.device} now and was {self._kind} in sparsify(); call "
                "sparsify() after model.to() or model.double()"
            )
        if self.latent is not None:
            self.latent.check(self.mask, self.name)

    # -- the optimizer and the gradient --

    def check_optimizer(self, optimizer: Optimizer, needs: frozenset[str]) -> None:
        """Raise if s would have to act where it cannot, or a score needs a momentum that there is not."""
        if "momentum" in needs:
            optimizer_state.require_momentum(optimizer, self.parameter, self.name)
        scale, on = self._scale(optimizer)
        if on == "gradient" and scale not in (0.0, 1.0) and distributed.is_sharded(self.parameter):
            raise AttachError(
                f"{self.name} is sharded (FSDP2): scale={scale} cannot act on its gradient, which is gated once per "
                'micro-batch there; use scale_on="update"'
            )

    def _scale(self, optimizer: Optimizer | None) -> tuple[float, str]:
        """s, and whether it acts on the gradient or on the update of inactive weights."""
        if not isinstance(self.inactive, Live):
            return (1.0 if self.inactive.slots == "keep" else 0.0), "gradient"
        adaptive = optimizer is not None and optimizer_state.normalises_gradient(optimizer)
        return self.inactive.scale, self.inactive.scale_on or ("update" if adaptive else "gradient")

    def arm(self, *, growing: bool) -> None:
        """Set what the next backward pass lets through off the support."""
        scale, on = self._scale(self.optimizer)
        scale = 0.0 if self.traits.reach is not None else 1.0 if on == "update" else scale
        self.gate.off_scale = 1.0 if growing else scale

    def stash_gradient(self, scale: float) -> None:
        """Keep the dense, unscaled gradient for growth; what the optimizer consumes is to be gated."""
        grad = self.parameter.grad
        if grad is not None:
            self.stashed_grad = grad.detach() / scale if scale != 1.0 else grad.detach().clone()
        self.arm(growing=False)

    def add_decay(self, scale: float) -> None:
        """Add lambda w to the gradient that the optimizer sees; `scale` is the loss scale still inside the gradient.

        The gradient itself is put back after the update: it belongs to the user, who may go on accumulating into it.
        """
        inactive, grad = self.inactive, self.parameter.grad
        if not isinstance(inactive, Live) or grad is None or not (inactive.decay or inactive.active_decay):
            return
        w = self.weight if self.trainable is None else self.trainable
        pull = torch.where(self.mask, inactive.active_decay * w, inactive.decay * w)
        if self.traits.reach is not None:
            keep_on(self.traits.reach, pull, out=pull)
        self._own_grad, self.parameter.grad = grad, grad.clone()
        distributed.local(self.parameter.grad).add_(pull, alpha=scale)

    def _take_back_decay(self) -> None:
        if self._own_grad is not None:
            self.parameter.grad, self._own_grad = self._own_grad, None

    # -- the optimizer step of live methods --

    def hand_over(self) -> None:
        """Put the trainable weights where the optimizer will step on them; see whether the others are as left."""
        if self.latent is None:
            sharded = distributed.is_sharded(self.parameter)  # versions are not kept for shards
            self._undisturbed = not sharded and self.parameter._version == self._version
            return
        scale, on = self._scale(self.optimizer)
        if (on == "update" and scale != 1.0) or self.traits.reach is not None:
            self._before = self.latent.values.clone()
        self.latent.hand_over()

    def show_sparse(self) -> None:
        """Put the sparse view back: the trainable weights on the support, zero elsewhere."""
        if self.latent is not None:
            self.latent.show_sparse(self.mask)
            self._confirm()

    def act_on_inactive(self, step: int) -> None:
        """After the update of `step`: what its forward pass left out is scaled by s and decayed, or cleared."""
        self._take_back_decay()
        if not isinstance(self.inactive, Live):
            return self._stay_zero()
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

    def act_on_active(self, action: Action, generator: torch.Generator | None) -> None:
        """After the update: what the method does to the active weights beside it. Inactive ones are cleared later."""
        assert self.optimizer is not None
        fields = self.traits.entries(action.needs, 0)
        lr = optimizer_state.learning_rate(self.optimizer, self.parameter)
        moved = action(self._whole(self.weight), lr=lr, sign=fields.get("sign"), generator=generator)
        self.weight.copy_(distributed.shard(moved, self.parameter))
        self._undisturbed = False

    def abandon_step(self) -> None:
        """Make the weight sparse again after an update that raised or a change from outside."""
        self.stashed_grad = self._before = None
        self._take_back_decay()
        if self.live:
            self.show_sparse()
        else:
            self.clear_inactive()

    # -- supports --

    def install(self) -> list[RemovableHandle]:
        """Register the hooks on its gradient."""
        return self.gate.install()

    def forget_gradient(self) -> None:
        """Drop what was stashed."""
        self.stashed_grad = None

    def start(self, mask: Tensor | None, needs: frozenset[str], signs: torch.Generator | None) -> None:
        """Take the first support (of the whole weight), make the parameter sparse and the traits that `needs` names."""
        assert mask is not None
        self._set_mask(distributed.shard(mask, self.parameter))
        self._declare(mask)
        if self.live:
            self.latent = Latent(self.module, self.parameter)
            self.show_sparse()
        else:
            self.clear_inactive()
        self.traits.start(needs, self.weight, signs)

    def clear_inactive(self) -> None:
        """Make the weight exactly zero off its support."""
        keep_on(self.mask, self.weight, out=self.weight)
        self._confirm()

    def assign(self, mask: Tensor, step: int, generator: torch.Generator | None = None) -> None:
        """Change to another support of the whole weight; dropped and newborn entries are treated as stated.

        step: completed optimizer steps. generator: for the values of newborn entries that do not start at zero.
        """
        new, old = distributed.shard(mask, self.parameter), self.mask
        self._set_mask(new)
        if isinstance(self.module, SemiStructured) and not self.module.is_semi_structured:  # the method started dense
            self._declare(mask)
        self.stashed_grad = None
        if self.traits.born is not None:
            self.traits.grown(new & ~old, step)
        if isinstance(self.inactive, Zero):
            self._move_slots(old, new)
            self.clear_inactive()
            if generator is not None:
                drawn = torch.randn(self.shape, generator=generator) * self.inactive.newborn_std
                values = distributed.shard(drawn.to(self.weight.device, self.weight.dtype), self.parameter)
                torch.where(new & ~old, values, self.weight, out=self.weight)

    def _stay_zero(self) -> None:
        """Clear what the update may have moved off the support; a pass over the weight is saved where it cannot have.

        Slots that were made, loaded or inherited from dense training come to rest off the support.
        """
        ids = tuple(map(id, optimizer_state.slots(self.optimizer, self.parameter).values()))
        if ids != self._slot_ids:
            self._slot_ids, self._undisturbed = ids, False
            self._move_slots(torch.ones_like(self.mask), self.mask)
        dense_slots = isinstance(self.inactive, Zero) and self.inactive.slots == "keep"
        if dense_slots or not (self._undisturbed and optimizer_state.keeps_zeros(self.optimizer)):
            self.clear_inactive()
        self._version = self.parameter._version
        self._confirm()

    def _move_slots(self, old: Tensor, new: Tensor) -> None:
        if isinstance(self.inactive, Zero) and self.inactive.slots == "zero" and self.optimizer is not None:
            optimizer_state.move_slots(self.optimizer, self.parameter, old, new, self.inactive.newborn)

    def synchronise(self) -> None:
        """Take rank 0's support and trainable weights. A collective; sharded weights agree by construction."""
        if distributed.is_sharded(self.parameter):
            return
        self._set_mask(distributed.broadcast(self.mask.clone()))
        self.traits.synchronise()
        if self.trainable is None:
            self.clear_inactive()
        else:
            distributed.broadcast(self.trainable)
            self.show_sparse()

    def saved_traits(self) -> dict[str, Tensor]:
        """What is remembered per entry beside the support. A collective when the parameter is sharded."""
        return self.traits.state()

    def check_state(self, support: Support, trainable: Tensor | None, traits: Mapping[str, Tensor]) -> None:
        """Raise if a saved support, saved trainable weights or traits (all whole) do not fit this weight."""
        super().check_state(support, trainable, traits)
        self.traits.check(traits, support)

    def load(self, support: Support, trainable: Tensor | None, traits: Mapping[str, Tensor]) -> None:
        """Take over what `check_state` found to fit."""
        self.traits.load(traits, support)
        self._set_mask(distributed.shard(support.mask.to(self.parameter.device), self.parameter))
        self._declare(support.mask)
        self.stashed_grad = None
        if self.trainable is None or trainable is None:
            self.clear_inactive()
        else:
            whole = trainable.to(self.parameter.device, self.parameter.dtype)
            self.trainable.copy_(distributed.shard(whole, self.parameter))
            self.show_sparse()

    def _set_mask(self, mask: Tensor) -> None:
        self.mask = mask
        self.gate.reopen()  # a gradient that is still there was gated by another mask
        if self._hybrid is not None:
            self._hybrid.set_support(mask)

    def release(self) -> None:
        """Let a layer that computes with the support forget it: nobody keeps the weight zero off it any more."""
        if self._hybrid is not None:
            self._hybrid.set_support(None)
        self._declare(None)

    def _declare(self, mask: Tensor | None) -> None:
        """Tell a layer that computes with 2:4 weights the whole support, None for none any more or none that lasts."""
        if isinstance(self.module, SemiStructured):
            along_inputs, along_outputs = self.two_four
            self.module.declare(mask if along_inputs else None, both_ways=along_outputs)

    @property
    def _hybrid(self) -> Hybrid | None:
        """The layer, if it computes with the support."""
        sharded = distributed.is_sharded(self.parameter)
        return self.module if isinstance(self.module, Hybrid) and not sharded else None

    def _confirm(self) -> None:
        if self._hybrid is not None:
            self._hybrid.confirm()

    def whole_trainable(self) -> Tensor | None:
        """The dense trainable weights of the whole parameter, or None."""
        return None if self.trainable is None else self._whole(self.trainable)

    def bytes(self) -> int:
        """What this site holds beside model and optimizer between steps, on this rank."""
        extra = 0 if self.trainable is None else self.trainable.nbytes
        return self.mask.nbytes + extra + self.traits.bytes()
