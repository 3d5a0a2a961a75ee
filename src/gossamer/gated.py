"""A weight that a gate computes from its Parameter: the parametrization, and its extra parameter in the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from . import distributed, optimizer_state
from .errors import AttachError
from .reparametrise import SoftGate, SoftThreshold
from .targets import Candidate
from .topology import Support

_NOT_ATTACHED = (
    "gradients arrive at gates, but no optimizer is attached to their LearnedSparsifier: pass the optimizer to "
    "sparsify(), or call attach(optimizer)"
)


class Gating(nn.Module):
    """``theta = gate.apply(w, s, beta)`` as torch's parametrization calls it; beta is set by the controller."""

    def __init__(self, gate: SoftGate | SoftThreshold, weight: Tensor) -> None:
        super().__init__()
        self._gate = gate
        self.s = nn.Parameter(gate.initial(weight.detach()))
        # A tensor, so that a compiled model is not compiled again for every beta; no buffer, since DDP broadcasts
        # those in every forward pass and fails on a model that has lost its last one.
        self.beta = torch.ones((), dtype=weight.dtype, device=weight.device)

    def forward(self, weight: Tensor) -> Tensor:
        """Return theta."""
        return self._gate.apply(weight, self.s, self.beta)


@dataclass
class GatedWeight:
    """One weight of a learned method while its gate is soft. The Parameter keeps its identity throughout.

    momentum: of s, where the gate has its own step. base_rate: the weight's learning rate that counts as 1,
    its peak where a scheduler names it; 0 until the first update.
    """

    candidate: Candidate
    gate: SoftGate | SoftThreshold
    optimizer: Optimizer | None = None
    gating: Gating = field(init=False)
    momentum: Tensor | None = field(init=False, default=None)
    base_rate: float = field(init=False, default=0.0)
    _order: list[str] = field(init=False, default_factory=list, repr=False)  # of the module's parameters
    _pending: Tensor | None = field(init=False, default=None, repr=False)
    _arrived: bool = field(init=False, default=False, repr=False)
    _hook: RemovableHandle | None = field(init=False, default=None, repr=False)
    _slots: dict[str, Any] | None = field(init=False, default=None, repr=False)  # of s, while it is taken out

    def __post_init__(self) -> None:
        self.gating = Gating(self.gate, self.parameter)

    @property
    def name(self) -> str:
        """Canonical name of the weight."""
        return self.candidate.name

    @property
    def parameter(self) -> nn.Parameter:
        """The dense weight w."""
        return self.candidate.parameter

    @property
    def s(self) -> nn.Parameter:
        """The extra parameter."""
        return self.gating.s

    def support(self) -> Support:
        """What the gate would keep if it were cut now."""
        return Support.from_mask(self.openness() > 0)

    def openness(self) -> Tensor:
        """The gate's score of every entry."""
        return self.gate.openness(self.parameter, self.s)

    def theta(self, beta: float) -> Tensor:
        """The weight that the forward pass sees at `beta`."""
        return self.gate.apply(self.parameter.detach(), self.s.detach(), beta)

    @property
    def count(self) -> int:
        """Number of entries that the gate would keep."""
        return int((self.openness() > 0).sum())

    def bytes(self) -> int:
        """What is held beside model and optimizer."""
        return self.s.nbytes + (0 if self.momentum is None else self.momentum.nbytes)

    # -- in the module --

    def install(self) -> None:
        """Let the module compute the weight, and the optimizer know of s."""
        module, attribute = self.candidate.module, self.candidate.attribute
        self._order = list(module._parameters)
        parametrize.register_parametrization(module, attribute, self.gating, unsafe=True)
        arrived = torch.compiler.disable(self._accumulated)
        self._hook = self.s.register_post_accumulate_grad_hook(arrived)
        if self.optimizer is not None:
            self.join(self.optimizer)

    def uninstall(self) -> None:
        """Make the module's weight the Parameter again, at its old place, with the values of w; forget s's gradient."""
        module, attribute = self.candidate.module, self.candidate.attribute
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
        for name in self._order:  # removing puts the weight behind its siblings
            if name in module._parameters:
                module._parameters[name] = module._parameters.pop(name)
        if self._hook is not None:
            self._hook.remove()
        self.leave()
        self.forget()
        self.s.grad = None

    @torch.no_grad()
    def _accumulated(self, s: Tensor) -> None:
        """Average over ranks, whatever DDP knows of s: in micro-batches, too, what came before is alike on all."""
        self._arrived = True
        if self.optimizer is None:
            warnings.warn(_NOT_ATTACHED, stacklevel=2)
        if distributed.active() and s.grad is not None:
            dist.all_reduce(s.grad)
            s.grad.div_(dist.get_world_size())

    def take_arrival(self) -> bool:
        """Whether a gradient arrived since this was last asked."""
        arrived, self._arrived = self._arrived, False
        return arrived

    # -- in the optimizer --

    def join(self, optimizer: Optimizer) -> None:
        """Put s into the weight's own group: a GradScaler unscales it, schedulers that exist go on working."""
        self.optimizer = optimizer
        _take_out(optimizer, self.s)
        group = self._group()
        group["params"].append(self.s)
        if "param_names" in group:
            group["param_names"].append(f"{self.name}.s")
        if self._slots is not None:
            optimizer.state[self.s] = self._slots
            self._slots = None

    def leave(self) -> None:
        """Take s out of the optimizer; its slots are kept for another `install`."""
        if self.optimizer is not None:
            _take_out(self.optimizer, self.s)
            self._slots = self.optimizer.state.pop(self.s, None)

    def change_optimizer(self, optimizer: Optimizer) -> None:
        """Let another optimizer train the weight; what the last one kept of s is forgotten."""
        self.leave()
        self._slots = None
        self.join(optimizer)
        self.base_rate = 0.0

    def _group(self) -> dict[str, Any]:
        assert self.optimizer is not None
        return next(g for g in self.optimizer.param_groups if any(p is self.parameter for p in g["params"]))

    # -- one step --

    def check_identity(self) -> None:
        """Raise if the module computes the weight from something else, or s moved elsewhere."""
        lists, attribute = getattr(self.candidate.module, "parametrizations", {}), self.candidate.attribute
        intact = attribute in lists and lists[attribute].original is self.parameter
        if not intact or lists[attribute][0] is not self.gating:
            raise AttachError(
                f"{self.name} was replaced by another Parameter or parametrization since sparsify() (fully_shard() or "
                "a manual assignment does that); learned methods train with torch's parametrization: leave it in place"
            )
        if self.momentum is not None and (self.momentum.device, self.momentum.dtype) != (self.s.device, self.s.dtype):
            raise AttachError(f"{self.name} moved to another device or dtype; call sparsify() after model.to()")

    def before_update(self) -> None:
        """Take the gradient of s away from the user's optimizer, with that of the penalty."""
        if not isinstance(self.gate, SoftGate) or self.optimizer is None:
            return
        pending = self.gate.penalty_gradient(self.s.detach(), self.gating.beta)
        if self.s.grad is not None:
            pending += self.s.grad / optimizer_state.gradient_scale(self.optimizer)
        self._pending, self.s.grad = pending, None

    def after_update(self) -> None:
        """Step s: SGD with Nesterov momentum, its rate following the weight's."""
        if not isinstance(self.gate, SoftGate) or self._pending is None:
            return
        grad, self._pending = self._pending, None
        if self.momentum is None:
            self.momentum = grad.clone()
        else:
            self.momentum.mul_(self.gate.momentum).add_(grad)
        group = self._group()
        if not self.base_rate:  # by now a scheduler is there, if any
            self.base_rate = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
        rate = self.gate.lr * float(group["lr"]) / self.base_rate if self.base_rate else 0.0
        self.s.data.add_(grad.add(self.momentum, alpha=self.gate.momentum), alpha=-rate)

    def drop_gradient(self) -> None:
        """Keep the gradient of s from an optimizer that does not step it."""
        if self.gate.own_step:
            self.s.grad = None

    def forget(self) -> None:
        """Forget a step that did not finish."""
        self._pending = None


