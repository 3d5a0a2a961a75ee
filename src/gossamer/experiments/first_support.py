"""The first support of a run: data for what scores the weights, sanity checks, and a copy of it in the run's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .. import checkpoint
from ..analysis import sanity
from ..errors import ConfigError
from ..foresight import Examples, Ones, Saliency, approximate_isometry, effective_counts, rescale_fan_in
from ..method import Given, Method, Zero
from ..rewinding import pack_level, unpack_supports
from ..tickets import Tickets
from ..topology import Support
from . import data
from .config import ResolvedConfig, RunConfig


def check(config: RunConfig, method: object) -> None:
    """Raise ConfigError if the run has no first support that control, mask_data or kept_weights could act on."""
    control, init = config.control, getattr(method, "init", None)
    if config.mask_data is not None and not (isinstance(init, Saliency) and init.objective.data == "examples"):
        raise ConfigError(f"mask_data = {config.mask_data!r}: method {config.method!r} scores no weights on examples")
    if config.kept_weights is not None and not (isinstance(method, Method) and isinstance(method.inactive, Zero)):
        raise ConfigError(
            f"kept_weights = {config.kept_weights!r}: method {config.method!r} does not start from a few weights, the "
            "others zero; use it with static, snip, set, rigl and their like"
        )
    if control is None and config.kept_weights is None:
        return
    what, problem = f"control = {control!r}" if control else f"kept_weights = {config.kept_weights!r}", None
    if isinstance(method, Method):
        if control == "invert":
            sanity.invert(method)  # raises if it cannot be
        problem = "starts dense, without a first support" if method.starts_dense else None
    elif isinstance(method, Tickets):
        problem = "prunes trained weights, there are no initial scores to invert" if control == "invert" else None
    else:
        problem = "has no first support to check"
    if problem:
        raise ConfigError(f"{what}: method {config.method!r} {problem}")


@dataclass(frozen=True)
class TrainBatches:
    """Batches of training examples in the order of the run's own training, without end."""

    split: Any
    batch_size: int
    seed: int

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            yield self.split.batch(number, self.batch_size, seed=self.seed)
            number += 1


def bound(method: Method, config: ResolvedConfig, dataset: data.Dataset) -> Method:
    """The method, what scores the weights given training examples (of `mask_data`) and the shape of an input."""
    init = method.init
    if not isinstance(init, Saliency):
        return method
    source = dataset
    if config.mask_data is not None:
        source = data.load(config.mask_data, valid_fraction=config.valid_fraction, **config.mask_data_options)
        source = source.to(config.device)
        if (source.input_shape, source.classes) != (dataset.input_shape, dataset.classes):
            raise ConfigError(
                f"mask_data = {config.mask_data!r} has inputs of {source.input_shape} and {source.classes} classes, "
                f"{config.data} of {dataset.input_shape} and {dataset.classes}; add e.g. --set mask_data.pool=2"
            )
    split = source.train
    if isinstance(split, data.Examples):
        split = dataclasses.replace(split, augmented=False)
    examples = Examples(TrainBatches(split, config.batch_size, config.seed))
    return dataclasses.replace(method, init=init.bound(examples, _ones(dataset)))


def prepare(
    method: Method,
    config: ResolvedConfig,
    dataset: data.Dataset,
    model: nn.Module,
    redrawn: Callable[[], nn.Module],
    targets: str | list[str] | None,
) -> tuple[nn.Module, Method]:
    """The model that trains and the method it starts with, the run's sanity check done.

    redrawn: returns the model with other initial weights. What an interrupted run started from is read from its folder.
    """
    method, found = bound(method, config, dataset), read(config)
    if config.control == "invert":
        method = sanity.invert(method)
    if found is None and config.control not in ("shuffle", "reinit") and config.kept_weights is None:
        return model, method
    if found is None:
        found = sanity.first_supports(model, method, total_steps=config.steps, targets=targets, seed=config.seed)
        if config.control == "shuffle":
            found = sanity.shuffle(found, config.seed, method.structure)
    if config.control == "reinit":
        model = redrawn()
    if config.kept_weights == "isometry":
        approximate_isometry(model, found)
    elif config.kept_weights == "fan-in":
        rescale_fan_in(model, found)
    return model, dataclasses.replace(method, init=Given(found))


def file_of(config: ResolvedConfig) -> Path:
    """Where the first supports of a run are kept, if finding them took more than drawing them."""
    return Path(config.out) / "first-support.safetensors"


def read(config: ResolvedConfig) -> dict[str, Support] | None:
    """The first supports of the run in its folder; None if it has none yet."""
    path = file_of(config)
    if not path.exists():
        return None
    return {n: s.to(config.device) for n, s in unpack_supports(checkpoint.load(path).state).items()}


def described(config: ResolvedConfig, dataset: data.Dataset, model: nn.Module) -> list[tuple[str, int, int, int]]:
    """Of every weight: name, entries, those in the kept first support, those of them on a path from input to output."""
    supports = read(config)
    if supports is None:
        return []
    on_paths = effective_counts(model, supports, _ones(dataset))
    return [(name, support.numel, support.count, on_paths[name]) for name, support in supports.items()]


def _ones(dataset: data.Dataset) -> Ones:
    return Ones(dataset.input_shape, tokens=dataset.task == "language")


def keep(config: ResolvedConfig, method: object, supports: Mapping[str, Support]) -> None:
    """Write the first supports to the run's folder, so that a resumed run need not find them again."""
    changed = config.control is not None or config.kept_weights is not None
    found = isinstance(method, Method) and (isinstance(method.init, Saliency) or changed)
    if found and not file_of(config).exists():
        checkpoint.save(file_of(config), pack_level(supports, None), kind="first-support")
