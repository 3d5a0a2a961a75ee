"""The first support of a run: data for what scores the weights, sanity checks, and a copy of it in the run's folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .. import checkpoint
from .._safetensors import sensible
from ..analysis import sanity
from ..errors import CheckpointError, ConfigError, GossamerError
from ..foresight import Examples, Ones, Saliency, approximate_isometry, effective_counts, rescale_fan_in
from ..method import Given, Method, Zero
from ..nn.offset import OffsetLayer
from ..rewinding import pack_level, unpack_supports
from ..tickets import Tickets
from ..topology import Support
from . import data
from .config import ResolvedConfig, RunConfig
from .runs import RunFolder

# What the first support of a run depends on; the folder of a run holds to all its other settings, too.
_MADE_FROM = (
    *("method", "density", "args", "seed", "control", "kept_weights", "mask_data", "mask_data_options", "steps"),
    *("data", "data_options", "valid_fraction", "batch_size", "model", "model_options", "targets"),
    *("offset", "alpha"),
)


@dataclass(frozen=True)
class First:
    """The first supports of a run that found them, and what there was to say about them; empty for other runs."""

    supports: Mapping[str, Support] = field(default_factory=dict)
    notes: Sequence[str] = ()


def check(config: RunConfig, method: object) -> None:
    """Raise ConfigError if the run has no first support that control, mask_data or kept_weights could act on."""
    control, init = config.control, getattr(method, "init", None)
    if config.mask_data is None and config.mask_data_options:
        options = ", ".join(f"mask_data.{name}" for name in config.mask_data_options)
        raise ConfigError(f"{options} is given without a data set to score with; add e.g. --mask-data {config.data}")
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
            poolable = source.input_shape != dataset.input_shape and "pool" in data.data_options(config.mask_data)
            raise ConfigError(
                f"mask_data = {config.mask_data!r} has inputs of {source.input_shape} and {source.classes} classes, "
                f"{config.data} of {dataset.input_shape} and {dataset.classes}; "
                + ("add e.g. --set mask_data.pool=2" if poolable else "name a data set of the same shape")
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
    if found is not None:
        _check_fits(found, method, config, model, targets)
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
    begun = RunFolder(Path(config.out)).training_file.exists()  # then the weights come from there
    if config.kept_weights == "isometry" and not begun:
        approximate_isometry(model, found)
    elif config.kept_weights == "fan-in" and not begun:
        rescale_fan_in(model, found)
    return model, dataclasses.replace(method, init=Given(found))


def file_of(config: ResolvedConfig) -> Path:
    """Where the first supports of a run are kept, if finding them took more than drawing them."""
    return Path(config.out) / "first-support.safetensors"


def read(config: ResolvedConfig) -> dict[str, Support] | None:
    """The first supports of the run in its folder; None if it has none yet.

    Raises:
        CheckpointError: the file there is damaged, or of another run.
    """
    path = file_of(config)
    return {n: s.to(config.device) for n, s in _read(path, config).supports.items()} if path.exists() else None


def _read(path: Path, config: ResolvedConfig) -> First:
    try:
        contents = checkpoint.load(path)
        if contents.kind != "first-support":
            raise CheckpointError(f"{path} is a {contents.kind} file, not the first support of a run")
        if contents.metadata.get("made_from") != _made_from(config):
            raise CheckpointError(f"{path} is of a run with another config")
        with sensible(path):
            return First(unpack_supports(contents.state), [str(note) for note in contents.metadata.get("notes", [])])
    except GossamerError as error:
        raise _unusable(error) from error


def _unusable(why: object) -> CheckpointError:
    return CheckpointError(f"{why}; delete it to find the first support again")


def _made_from(config: ResolvedConfig) -> str:
    """A short text that tells runs apart whose first supports may differ."""
    values = {key: value for key, value in config.to_dict().items() if key in _MADE_FROM and value not in (None, {})}
    values = values if config.offset else {key: value for key, value in values.items() if key != "alpha"}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def _check_fits(
    found: Mapping[str, Support],
    method: Method,
    config: ResolvedConfig,
    model: nn.Module,
    targets: str | list[str] | None,
) -> None:
    """Raise CheckpointError unless the method can start from what the folder holds: names, shapes, counts."""
    given = dataclasses.replace(method, init=Given(found))
    try:
        fitting = sanity.first_supports(model, given, total_steps=config.steps, targets=targets, seed=config.seed)
    except ConfigError as error:
        raise _unusable(f"{file_of(config)} does not fit the run: {error}") from error
    odd = sorted(found.keys() - fitting.keys())
    if odd:
        raise _unusable(f"{file_of(config)} does not fit the run: the model has no weight {odd[0]} to make sparse")


def keep(config: ResolvedConfig, method: object, supports: Mapping[str, Support], notes: Sequence[str]) -> First:
    """Write first supports that were found to the run's folder, so that a resumed run need not find them again.

    notes: what was said while they were found; returned, those of the first time are told again after a resume.
    """
    changed = config.control is not None or config.kept_weights is not None
    if not (isinstance(method, Method) and (isinstance(method.init, Saliency) or changed)):
        return First(notes=notes)
    path = file_of(config)
    if not path.exists():
        about = {"made_from": _made_from(config), "notes": list(notes)}
        checkpoint.save(path, pack_level(supports, None), kind="first-support", metadata=about)
    return _read(path, config)


@contextmanager
def noting(notes: list[str]) -> Iterator[None]:
    """Add the text of every UserWarning inside to `notes`; all warnings are still given, afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)  # what a run tells does not depend on filters
        yield
    for told in caught:
        if issubclass(told.category, UserWarning):
            notes.append(" ".join(str(told.message).split()))
        warnings.warn_explicit(told.message, told.category, told.filename, told.lineno)


def described(first: First, dataset: data.Dataset, model: nn.Module) -> list[tuple[str, int, int, int | None]]:
    """Of every weight: name, entries, those in the first support, those of them on a path from input to output.

    The last is None where it cannot be told: a figure must not lose a run that is finished. With offsets, through which
    paths lead anyway, it is not asked.
    """
    on_paths: Mapping[str, int] = {}
    try:
        if first.supports and not any(isinstance(module, OffsetLayer) for module in model.modules()):
            on_paths = effective_counts(model, first.supports, _ones(dataset))
    except (GossamerError, RuntimeError, TypeError):
        pass
    return [(name, support.numel, support.count, on_paths.get(name)) for name, support in first.supports.items()]


def figures(rows: Sequence[tuple[str, int, int, int | None]]) -> dict[str, Any] | None:
    """What result.json says of a first support: "kept" entries, those "on_paths", weights left "empty"."""
    if not rows:
        return None
    ways = [on_path for *_, on_path in rows if on_path is not None]
    return {
        "kept": sum(kept for _, _, kept, _ in rows),
        "on_paths": sum(ways) if len(ways) == len(rows) else None,
        "empty": [name for name, _, kept, _ in rows if not kept],
    }


def _ones(dataset: data.Dataset) -> Ones:
    return Ones(dataset.input_shape, tokens=dataset.task == "language")
