"""Ticket search by continuous sparsification: rounds of soft gates, then the weights of an early step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .cutting import static_on
from .errors import AttachError, ConfigError
from .learned import LearnedSparsifier
from .masking import keep_on
from .method import Method
from .reparametrise import Learned, SoftGate
from .rewinding import check_search
from .targets import canonical
from .topology import Support
from .topology.schedules import check_time, to_step

Train = Callable[[nn.Module, Callable[[Any], LearnedSparsifier], int, int], object]


@dataclass(frozen=True)
class GateTicket:
    """What a search found.

    supports: weight name -> Support. state: state dict of the rewound model under plain names, zero off the supports.
    step: of the first round that `state` is of; train from there.
    """

    supports: Mapping[str, Support]
    state: Mapping[str, Tensor] = field(repr=False)
    step: int

    @property
    def density(self) -> float:
        """Active share of the targeted weights."""
        return sum(s.count for s in self.supports.values()) / sum(s.numel for s in self.supports.values())

    def apply(self, model: nn.Module) -> None:
        """Load the rewound weights and buffers into a plain model."""
        names = {canonical(name): name for name in model.state_dict()}
        model.load_state_dict({names[name]: value for name, value in self.state.items()})

    def method(self) -> Method:
        """The static method that trains the ticket: `apply`, then ``sparsify(model, ticket.method(), ...)``."""
        return static_on(self.supports)


def find_ticket_cs(
    model: nn.Module,
    train: Train,
    method: Learned,
    *,
    total_steps: int,
    rounds: int = 3,
    rewind: int | float = 2 / 85,
    targets: str | type[nn.Module] | Sequence[str | type[nn.Module]] | None = None,
    seed: int = 0,
) -> GateTicket:
    """Search a ticket with soft gates, and leave `model` plain and rewound, its weights zero off the ticket.

    Each round trains weights and gates from step 0 to `total_steps`, beta from 1 to B. Between rounds weights go on as
    they are, ``s <- min(B s, s0)`` and beta <- 1: what was suppressed stays so. At the end H = [s > 0] (or, with a
    density, the round(d N) largest s), and weights and buffers are those of step `rewind` of the first round, times H.

    train: called as ``train(model, attach, start, stop)``: trains from step `start` to `stop`, learning rate and data
        as of `start`, and calls ``attach(optimizer)`` once, with a new optimizer over ``model.parameters()``. It may
        make fewer steps, as where a GradScaler skips some. `attach` returns the controller.
    method: from `gossamer.methods.cs`; its `finalize` is not used, gates are soft for whole rounds.
    rewind: step, or fraction of `total_steps`; the default is epoch 2 of 85.

    Source: Savarese et al. 2020 (1912.04427), ticket search. Deviations: beta per step, not per epoch; the published
    code resets beta before it clamps s, which lets suppressed gates come back, and doubles kept weights at s0 = 0.

    Raises:
        ConfigError: method without soft gates, rounds or rewind out of range, `train` makes no step or more than asked,
            an argument of another kind.
        AttachError: `train` adds, removes or replaces a module or parameter, or `attach` cannot use the optimizer.
    """
    if not isinstance(method, Learned) or not isinstance(method.gate, SoftGate):
        raise ConfigError(f"method is {method!r}; a search needs soft gates: gossamer.methods.cs(density=None)")
    if type(rounds) is not int or rounds < 1:
        raise ConfigError(f"rounds={rounds!r}: expected a whole number of rounds, >= 1")
    check_search(model, train, total_steps, seed)
    check_time("rewind", rewind)
    step = to_step("rewind", rewind, total_steps)
    if step >= total_steps:
        raise ConfigError(f"rewind={rewind!r}: expected a step below {total_steps}, or a fraction of training below 1")
    whole = dataclasses.replace(method, finalize=total_steps)
    search = _Search(model, whole, step, total_steps=total_steps, targets=targets, seed=seed)
    try:
        for number in range(rounds):
            train(model, search.attach_and_return, 0, total_steps)
            search.end_round(last=number == rounds - 1)
    finally:
        search.detach()
    return _rewound(model, search, step)


@torch.no_grad()
def _rewound(model: nn.Module, search: _Search, step: int) -> GateTicket:
    supports = dict(search.supports)
    for name, support in supports.items():
        keep_on(support.mask, search.early[name], out=search.early[name])
    ticket = GateTicket(supports, search.early, step)
    ticket.apply(model)
    return ticket


class _Search(LearnedSparsifier):
    """Rounds of soft gates on one model. early: its plain state after `rewind` steps of the first."""

    def __init__(self, model: nn.Module, method: Learned, rewind: int, **settings: Any) -> None:
        super().__init__(model, method, **settings)
        self._rewind = rewind
        self._names, self._parameters = set(model.state_dict()), dict(model.named_parameters())
        self.early = self._plain_state() if rewind == 0 else {}

    def attach_and_return(self, optimizer: Any) -> _Search:
        """What `train` calls."""
        self.attach(optimizer)
        return self

    def _before_update(self, optimizer: Optimizer) -> None:
        if self.step == self.total_steps:
            raise ConfigError(
                f"train(model, attach, start, stop) makes more than the {self.total_steps} steps asked for"
            )
        super()._before_update(optimizer)

    def _after_update(self, optimizer: Optimizer, complete: bool) -> None:
        super()._after_update(optimizer, complete)
        if complete and not self.early and self.step == self._rewind:
            self.early = self._plain_state()

    def _end(self) -> None:
        """Nothing: a round ends when `train` returns."""

    @torch.no_grad()
    def end_round(self, *, last: bool) -> None:
        """Cut the gates, or clamp them for another round."""
        if self.step == 0:
            raise ConfigError("train(model, attach, start, stop) made no step with the optimizer it gave to attach()")
        if not self.early:
            raise ConfigError(f"train(model, attach, start, stop) made fewer steps than rewind={self._rewind}")
        self._check_model()
        if last:
            self.finalize()
            return
        gate = self.method.gate
        for weight in self._weights.values():
            weight.s.data.mul_(gate.last_beta).clamp_(max=gate.initial_value)
            weight.momentum = None
        self._soft_steps = 0
        self._set_beta()

    def _check_model(self) -> None:
        """Raise if `train` left another model than it was given."""
        now = dict(self._model.named_parameters())
        odd = self._names ^ set(self._model.state_dict())
        odd |= {name for name, parameter in self._parameters.items() if now.get(name) is not parameter}
        if odd:
            raise AttachError(
                f"train() added, removed or replaced {', '.join(sorted(odd)[:3])}; build the whole model before "
                "find_ticket_cs(), and train it as it is"
            )

    def _plain_state(self) -> dict[str, Tensor]:
        """A copy of the model's state without gates, w under its plain name."""
        plain: dict[str, Tensor] = {}
        ours = {}
        for name in self._weights:
            path, dot, attribute = name.rpartition(".")
            ours[f"{path}{dot}parametrizations.{attribute}."] = name
        for key, value in self._model.state_dict().items():
            head, original, _ = canonical(key).rpartition("original")
            prefix = next((prefix for prefix in ours if canonical(key).startswith(prefix)), None)
            if prefix is None:
                plain[canonical(key)] = value.clone()
            elif original and head == prefix:
                plain[ours[prefix]] = value.clone()
        return plain
