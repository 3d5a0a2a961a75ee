"""Lottery tickets in any training loop: train, keep the largest weights, rewind, and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import checkpoint, optimizer_state
from .cutting import static_on
from .errors import AttachError, ConfigError
from .hooks import StepHooks
from .method import Method
from .rewinding import (
    Supports,
    Targets,
    check_search,
    dense_supports,
    digest,
    make_folder,
    pack_level,
    path_of,
    prune,
    require_new,
    rewind,
    snapshot,
    unpack_supports,
    weights_of,
)
from .sparsifier import Sparsifier
from .tickets import Tickets

Train = Callable[[nn.Module, Callable[[Any], Sparsifier | None], int, int], object]


@dataclass(frozen=True)
class Ticket:
    """What a search found: nested supports, and the weights to train them from.

    levels: the supports after each pruning, weight name -> `Support`.
    state: parameters and buffers that training starts from, under plain names, on the CPU, not yet zero off the
        supports: those of step epsilon (mode "weights"), or those that the last training ended with.
    start, stop: the steps to train it for; learning rate and data are to be those of `start`.
    """

    levels: tuple[Supports, ...]
    state: Mapping[str, Tensor] = field(repr=False)
    start: int
    stop: int
    targets: Targets = None
    seed: int = 0

    @property
    def supports(self) -> Supports:
        """The supports of the ticket, those of the last level."""
        return self.levels[-1]

    @property
    def densities(self) -> tuple[float, ...]:
        """Active share of the targeted weights after each level."""
        sizes = [(sum(s.count for s in each.values()), sum(s.numel for s in each.values())) for each in self.levels]
        return tuple(active / eligible for active, eligible in sizes)

    def apply(self, model: nn.Module) -> None:
        """Set every parameter and buffer of `model` to `state`, and the inactive weights to zero."""
        rewind(model, self.state, self.supports)

    def method(self) -> Method:
        """The static method on the ticket's supports; give `sparsify` the same targets as the search."""
        return static_on(self.supports)

    def train(self, model: nn.Module, train: Train) -> None:
        """Rewind `model` and train the ticket, by ``train(model, attach, start, stop)`` as in `find_ticket`."""
        self.apply(model)
        with _own_random_state(model, self.seed):
            _train(model, train, _Attach(model, self.supports, self.targets, self.seed), self.start, self.stop)


