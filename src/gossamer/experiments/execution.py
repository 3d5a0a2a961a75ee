"""How a run's sparse weights are computed with: masked, by layers of a layout, or by what was measured as faster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _two_four
from ..analysis import sanity
from ..conversion import convert
from ..errors import CheckpointError, ConfigError
from ..foresight import Saliency
from ..method import Given, Method
from ..nn.convert import conversion_report
from ..reparametrise import Learned
from ..sparse_methods import Refusal, refusal
from ..starting import start_supports
from ..tickets import Tickets
from ..topology.structures import Block
from . import data
from .config import ResolvedConfig
from .runs import write_atomically

Targets = str | list[str] | None
Started = Method | Learned | Tickets | None


@dataclass(frozen=True)
class Choice:
    """What executes a weight ("all": every one): "masked" or the layout of a layer; why, with measured figures."""

    weight: str
    layout: str
    why: str


def check(config: ResolvedConfig, method: object) -> None:
    """Raise ConfigError if the run cannot be executed as it asks; "auto" falls back on what can be."""
    if config.execution in ("masked", "auto"):
        return
    problem = _problem(config, method, config.execution)
    if problem:
        others = "masked" if _problem(config, method, "hybrid") else "hybrid, masked"
        way = f"--execution {others}, or auto for whatever is possible"
        raise ConfigError(f"execution = {config.execution!r}: {problem.told(way)}")


def of_tickets(config: ResolvedConfig) -> tuple[Choice, ...]:
    """What is chosen in the rounds towards a ticket, which prune dense weights, and of the ticket itself."""
    return () if config.execution == "masked" else (Choice("all", "masked", _finds_by_training(config)),)


def _finds_by_training(config: ResolvedConfig) -> str:
    return f"method {config.method!r} trains dense weights to find what to keep"


def _problem(config: ResolvedConfig, method: object, layout: str) -> Refusal | None:
    """Why no layer of this layout can serve the run, None if one can."""
    if method is None:
        return Refusal(f"the control {config.method!r} has no zeros to leave out")
    if not isinstance(method, Method):
        return Refusal(_finds_by_training(config))
    if layout == "semi_structured":
        return _odd_for_two_four(method)
    if layout == "block" and not (isinstance(method.structure, Block) and len(set(method.structure.shape)) == 1):
        return _odd_structure(method, "square blocks", "--set structure=block:16")
    if layout != "block" and not config.device.startswith("cpu"):
        return Refusal(f"sparse layers compute on the CPU, not on {config.device!r}", "--device cpu")
    if layout in ("sparse", "block") and config.optimizer == "muon":
        return Refusal("muon orthogonalises whole matrices, and a sparse layer has none", "--optimizer sgd or adamw")
    return refusal(method, blocks=layout == "block") if layout in ("sparse", "block") else None


def _odd_for_two_four(method: Method) -> Refusal | None:
    try:
        _two_four.check(method)
    except ConfigError:
        return _odd_structure(method, "2:4 along inputs", "--set structure=nm:2,4")
    return None


def _odd_structure(method: Method, expected: str, instead: str) -> Refusal:
    return Refusal(f"its supports have the structure {method.structure.name}, not {expected}", instead)


def apply(
    model: nn.Module, method: Started, config: ResolvedConfig, dataset: data.Dataset, targets: Targets
) -> tuple[nn.Module, Started, tuple[Choice, ...]]:
    """The model with its layers swapped as the run asks, the method to start with, and what was chosen for each weight.

    Of a method that scores weights, the first supports are found here, in the dense model. What "auto" chose is read
    from the run's folder, where there is something: a resumed run must not measure, and choose, anew.
    """
    if config.execution == "masked":
        return model, method, ()
    layout = config.execution
    if layout == "auto":
        layout = "hybrid" if isinstance(method, Method) and refusal(method) else "sparse"
    problem = _problem(config, method, layout)
    if problem or not isinstance(method, Method):
        return model, method, (Choice("all", "masked", problem.why if problem else ""),)
    if isinstance(method.init, Saliency):
        found = sanity.first_supports(model, method, total_steps=config.steps, targets=targets, seed=config.seed)
        method = replace(method, init=Given(found))
    kept = _kept(config) if config.execution == "auto" else None
    if kept is not None:
        return _again(model, method, config, targets, kept), method, kept
    given: dict[str, Any] = {"targets": targets, "seed": config.seed, "total_steps": config.steps}
    if config.execution == "auto":
        x, _ = dataset.train.batch(0, config.batch_size, seed=config.seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.amp == "bf16"):  # which dense layer is to be beaten
            model = convert(model, method, layout="auto", batch=x, **given)
    else:
        model = convert(model, method, layout=layout, **given)
    return model, method, _choices(model)


def _again(
    model: nn.Module, method: Method, config: ResolvedConfig, targets: Targets, kept: Sequence[Choice]
) -> nn.Module:
    """Swap what was swapped when the run began."""
    layouts = {choice.weight: choice.layout for choice in kept if choice.layout != "masked"}
    if not layouts:
        return model
    found = start_supports(model, method, targets, config.seed, config.steps)
    odd = sorted(set(layouts) - set(found)) or sorted(set(layouts.values()) - {"sparse", "hybrid"})
    if odd:
        raise CheckpointError(f"{_file(config)} names {odd[0]!r}, which the run does not have; delete the run's folder")
    layout: Any = next(iter(layouts.values()))
    return convert(model, {name: found[name] for name in layouts}, layout=layout)


def _choices(model: nn.Module) -> tuple[Choice, ...]:
    report = conversion_report(model)
    told = report.choices if report else ()
    return tuple(Choice(c.name, "masked" if c.layout == "dense" else c.layout, c.why) for c in told)


def _file(config: ResolvedConfig) -> Path:
    return Path(config.out) / "execution.json"


def keep(config: ResolvedConfig, choices: Sequence[Choice]) -> None:
    """Write what "auto" chose to the run's folder, if it is not there yet."""
    path = _file(config)
    if config.execution == "auto" and not path.exists():
        write_atomically(path, json.dumps([asdict(choice) for choice in choices], indent=1) + "\n")


def _kept(config: ResolvedConfig) -> tuple[Choice, ...] | None:
    path = _file(config)
    if not path.exists():
        return None
    try:
        kept = tuple(Choice(**values) for values in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not say how the run was executed: {error}; delete the run's folder"
        ) from None
    return kept