def _take_out(optimizer: Optimizer, parameter: Tensor) -> None:
    for group in optimizer.param_groups:
        for at, held in enumerate(group["params"]):
            if held is parameter:
                del group["params"][at]
                if "param_names" in group:
                    del group["param_names"][at]
                break


def refuse_wrapped(model: nn.Module) -> None:
    """Raise for wrappers that have taken hold of the parameters, and say why."""
    distributed.refuse(model)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise AttachError(
            "the model is wrapped in DistributedDataParallel, which loses sight of a weight that becomes parametrized; "
            "call sparsify() with a learned method first and wrap the same model then"
        )


def refuse_gate(model: nn.Module, candidate: Candidate) -> None:
    """Raise if the weight cannot be computed by a gate, and say why."""
    name, parameter = candidate.name, candidate.parameter
    if parameter.is_meta:
        raise AttachError(f"{name} is on the meta device and has no values; materialise the model first")
    if distributed.is_sharded(parameter):
        raise AttachError(
            f"{name} is sharded (FSDP2): a learned method adds parameters that would have to be sharded with it; use "
            "DDP, or a method without gates such as gossamer.methods.rewire"
        )
    if isinstance(candidate.module, nn.RNNBase):
        raise AttachError(
            f"{name} is held by {type(candidate.module).__name__} a second time in a flat list, out of a gate's "
            "reach; leave it out with targets, or use a method without gates"
        )
    holders = [m for m in model.modules() if any(p is parameter for p in m._parameters.values())]
    if len(holders) > 1:
        raise AttachError(f"{name} is shared by {len(holders)} modules, a gate acts in one; leave it out with targets")


def hide_from_ddp(model: nn.Module, extra: Sequence[nn.Parameter]) -> None:
    """Have DDP leave the gates to us: it would wait for their gradients for ever once they are cut."""
    ids = {id(each) for each in extra}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in ids]
    ignored = [*getattr(model, "_ddp_params_and_buffers_to_ignore", []), *names]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
