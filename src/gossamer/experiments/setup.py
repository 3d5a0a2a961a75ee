"""What the training loop works with: a checked plan, then model, optimizers and sparsifier, in that order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..analysis import Exploration
from ..checkpoint import load_training, save_training
from ..coverage import Coverage, coverage
from ..entry import sparsify
from ..errors import ConfigError
from ..learned import LearnedSparsifier
from ..method import Method
from ..reparametrise import Learned
from ..sparsifier import Sparsifier
from ..subspace import SubspaceModel
from ..targets import choose
from ..tickets import Tickets
from . import data, execution, first_support, fixed, models
from .computing import check_device
from .config import ResolvedConfig, RunConfig, build_method, parse_targets, typed_options
from .optimizers import build_optimizers, build_schedulers, rate_factor
from .recipes import resolve
from .tasks import TASKS, Task, Totals


@dataclass(frozen=True)
class Round:
    """One training of a run: the only one, or one of several where a lottery ticket is searched.

    start, stop: its steps, which learning rate and data go by. total: optimizer steps of all rounds. number: from 0;
    None if it is the only one. done, rows: optimizer steps and rows of metrics.jsonl of the rounds before.
    weights: what the model starts from; None: its init.
    """

    start: int
    stop: int
    total: int
    number: int | None = None
    done: int = 0
    rows: tuple[dict[str, Any], ...] = ()
    weights: Mapping[str, Tensor] | None = None

    def made(self, step: int) -> int:
        """Optimizer steps of the whole run when this round is at `step`."""
        return self.done + step - self.start

    @property
    def beginning(self) -> tuple[int, list[dict[str, Any]], float]:
        """The step, the rows so far and the seconds spent, before it."""
        return self.start, list(self.rows), self.rows[-1]["seconds"] if self.rows else 0.0


@dataclass(frozen=True)
class Plan:
    """A resolved and checked run: nothing in it has been trained or written yet. round: the one to train now."""

    config: ResolvedConfig
    dataset: data.Dataset
    method: Method | Learned | Tickets | None
    task: Task
    round: Round

    def rate(self, step: int) -> float:
        """Factor on the peak learning rate; behind the end of the schedule the last one stays."""
        return rate_factor(self.config)(min(step, self.config.steps - 1))


def named_method(config: RunConfig) -> Method | Learned | Tickets | None:
    """The method of `config`; raises ConfigError if it, or an option of it, the model or the data, cannot be."""
    method = build_method(config)
    first_support.check(config, method)
    fixed.check(config, method)
    typed_options(config.model_options, models.model_options(config.model), f"model {config.model}")
    typed_options(config.data_options, data.data_options(config.data), f"data set {config.data}")
    if config.mask_data is not None:
        known = data.data_options(config.mask_data)
        typed_options(config.mask_data_options, known, f"data set {config.mask_data}")
    return method


def make_plan(config: RunConfig, dataset: data.Dataset | None = None) -> Plan:
    """Check every name and value of `config`, load its data unless given, and fill in what the recipe says."""
    method = named_method(config)
    if dataset is None:
        dataset = data.load(config.data, valid_fraction=config.valid_fraction, **config.data_options)
    resolved = resolve(config, dataset)
    check_device(resolved.device)
    execution.check(resolved, method)
    dataset.train.batch(0, resolved.batch_size, seed=resolved.seed)  # raises if there is no such batch
    first = _first_round(method, resolved.steps)
    return Plan(resolved, dataset.to(resolved.device), method, TASKS[dataset.task], first)


def _first_round(method: Method | Learned | Tickets | None, steps: int) -> Round:
    if not isinstance(method, Tickets):
        return Round(0, steps, steps)
    start, stop = method.again(steps)
    if start == stop:
        raise ConfigError(
            f"rewind = {method.rewind!r} of {steps} steps leaves none to train the ticket; use an earlier one"
        )
    return Round(0, steps, steps + method.depth * (stop - start), number=0)


@dataclass
class Parts:
    """The mutable side of a run: what `build_parts` makes and a training checkpoint holds.

    reference: coverage of the reference model, whose eligible weights densities refer to. own: that of the model as
    long as nothing makes it sparse. small: for the SMALL control, its width, its parameters and the ratio of
    sparse-able weights it reached. choices: how its sparse weights are computed with. exploration: watches the
    sparsifier. step_seconds: of every optimizer step in this process.
    """

    model: nn.Module
    optimizers: list[Optimizer]
    schedulers: list[LambdaLR]
    scaler: GradScaler
    sparsifier: Sparsifier | LearnedSparsifier | None
    reference: Coverage
    own: Coverage
    targets: str | list[str] | None
    small: dict[str, float] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    choices: tuple[execution.Choice, ...] = ()
    step_seconds: list[float] = field(default_factory=list)
    exploration: Exploration | None = field(init=False)

    def __post_init__(self) -> None:
        self.exploration = Exploration(self.sparsifier, self.model) if self.sparsifier else None

    def coverage(self) -> Coverage:
        """Coverage table of the model as it is now."""
        return self.sparsifier.summary() if self.sparsifier else self.own

    def leave_subspace(self) -> None:
        """Make the model an ordinary one again, with the weights that it computes with; training is over."""
        if isinstance(self.model, SubspaceModel):
            self.model = self.model.finalize()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def density(self) -> float:
        """Active share of the reference model's eligible weights."""
        return self.coverage().active / self.reference.eligible

    def save(self, path: Path, step: int, rows: list[dict[str, Any]], seconds: float) -> None:
        """Write everything that the rest of the run depends on; `rows` are those of metrics.jsonl."""
        device = self.device
        extra = {
            "step": step,
            "seconds": seconds,
            "rows": rows,
            "totals": asdict(self.totals),
            "exploration": self.exploration.state_dict() if self.exploration else None,
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        save_training(path, model=self.model, optimizers=self.optimizers, sparsifier=self.sparsifier, extra=extra)

    def restore(self, path: Path) -> tuple[int, list[dict[str, Any]], float] | None:
        """Take over a checkpoint; returns the step, the rows so far and the seconds spent, None if there is none."""
        if not path.exists():
            return None
        extra = load_training(path, model=self.model, optimizers=self.optimizers, sparsifier=self.sparsifier)
        for scheduler, state in zip(self.schedulers, extra["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        self.scaler.load_state_dict(extra["scaler"])
        self.totals = Totals(**extra["totals"])
        if self.exploration:
            self.exploration.load_state_dict(extra.get("exploration"))
        torch.set_rng_state(extra["rng"])
        if extra["cuda_rng"] is not None:
            torch.cuda.set_rng_state(extra["cuda_rng"], self.device)
        return extra["step"], extra["rows"], extra["seconds"]


def build_parts(plan: Plan) -> Parts:
    """Build model, optimizers and sparsifier; init depends on the seed alone, so all methods share it.

    The first round of a ticket method is dense and has no sparsifier.
    """
    config, targets, method = plan.config, parse_targets(plan.config.targets), plan.method
    model = _initial_model(plan, config.seed)
    reference, small = coverage(choose(model, targets), {}), dict[str, float]()
    if config.method == "small":
        model, small = _small(plan, reference)
    model, targets, own = fixed.apply(model, config, targets)
    with _fits_memory(config):
        model.to(config.device)
    if plan.round.weights is not None:
        model.load_state_dict(plan.round.weights)
    if isinstance(method, Method):
        model, method = first_support.prepare(method, config, plan.dataset, model, lambda: _redrawn(plan), targets)
    if plan.round.number is None:
        model, method, choices = execution.apply(model, method, config, plan.dataset, targets)
    else:
        choices = execution.of_tickets(config)
    optimizers = build_optimizers(model, config)
    schedulers = _schedulers(plan, optimizers)
    sparsifier = None
    if isinstance(method, Tickets):
        method.counts({row.name: row.shape for row in reference.rows if row.sparse})  # raises if it cannot be
    elif method is not None:
        sparsifier = sparsify(model, method, optimizers, total_steps=config.steps, targets=targets, seed=config.seed)
        fixed.warn_of_still_weights(sparsifier)
    scaler = GradScaler(torch.device(config.device).type, enabled=config.amp == "fp16")
    torch.manual_seed(config.seed)  # dropout starts alike for models that drew differently
    return Parts(model, optimizers, schedulers, scaler, sparsifier, reference, own, targets, small, choices=choices)


def _initial_model(plan: Plan, seed: int) -> nn.Module:
    config = plan.config
    torch.manual_seed(seed)
    with _fits_memory(config):
        return models.build(config.model, plan.dataset, **config.model_options)


def _redrawn(plan: Plan) -> nn.Module:
    """The model with initial weights that no run of a study has: for the control "reinit"."""
    model = _initial_model(plan, data.batches.keyed_generator("reinit", plan.config.seed).initial_seed())
    return model.to(plan.config.device)


def _schedulers(plan: Plan, optimizers: list[Optimizer]) -> list[LambdaLR]:
    start = plan.round.start
    if start == 0:
        return build_schedulers(optimizers, plan.config)
    return [LambdaLR(optimizer, lambda made: plan.rate(start + made)) for optimizer in optimizers]


@contextmanager
def _fits_memory(config: ResolvedConfig) -> Iterator[None]:
    """What torch says about sizes it cannot allocate, as a ConfigError."""
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        why = " ".join(str(error).split())[:100]
        options = ", ".join(f"{name}={value}" for name, value in config.model_options.items()) or "its defaults"
        raise ConfigError(f"cannot build model {config.model} with {options} on {config.device}: {why}") from error


def _small(plan: Plan, reference: Coverage) -> tuple[nn.Module, dict[str, float]]:
    config = plan.config
    target = round(config.density * reference.eligible)
    torch.manual_seed(config.seed)
    model, ratio, width = models.small_twin(config.model, plan.dataset, target, **config.model_options)
    return model, {"width": width, "ratio": ratio, "parameters": sum(p.numel() for p in model.parameters())}
