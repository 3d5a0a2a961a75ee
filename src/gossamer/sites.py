"""A site whose weight is dense, with zeros: one Parameter as the controller sees it."""

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
from .inactive import Action, Zero
from .informed import Informed
from .masking import keep_on
from .site import Site
from .topology import Entries, Support
from .topology.selection import count_true
from .traits import Traits


@dataclass
class DenseSite(Site):
    """A Parameter that holds exact zeros off its support, for methods whose inactive weights are zero.

    parameter: of shape (out, in, *kernel) or as its layer has it.
    mask: bool, of the shape of the local part of the parameter; replaced, never changed in place.
    two_four: whether supports that follow are 2:4 along inputs, and along outputs, if the first is.
    traits: what else is remembered per entry. informed: the module, told of the support.
    """

    two_four: tuple[bool, bool] = (False, False)
    mask: Tensor = field(init=False)
    traits: Traits = field(init=False, repr=False)
    informed: Informed = field(init=False, repr=False)
    stashed_grad: Tensor | None = field(init=False, default=None)
    _kind: str = field(init=False, repr=False)
    _slot_ids: tuple[int, ...] = field(init=False, default=(), repr=False)
    _version: int = field(init=False, default=-1, repr=False)  # of the parameter when it was last made sparse
    _undisturbed: bool = field(init=False, default=False, repr=False)  # nothing wrote to it since

    def __post_init__(self) -> None:
        self.mask = torch.ones_like(self.weight, dtype=torch.bool)
        self.traits = Traits(self.name, self.parameter)
        self.informed = Informed(self.module, self.parameter, self.two_four)
        self.gate = GradientGate(self.parameter, lambda: self.mask if self.traits.reach is None else self.traits.reach)
        self._kind = f"{self.weight.dtype} on {self.weight.device}"

    # -- reading --

    @property
    def weight(self) -> Tensor:
        """The local part of the parameter, detached."""
        return distributed.local(self.parameter.detach())

    @property
    def _trained(self) -> Tensor:
        """The local part of the weights that the optimizer steps on, detached."""
        return self.weight

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
        return Entries(weight=whole(self._trained), active=whole(self.mask), generator=generator, **fields)

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
        if not self._fits_beside():
            raise AttachError(
                f"{self.name} is {self.weight.dtype} on {self.weight.device} now and was {self._kind} in sparsify(); "
                "call sparsify() after model.to() or model.double()"
            )

    def _fits_beside(self) -> bool:
        """Whether what is kept beside the weight is still where and as it is."""
        return self.weight.device == self.mask.device

    # -- the optimizer and the gradient --

    def check_optimizer(self, optimizer: Optimizer, needs: frozenset[str]) -> None:
        """Raise if a score needs a momentum that there is not."""
        if "momentum" in needs:
            optimizer_state.require_momentum(optimizer, self.parameter, self.name)

    def arm(self, *, growing: bool) -> None:
        """Set what the next backward pass lets through off the support."""
        self.gate.off_scale = 1.0 if growing else self._passing()

    def _passing(self) -> float:
        """The share of the gradient that passes off the support."""
        return 1.0 if self._keeps_slots else 0.0

    @property
    def _keeps_slots(self) -> bool:
        """Whether dense gradients flow into the optimizer's slots."""
        return isinstance(self.inactive, Zero) and self.inactive.slots == "keep"

    def stash_gradient(self, scale: float) -> None:
        """Keep the dense, unscaled gradient for growth; what the optimizer consumes is to be gated."""
        grad = self.parameter.grad
        if grad is not None:
            self.stashed_grad = grad.detach() / scale if scale != 1.0 else grad.detach().clone()
        self.arm(growing=False)

    # -- the optimizer step --

    def hand_over(self) -> None:
        """See whether the weight is as it was left; versions are not kept for shards."""
        self._undisturbed = not distributed.is_sharded(self.parameter) and self.parameter._version == self._version

    def act_on_inactive(self, step: int) -> None:
        """Clear what the update may have moved off the support; a pass over the weight is saved where it cannot have.

        Slots that were made, loaded or inherited from dense training come to rest off the support.
        """
        ids = tuple(map(id, optimizer_state.slots(self.optimizer, self.parameter).values()))
        if ids != self._slot_ids:
            self._slot_ids, self._undisturbed = ids, False
            self._move_slots(torch.ones_like(self.mask), self.mask)
        if self._keeps_slots or not (self._undisturbed and optimizer_state.keeps_zeros(self.optimizer)):
            self.clear_inactive()
        self._version = self.parameter._version
        self.informed.confirm()

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
        self.stashed_grad = None
        self._make_sparse()

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
        self.informed.declare(mask)
        self._make_sparse()
        self.traits.start(needs, self.weight, signs)

    def clear_inactive(self) -> None:
        """Make the weight exactly zero off its support."""
        keep_on(self.mask, self.weight, out=self.weight)
        self.informed.confirm()

    def _make_sparse(self) -> None:
        self.clear_inactive()

    def assign(self, mask: Tensor, step: int, generator: torch.Generator | None = None) -> None:
        """Change to another support of the whole weight; dropped and newborn entries are treated as stated.

        step: completed optimizer steps. generator: for the values of newborn entries that do not start at zero.
        """
        new, old = distributed.shard(mask, self.parameter), self.mask
        self._set_mask(new)
        self.informed.rewired(mask)
        self.stashed_grad = None
        if self.traits.born is not None:
            self.traits.grown(new & ~old, step)
        self._settle(old, new, generator)

    def _settle(self, old: Tensor, new: Tensor, generator: torch.Generator | None) -> None:
        """Let values and slots follow from the mask `old` to `new`."""
        assert isinstance(self.inactive, Zero)
        self._move_slots(old, new)
        self.clear_inactive()
        if generator is not None:
            drawn = torch.randn(self.shape, generator=generator) * self.inactive.newborn_std
            values = distributed.shard(drawn.to(self.weight.device, self.weight.dtype), self.parameter)
            torch.where(new & ~old, values, self.weight, out=self.weight)

    def _move_slots(self, old: Tensor, new: Tensor) -> None:
        if isinstance(self.inactive, Zero) and self.inactive.slots == "zero" and self.optimizer is not None:
            optimizer_state.move_slots(self.optimizer, self.parameter, old, new, self.inactive.newborn)

    def synchronise(self) -> None:
        """Take rank 0's support. A collective; sharded weights agree by construction."""
        if distributed.is_sharded(self.parameter):
            return
        self._set_mask(distributed.broadcast(self.mask.clone()))
        self.traits.synchronise()
        self._make_sparse()

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
        self.informed.declare(support.mask)
        self.stashed_grad = None
        self._make_sparse()

    def _set_mask(self, mask: Tensor) -> None:
        self.mask = mask
        self.gate.reopen()  # a gradient that is still there was gated by another mask
        self.informed.follow(mask)

    def release(self) -> None:
        """Let a layer that computes with the support forget it: nobody keeps the weight zero off it any more."""
        self.informed.release()

    def bytes(self) -> int:
        """What this site holds beside model and optimizer between steps, on this rank."""
        return self.mask.nbytes + self.traits.bytes()
