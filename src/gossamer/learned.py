"""The controller of learned methods: gates that train with the weights, then a static support."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Muon, Optimizer
from torch.utils.hooks import RemovableHandle

from . import optimizer_state
from .coverage import Coverage, coverage
from .cutting import check_counts, cut, static_on
from .errors import AttachError, ConfigError, check_seed
from .gated import GatedWeight, hide_from_ddp, refuse_gate, refuse_wrapped
from .hooks import StepHooks
from .learned_state import LEARNED_VERSION, check_learned_state
from .masking import keep_on
from .ownership import check_free
from .reparametrise import Learned
from .soft import SoftPhase
from .sparsifier import Observer, Sparsifier
from .targets import choose
from .topology import Support


class LearnedSparsifier:
    """Trains the gates of a `Learned` method beside the weights and, at `finalize`, cuts them into a static support.

    Until then the weights are parametrized (`torch.nn.utils.parametrize`): ``model.fc.weight`` is computed, its
    Parameter is ``model.fc.parametrizations.weight.original``, with the same identity as before and after. From then
    on the model is plain, with exact zeros, and a static `Sparsifier` keeps them.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Learned,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        total_steps: int | None = None,
        targets: str | type[nn.Module] | Sequence[str | type[nn.Module]] | None = None,
        seed: int = 0,
    ) -> None:
        """As `sparsify`, which is the way to make one."""
        if not isinstance(method, Learned):
            raise ConfigError(
                f"method is {method!r}; expected a learned method such as gossamer.methods.cs(density=0.1)"
            )
        refuse_wrapped(model)
        check_seed(seed)
        self.method, self.seed, self.total_steps = method.resolve(total_steps), seed, total_steps
        self._model, self._targets = model, targets
        self._candidates = choose(model, targets)
        chosen = [c for c in self._candidates if c.sparse]
        for candidate in chosen:
            check_free(candidate.name, candidate.parameter)
            refuse_gate(model, candidate)
        check_counts({c.name: c.parameter.numel() for c in chosen}, self.method.density)
        self._weights = {c.name: GatedWeight(c, self.method.gate) for c in chosen}
        self._soft = SoftPhase(self._weights, self.method.gate)
        self._hooks: StepHooks | None = None
        self._guards: list[RemovableHandle] = []
        self._static: Sparsifier | None = None
        self._observers: dict[int, Observer] = OrderedDict()
        self._soft_steps, self._finalized_at, self._detached = 0, None, False
        plan = None if optimizer is None else self._owners(optimizer)
        for weight in self._weights.values():
            weight.install()
        hide_from_ddp(model, [weight.s for weight in self._weights.values()])
        self._set_beta()
        if plan is not None:
            self._attach(plan)

    _finalized_at: int | None

    # -- what users read --

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self._soft_steps + (0 if self._static is None else self._static.step)

    @property
    def finalized(self) -> bool:
        """Whether the gates have become a support and the model is plain and sparse."""
        return self._static is not None

    @property
    def supports(self) -> Mapping[str, Support]:
        """Weight name -> its support; while the gates are soft, what they would keep without a cut to a density."""
        if self._static is not None:
            return self._static.supports
        return MappingProxyType({name: weight.support() for name, weight in self._weights.items()})

    def summary(self) -> Coverage:
        """Coverage table, counting `supports`; while the gates are soft, bytes hold them and their momentum."""
        return coverage(self._candidates, self._weights if self._static is None else self._static.sites)

    def __repr__(self) -> str:
        form = "soft" if self._static is None else f"cut at {self._finalized_at}"
        table = self.summary()
        return (
            f"LearnedSparsifier({self.method.name}, step={self.step}, {form}, weights={len(self._weights)}, "
            f"active={table.active}/{table.eligible})"
        )

    def watch(self, observer: Observer) -> RemovableHandle:
        """Call ``observer(step, before, after)`` when the gates are cut: from all weights, to the support."""
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = observer
        return handle

    # -- attaching --

    def attach(self, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        """Register step hooks on the optimizer(s) that train the weights, in place of any earlier ones.

        Raises:
            AttachError: as `Sparsifier.attach`.
        """
        if self._detached:
            raise AttachError("this LearnedSparsifier was detached; call sparsify() again")
        plan = self._owners(optimizer)
        if self._hooks is not None:
            if any(new is old for new in plan[0] for old in self._hooks.optimizers):
                raise AttachError("this LearnedSparsifier is attached to that optimizer already; leave the call out")
            self._unhook()
        self._attach(plan)

    def _owners(self, optimizer: Any) -> tuple[list[Optimizer], dict[str, Optimizer]]:
        """The optimizers, and which of them steps each weight; changes nothing."""
        optimizers = optimizer_state.usable(optimizer, live=False)
        owners = {n: optimizer_state.owner(n, w.parameter, optimizers) for n, w in self._weights.items()}
        if any(isinstance(each, LBFGS) for each in optimizers):
            raise AttachError("LBFGS evaluates the loss several times per step, the gates move once; use SGD or AdamW")
        if not self.method.gate.own_step and any(isinstance(each, Muon) for each in owners.values()):
            raise AttachError(
                "Muon steps matrices only, and a threshold is one number that the weight's own optimizer trains; use "
                "SGD or AdamW"
            )
        return optimizers, owners

    def _attach(self, plan: tuple[list[Optimizer], dict[str, Optimizer]]) -> None:
        optimizers, owners = plan
        if self._static is None:
            for name, weight in self._weights.items():
                weight.change_optimizer(owners[name])
        self._hooks = StepHooks(
            optimizers,
            self._before_update,
            self._after_update,
            new_backward=self._new_backward,
            abandon=self._forget_gradients,
            one_evaluation=self.method.gate.own_step,
        )
        guard = torch.compiler.disable(self._guard)
        self._guards = [each.register_step_pre_hook(guard) for each in optimizers]
        if self._static is not None:
            self._drive(self._static)

    def _guard(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._static is None:
            self._soft.guard(optimizer)

    def _unhook(self) -> None:
        self.restore()
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
        for handle in self._guards:
            handle.remove()

    def _drive(self, static: Sparsifier) -> None:
        """Let our hooks run the static controller: inside a step none can be registered."""
        if self._hooks is None:
            return
        _, owners = static._owners(self._hooks.optimizers)
        for name, site in static.sites.items():
            site.take_optimizer(owners[name])
        static._arm_gates()

    def detach(self) -> None:
        """Remove every hook. While the gates are soft, the weights become what the gates make of them: dense."""
        self._unhook()
        self._detached = True
        if self._static is not None:
            self._static.detach()
            return
        with torch.no_grad():
            for weight in self._weights.values():
                theta = weight.theta(float(weight.gating.beta))
                weight.uninstall()
                weight.parameter.copy_(theta)

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model fit to train again after an exception inside `optimizer.step()`, and forget that step."""
        if self._static is not None:
            self._static.restore()
        self._forget_gradients()
        if self._hooks is not None:
            self._hooks.reset()

    def __deepcopy__(self, memo: object) -> LearnedSparsifier:
        raise AttachError(
            "a LearnedSparsifier holds hooks and cannot be copied; call sparsify() on a copy of the model made before, "
            "and load_state_dict(this.state_dict())"
        )

    def __reduce__(self) -> str:
        raise AttachError("a LearnedSparsifier holds hooks and cannot be pickled; save its state_dict()")

    # -- one optimizer step --

    def _new_backward(self) -> bool:
        return self._soft.new_backward() if self._static is None else self._static._new_backward()

    def _forget_gradients(self) -> None:
        if self._static is not None:
            self._static._forget_gradients()
        self._soft.forget_gradients()

    def _before_update(self, optimizer: Optimizer) -> None:
        if self._static is None:
            self._soft.before_update(optimizer)
        else:
            self._static._before_update(optimizer)

    def _after_update(self, optimizer: Optimizer, complete: bool) -> None:
        if self._static is not None:
            self._static._after_update(optimizer, complete)
            return
        self._soft.after_update(optimizer)
        if not complete:
            return
        self._soft_steps += 1
        if self._soft_steps == self.method.finalize:
            self._end()
        else:
            self._set_beta()

    def _end(self) -> None:
        """What ends the soft phase; a ticket search does not cut."""
        self.finalize()

    def _set_beta(self) -> None:
        self._soft.set_beta(self._soft_steps, int(self.method.finalize))

    # -- from gates to a support --

    @torch.no_grad()
    def finalize(self) -> None:
        """Cut the gates now: theta at the last beta becomes the weight, exactly zero off the support.

        Called by itself after step `method.finalize`. Does nothing when the gates are cut already.

        Raises:
            DivergedError: a gate is NaN; nothing has changed then.
            AttachError: `detach` was called.
        """
        if self._static is not None:
            return
        if self._detached:
            raise AttachError("this LearnedSparsifier was detached; there are no gates any more")
        masks = cut({name: weight.openness() for name, weight in self._weights.items()}, self.method.density)
        for name, weight in self._weights.items():
            keep_on(masks[name], weight.theta(self.method.gate.last_beta), out=weight.parameter.detach())
        self._become_static(masks)
        for site in cast(Sparsifier, self._static).sites.values():
            site.act_on_inactive(self._soft_steps)  # the optimizer's slots come to rest with the weights
        self._finalized_at = self._soft_steps
        before = {name: torch.ones_like(mask) for name, mask in masks.items()}
        for observer in list(self._observers.values()):
            observer(self._soft_steps, before, masks)

    def _become_static(self, masks: Mapping[str, Tensor]) -> None:
        for weight in self._weights.values():
            weight.uninstall()
        method = static_on({name: Support.from_mask(mask) for name, mask in masks.items()})
        self._static = Sparsifier(self._model, method, targets=self._targets, seed=self.seed)
        self._drive(self._static)

    def _become_soft(self) -> None:
        assert self._static is not None
        self._static.detach()
        self._static = None
        for weight in self._weights.values():
            weight.install()

    # -- saving --

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on exactly, beside model and optimizer: clock, the gates' momentum, the support."""
        momenta = {name: weight.momentum for name, weight in self._weights.items()}
        return {
            "version": LEARNED_VERSION,
            "method": self.method.name,
            "seed": self.seed,
            "step": self._soft_steps,
            "total_steps": self.total_steps,
            "density": self.method.density,
            "finalize": self.method.finalize,
            "finalized_at": self._finalized_at,
            "momenta": {name: value for name, value in momenta.items() if value is not None},
            "base_rates": {name: weight.base_rate for name, weight in self._weights.items()},
            "static": None if self._static is None else self._static.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` saved; the model becomes soft or plain as it was, so load this state first.

        Then load the model's and the optimizer's; `gossamer.checkpoint.load_training` loads all three. Everything is
        checked before anything changes.

        Raises:
            CheckpointError: the state is damaged, or of another model, method, density or length of training.
        """
        with self.in_form_of(state) as saved:
            if self._static is not None:
                self._static.load_state_dict(saved["static"])
        for name, weight in self._weights.items():
            held = saved["momenta"].get(name)
            weight.momentum = None if held is None else held.detach().clone().to(weight.s.device, weight.s.dtype)
            weight.base_rate = saved["base_rates"].get(name, weight.base_rate)
        self.seed, self._soft_steps, self._finalized_at = saved["seed"], saved["step"], saved["finalized_at"]
        self._set_beta()

    @contextmanager
    def in_form_of(self, state: Any) -> Iterator[dict[str, Any]]:
        """Give model and optimizers the form, soft or plain, that `state` was saved in; undone if the body raises.

        Raises:
            CheckpointError: as `load_state_dict`.
        """
        saved = check_learned_state(state, self.method, self.total_steps, self._weights)
        if self._detached:
            raise AttachError("this LearnedSparsifier was detached; call sparsify() again")
        undo = self._take_form(saved)
        try:
            yield saved
        except BaseException:
            undo()
            raise

    @torch.no_grad()
    def _take_form(self, saved: Mapping[str, Any]) -> Callable[[], None]:
        if (saved["static"] is not None) == self.finalized:
            return lambda: None
        values = {name: weight.parameter.detach().clone() for name, weight in self._weights.items()}
        old = None if self._static is None else self._static.state_dict()
        masks = {} if self._static is None else {name: s.mask for name, s in self._static.supports.items()}
        if old is None:
            device = {name: weight.parameter.device for name, weight in self._weights.items()}
            self._become_static({name: s.mask.to(device[name]) for name, s in saved["supports"].items()})
        else:
            self._become_soft()

        @torch.no_grad()
        def undo() -> None:
            if old is None:
                self._become_soft()
            else:
                self._become_static(masks)
                cast(Sparsifier, self._static).load_state_dict(old)
            for name, weight in self._weights.items():
                weight.parameter.copy_(values[name])

        return undo