def find_ticket(
    model: nn.Module,
    train: Train,
    method: Tickets,
    *,
    total_steps: int,
    targets: Targets = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Ticket:
    """Search a ticket, and leave `model` plain, rewound to the ticket's start and zero off its supports.

    Trains `model` dense from step 0 to `total_steps` = T, keeps the active weights of largest magnitude, rewinds, and
    does that again on what is left until the last level. The ticket itself is then trained by `Ticket.train`, or in a
    loop of your own: ``ticket.apply(model)``, ``sparsify(model, ticket.method(), optimizer)``.

    train: called as ``train(model, attach, start, stop)``: trains from step `start` to `stop`, learning rate and data
        as of `start`, and calls ``attach(optimizer)`` once before the first step, with a new optimizer (or a sequence
        of all). `attach` returns the `Sparsifier` that keeps pruned weights zero, None in the dense training.
    method: from `gossamer.methods.lottery`.
    seed: torch's generators are seeded with it before each training, so that all draw alike, and put back afterwards.
    folder: where each finished training leaves ``level-<n>.safetensors``; a search that was killed goes on after the
        last one, bit for bit. Build the model and call as the first time.

    Rewinding sets back every parameter and buffer; optimizers start anew. A step that a GradScaler skips is no step, so
    `train` may make fewer than it is asked for.

    Source: Frankle and Carbin 2019 (1803.03635), Frankle et al. 2020 (1912.05671), Renda et al. 2020 (2003.02389).

    Raises:
        ConfigError: an argument of another kind, a density or rewind that cannot be, a `train` that makes more steps
            than asked or none, a folder that cannot be used or holds another search.
        AttachError: `attach` was called not once, or with optimizers that cannot be used, are not new or lack a
            targeted weight; weights are sharded.
        DivergedError: a trained weight is not finite.
    """
    if not isinstance(method, Tickets):
        raise ConfigError(f"method is {method!r}; a search needs one such as gossamer.methods.lottery(density=0.1)")
    check_search(model, train, total_steps, seed)
    search = _Search(model, train, method, total_steps, targets, seed, path_of(folder))
    for level in range(method.depth):
        if not search.resume(level):
            search.run(level)
    ticket = search.ticket()
    ticket.apply(model)
    return ticket


class _Search:
    """Levels that are trained, or read from the folder, one after the other."""

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        method: Tickets,
        total_steps: int,
        targets: Targets,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.model, self.train, self.method, self.folder = model, train, method, folder
        self.total_steps, self.targets, self.seed = total_steps, targets, seed
        self.start, self.stop = method.again(total_steps)
        self.levels = [dense_supports(model, targets)]
        self.counts = method.counts({name: support.shape for name, support in self.levels[0].items()})
        self.state = snapshot(model)
        self.plan = self._plan() if folder else {}
        if folder:
            make_folder(folder)

    def run(self, level: int) -> None:
        """Train on the supports of the level before (level 0: dense), prune, and save what is new."""
        rewinds = self.method.mode == "weights"
        remember = self.start if rewinds and not level else None
        attach = _Attach(self.model, self.levels[-1], self.targets, self.seed, dense=not level, remember=remember)
        start, stop = (self.start, self.stop) if level else (0, self.total_steps)
        if level:
            rewind(self.model, self.state, self.levels[-1])
        with _own_random_state(self.model, self.seed):
            _train(self.model, self.train, attach, start, stop)
        self.levels.append(prune(self.model, self.levels[-1], self.counts[level]))
        new = attach.remembered if rewinds else snapshot(self.model)
        self.state = self.state if new is None else new
        if self.folder:
            checkpoint.save(
                self._file(level),
                pack_level(self.levels[-1], new),
                kind="level",
                metadata={"plan": self._plan_of(level)},
            )

    def resume(self, level: int) -> bool:
        """Take over a level that was saved; False if it was not."""
        if self.folder is None or not self._file(level).exists():
            return False
        contents = checkpoint.load(self._file(level))
        saved, plan = contents.metadata.get("plan", {}), self._plan_of(level)
        keys = [key for key in plan | saved if saved.get(key) != plan.get(key)]
        changed = [f"{key} {saved.get(key)} -> {plan.get(key)}" for key in keys]
        if changed:
            raise ConfigError(
                f"{self._file(level)} is of another search ({', '.join(changed[:6])}); leave these as they were and "
                "build the model anew, or give another folder"
            )
        device = next(iter(self.levels[0].values())).device
        self.levels.append({name: s.to(device) for name, s in unpack_supports(contents.state).items()})
        self.state = self.state if contents.state["state"] is None else contents.state["state"]
        return True

    def ticket(self) -> Ticket:
        """What was found."""
        return Ticket(tuple(self.levels[1:]), self.state, self.start, self.stop, self.targets, self.seed)

    def _file(self, level: int) -> Path:
        assert self.folder is not None
        return self.folder / f"level-{level + 1}.safetensors"

    def _plan(self) -> dict[str, str]:
        method, names = self.method, ("density", "levels", "keep", "mode", "scope")
        plan = {name: repr(getattr(method, name)) for name in names}
        plan |= {"rewind": str(self.start), "total_steps": str(self.total_steps), "seed": str(self.seed)}
        counts = torch.tensor([list(level.values()) for level in self.counts])
        plan |= {"counts": digest({"": counts}), "initial weights": digest(self.state)}
        return plan | {f"target {name}": str(tuple(support.shape)) for name, support in self.levels[0].items()}

    def _plan_of(self, level: int) -> dict[str, str]:
        return {"level": str(level + 1)} | self.plan


class _Attach:
    """What `train` is given as `attach`: it keeps pruned weights zero, counts steps and remembers one.

    dense: whether nothing is pruned yet. remember: the step after which to take a snapshot. made: steps so far.
    """

    def __init__(
        self,
        model: nn.Module,
        supports: Supports,
        targets: Targets,
        seed: int,
        *,
        dense: bool = False,
        remember: int | None = None,
    ) -> None:
        self._model, self._supports, self._targets, self._seed = model, supports, targets, seed
        self._dense, self._remember, self.made = dense, remember, 0
        self.remembered = snapshot(model) if remember == 0 else None
        self.hooks: StepHooks | None = None
        self._sparsifier: Sparsifier | None = None

    def __call__(self, optimizer: Any) -> Sparsifier | None:
        """Take the optimizers of this training."""
        if self.hooks is not None:
            raise AttachError("attach() was called twice in one training; pass all optimizers in one call")
        optimizers = optimizer_state.usable(optimizer, live=False)
        for name, weight in weights_of(self._model, self._supports).items():
            optimizer_state.owner(name, weight, optimizers)
        require_new(optimizers)
        if not self._dense:
            method = static_on(self._supports)
            self._sparsifier = Sparsifier(self._model, method, optimizers, targets=self._targets, seed=self._seed)
        self.hooks = StepHooks(
            optimizers,
            lambda optimizer: None,
            self._after,
            new_backward=lambda: False,
            abandon=lambda: None,
            one_evaluation=False,
        )
        return self._sparsifier

    def _after(self, optimizer: Optimizer, complete: bool) -> None:
        self.made += complete
        if complete and self.made == self._remember:
            self.remembered = snapshot(self._model)

    def release(self) -> None:
        """Remove every hook."""
        if self.hooks is not None:
            self.hooks.remove()
        if self._sparsifier is not None:
            self._sparsifier.detach()

    def check(self, start: int, stop: int) -> None:
        """Raise if a training from `start` to `stop` cannot have been what was asked for."""
        if self.hooks is None:
            raise AttachError("train() did not call attach(optimizer); call it once, before the first step")
        asked = stop - start
        short = self._remember is not None and self.remembered is None
        if not 0 < self.made <= asked or short:
            reach = f" and pass step {self._remember}, to which the weights are set back" if short else ""
            raise ConfigError(
                f"train(model, attach, {start}, {stop}) made {self.made} optimizer steps; it has to make {asked}{reach}"
            )


def _train(model: nn.Module, train: Train, attach: _Attach, start: int, stop: int) -> None:
    if start == stop:
        return
    try:
        train(model, attach, start, stop)
    finally:
        attach.release()
    attach.check(start, stop)


@contextmanager
def _own_random_state(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, torch's generators start from `seed`; afterwards they are as they were."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
