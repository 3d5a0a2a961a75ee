"""The controller: runs a `Method` on a model through the optimizer's step hooks, and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from . import distributed, optimizer_state, rewiring
from .block_site import BlockSite
from .coverage import Coverage, coverage
from .errors import AttachError, ConfigError, check_seed
from .hooks import StepHooks
from .method import Live, Method
from .nn._two_four import kept
from .seeding import generator_for
from .sites import DenseSite
from .sparse_layer import block_of
from .sparse_methods import check_method
from .sparse_site import SparseSite
from .state import VERSION, check_fits, read_state
from .targets import Candidate, choose
from .topology import Static, Support

Observer = Callable[[int, Mapping[str, Tensor], Mapping[str, Tensor]], None]
_SYNC_EVERY = 100  # selections between two comparisons of supports across ranks
_attached: WeakIdKeyDictionary = WeakIdKeyDictionary()  # Parameter -> name, while a Sparsifier owns it


class Sparsifier:
    """Owns sites, supports, trainable weights and the clock; the only object that changes a model in training."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        total_steps: int | None = None,
        targets: str | type[nn.Module] | Sequence[str | type[nn.Module]] | None = None,
        seed: int = 0,
    ) -> None:
        """As `sparsify` of `gossamer.entry`, which is the way to make one."""
        if not isinstance(method, Method):
            raise ConfigError(f"method is {method!r}; expected a Method such as gossamer.methods.rigl(density=0.1)")
        distributed.refuse(model)
        check_seed(seed)
        self.method, self.seed, self.step = method.resolve(total_steps), seed, 0
        self.total_steps = total_steps
        self._candidates = choose(model, targets, layers=True)
        self.sites = {c.name: self._site(c) for c in self._candidates if c.sparse}
        for name in rewiring.of_layers(self.sites):
            side = block_of(self.sites[name].module)
            check_method(self.method, name, compiled=_compiled(model), block=side)
        self._hooks: StepHooks | None = None
        self._gates: list[RemovableHandle] = []
        self._synced = False
        self._selections = 0
        self._memory: dict[str, dict[str, float]] = {}  # of the rule, by group
        self._observers: dict[int, Observer] = OrderedDict()
        owners = None if optimizer is None else self._owners(optimizer)
        try:
            with torch.no_grad():
                self._start(model)
        except BaseException:
            self._let_go()
            raise
        if owners is not None:
            self._attach(owners)

    def _start(self, model: nn.Module) -> None:
        self.method, first = rewiring.begin(self.method, model, self.sites, self.seed)  # may raise: nothing is touched
        if self.total_steps is not None:  # a density that falls must be feasible to its end
            self.method.counts(rewiring.shapes(self.sites), self.total_steps)
        reach = rewiring.first_reach(self.method, self.sites, self.seed, first)
        for name, site in self.sites.items():
            _attached[site.parameter] = name
            signs = generator_for(self.seed, name, "sign") if "sign" in self.method.needs else None
            site.start(first.get(name), self.method.needs, signs)  # a sparse layer has its own
            self._gates += site.install()
        for name, mask in reach.items():
            site = self.sites[name]
            assert isinstance(site, DenseSite)  # reach is of live methods, which sparse layers refuse
            site.traits.set_reach(mask)
        self._synchronise()
        self._arm_gates()

    def _site(self, candidate: Candidate) -> rewiring.AnySite:
        if candidate.parameter in _attached:
            raise AttachError(
                f"{candidate.name} is sparsified already; call detach() on its Sparsifier before sparsify() again"
            )
        if candidate.parameter.is_meta:
            raise AttachError(f"{candidate.name} is on the meta device and has no values; materialise the model first")
        if self.method.structure.single and isinstance(candidate.module, _ConvTransposeNd):
            raise ConfigError(
                f"{candidate.name} is the weight of a transposed convolution, whose first dimension holds its inputs; "
                f"{self.method.structure.name} counts per output: leave it out with targets"
            )
        held = candidate.name, candidate.module, candidate.attribute, candidate.parameter, self.method.inactive
        if candidate.layer is not None:
            kind = SparseSite if block_of(candidate.layer) is None else BlockSite
            return kind(*held, rewires=not isinstance(self.method.rule, Static))
        fixed = isinstance(self.method.rule, Static)
        return DenseSite(*held, two_four=(True, True) if fixed else kept(self.method.structure))

    # -- what users read --

    @property
    def supports(self) -> Mapping[str, Support]:
        """Weight name -> its current `Support`."""
        return MappingProxyType({name: site.support() for name, site in self.sites.items()})

    def summary(self) -> Coverage:
        """Coverage table: every parameter, sparse or dense and why, count, density, bytes. `print` it."""
        return coverage(self._candidates, self.sites)

    def __repr__(self) -> str:
        table = self.summary()
        return (
            f"Sparsifier({self.method.name}, step={self.step}, weights={len(self.sites)}, "
            f"active={table.active}/{table.eligible})"
        )

    def watch(self, observer: Observer) -> RemovableHandle:
        """Call ``observer(step, before, after)`` after every rewiring, until the handle is `remove`d.

        step: completed optimizer steps. before, after: weight name -> bool mask, read-only. Observers are not saved.
        """
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = observer
        return handle

    # -- attaching --

    def attach(self, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        """Register step hooks on the optimizer(s) that train the sparse weights, in place of any earlier ones.

        Needed again after `copy.deepcopy(optimizer)`, which drops hooks, and when an optimizer is rebuilt.

        Raises:
            AttachError: it is attached already, a sparse weight is in none (or several) of them, one cannot be used,
                or `detach` was called.
        """
        if not self._gates:
            raise AttachError(
                "this Sparsifier was detached; call sparsify() again, init=Given(supports) keeps supports"
            )
        plan = self._owners(optimizer)
        if self._hooks is not None:
            if any(new is old for new in plan[0] for old in self._hooks.optimizers):
                raise AttachError("this Sparsifier is attached to that optimizer already; leave the second call out")
            self.restore()
            self._hooks.remove()
        self._attach(plan)

    def _owners(self, optimizer: Any) -> tuple[list[Optimizer], dict[str, Optimizer]]:
        """The optimizers, and which of them steps each site; changes nothing."""
        optimizers = optimizer_state.usable(optimizer, live=isinstance(self.method.inactive, Live))
        owners = {n: optimizer_state.owner(n, site.parameter, optimizers) for n, site in self.sites.items()}
        for name, site in self.sites.items():
            site.check_optimizer(owners[name], self.method.needs)
        return optimizers, owners

    def _attach(self, plan: tuple[list[Optimizer], dict[str, Optimizer]]) -> None:
        optimizers, owners = plan
        for name, site in self.sites.items():
            site.take_optimizer(owners[name])
        live = isinstance(self.method.inactive, Live)
        self._hooks = StepHooks(
            optimizers,
            self._before_update,
            self._after_update,
            new_backward=self._new_backward,
            abandon=self._forget_gradients,
            one_evaluation=live,
        )
        self._arm_gates()

    def detach(self) -> None:
        """Remove every hook; the model stays as it is, plain and sparse. Training it further will revive weights."""
        self.restore()
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
        self._let_go()

    def _let_go(self) -> None:
        for handle in self._gates:
            handle.remove()
        self._gates = []
        for site in self.sites.values():
            site.release()
            _attached.pop(site.parameter, None)

    def _new_backward(self) -> bool:
        arrived = [site.gate.take_arrival() for site in self.sites.values()]
        return any(arrived)

    def _forget_gradients(self) -> None:
        for site in self.sites.values():
            site.forget_gradient()

    def __deepcopy__(self, memo: object) -> Sparsifier:
        raise AttachError(
            "a Sparsifier holds hooks of its model and optimizer and cannot be copied; copy the model, call sparsify() "
            "on the copy and load_state_dict(this.state_dict())"
        )

    def __reduce__(self) -> str:
        raise AttachError("a Sparsifier holds hooks and cannot be pickled; save its state_dict()")

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model sparse again after an exception inside `optimizer.step()`, and forget that step."""
        for site in self.sites.values():
            site.abandon_step()
        if self._hooks is not None:
            self._hooks.reset()

    # -- one optimizer step --

    def _before_update(self, optimizer: Optimizer) -> None:
        if not self._synced:
            self._synchronise()
        own = self._own(optimizer)
        for site in own:
            site.check_identity()
            if site.handed_over:
                raise AttachError(
                    "the last optimizer.step() did not finish (it raised); call sparsifier.restore() before going on"
                )
        growing, consume = self._growing(), self.method.at == "replace"
        for site in own:
            if growing:
                site.stash_gradient(optimizer_state.gradient_scale(optimizer))
            site.gate.close()
            site.add_decay(optimizer_state.gradient_scale(optimizer))
            site.hand_over()
        if growing and consume:  # no parameter of this optimizer moves
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _after_update(self, optimizer: Optimizer, complete: bool) -> None:
        own, action = self._own(optimizer), self.method.action
        for site in own:
            if action is not None and isinstance(site, DenseSite):
                site.act_on_active(action, generator_for(self.seed, site.name, f"action {self.step}"))
            site.act_on_inactive(self.step)
        if complete:
            self._complete_step()
        for site in self.sites.values() if complete else own:
            site.show_sparse()

    def _complete_step(self) -> None:
        replace = self.method.at == "replace"
        if replace and self._due(self.step):
            self._rewire(self.step)
        self.step += 1
        if not replace and self._due(self.step):
            self._rewire(self.step)
        self._arm_gates()

    def _own(self, optimizer: Optimizer) -> list[rewiring.AnySite]:
        return [site for site in self.sites.values() if site.optimizer is optimizer]

    def _due(self, step: int) -> bool:
        if not self.method.clock.due(step):
            return False
        inactive = self.method.inactive
        if isinstance(inactive, Live):
            return inactive.exploit is None or not inactive.exploit.frozen(step - 1)
        return step != self.total_steps or self.method.rule.final is not None

    def _growing(self) -> bool:
        """Whether the gradient of the current step decides where to grow."""
        if "grad" not in self.method.rule.needs:
            return False
        return self._due(self.step if self.method.at == "replace" else self.step + 1)

    def _arm_gates(self) -> None:
        growing = self._growing()
        for site in self.sites.values():
            site.arm(growing=growing)

    def _rewire(self, step: int) -> None:
        before = self._whole_masks() if self._observers else {}
        rewiring.rewire(self._method_at(step), self.sites, self.seed, step, self._memory)
        self._selections += 1
        if self._observers:
            after = self._whole_masks()
            for observer in list(self._observers.values()):
                observer(step, before, after)
        frequent = isinstance(self.method.inactive, Live)
        if distributed.active() and not (frequent and self._selections % _SYNC_EVERY):
            distributed.check_supports(self.sites, step)

    def _method_at(self, step: int) -> Method:
        """After the last update a rule that grows does only what still makes sense."""
        last = self.method.rule.final if step == self.total_steps and self.method.at == "after" else None
        return self.method if last is None else replace(self.method, rule=last)

    def _whole_masks(self) -> dict[str, Tensor]:
        return {name: site.whole_mask() for name, site in self.sites.items()}

    def _synchronise(self) -> None:
        """Take rank 0's supports and trainable weights: a rank that was initialised differently has others."""
        if distributed.active():
            for site in self.sites.values():
                site.synchronise()
            self._synced = True

    # -- saving --

    def state_dict(self) -> dict[str, Any]:
        """Supports, trainable weights, clock and seed: everything that is needed to go on exactly.

        Holds tensors, numbers, strings and dicts only, so `torch.load(weights_only=True)` reads it.

        Raises:
            AttachError: an optimizer step raised and left the model dense; call `restore()` first.
        """
        if any(site.handed_over for site in self.sites.values()):
            raise AttachError("the last optimizer.step() did not finish; call sparsifier.restore() before saving")
        trainables = {name: site.whole_trainable() for name, site in self.sites.items()}
        return {
            "version": VERSION,
            "method": self.method.name,
            "seed": self.seed,
            "step": self.step,
            "total_steps": self.total_steps,
            "selections": self._selections,
            "supports": {name: site.support().compact().state() for name, site in self.sites.items()},
            "trainables": {name: value for name, value in trainables.items() if value is not None},
            "traits": {name: site.saved_traits() for name, site in self.sites.items()},
            "memory": {group: dict(values) for group, values in self._memory.items()},
            "held": self.method.held,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` saved, of the same model and method; weights become sparse accordingly.

        Everything is checked before anything changes. Arguments that change no count (`every`, `scale`...) may differ.

        Raises:
            CheckpointError: the state is damaged, or of another model, method, density or length of training.
        """
        saved = read_state(state)
        method = self.method.holding(saved["held"]) if saved["held"] and self.method.held else self.method
        check_fits(saved, method, self.total_steps, self.sites)
        self.method = method
        for name, site in self.sites.items():
            site.load(saved["supports"][name], saved["trainables"].get(name), saved["traits"][name])
        self._memory = saved["memory"]
        self.seed, self.step, self._selections = saved["seed"], saved["step"], saved["selections"]
        self._arm_gates()


def _compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
