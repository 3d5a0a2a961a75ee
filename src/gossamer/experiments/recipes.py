"""Default settings per (data, model): what a `RunConfig` field means when it is not given.

Rows marked M1D, LM, DMLP and CNN are the settings of this project's studies (which set sizes and subsets of the
data themselves). The others are ordinary settings of their model family.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import ConfigError
from .config import FIELDS, ONLY_DENSITY, ResolvedConfig, RunConfig, method_parameters, typed_options
from .data import Dataset, data_options
from .models import model_options
from .values import spell

_EVALUATIONS, _CHECKPOINTS = 20, 10  # per run, unless asked otherwise
_SPARSE_BELOW = 0.25  # sparse_lr applies to sparse methods and SMALL at this density or less


@dataclass(frozen=True)
class Recipe:
    """Settings of one (data, model). steps and lr are for the batch size given; beta1 is `momentum`.

    sparse_lr: the learning rate of sparse methods and of SMALL at densities up to 0.25, where it differs: under
        Adam-like optimizers the best one grows as the number of weights falls.
    """

    steps: int
    batch_size: int
    optimizer: Literal["sgd", "adam", "adamw", "muon"]
    lr: float
    sparse_lr: float | None = None
    momentum: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.05
    clip: float = 0.0
    threads: int | None = None


# Looked up in this order: (data, model), ("*", model), ("*", "*").
RECIPES: dict[tuple[str, str], Recipe] = {
    ("mnist1d", "mlp"): Recipe(2000, 100, "sgd", 0.3, threads=1),  # M1D
    ("stdlib", "gpt"): Recipe(  # LM
        800, 8, "adamw", 0.006, 0.012, beta2=0.99, weight_decay=0.01, warmup=0.2, clip=1.0, threads=1
    ),
    ("fashion-mnist", "mlp"): Recipe(600, 100, "adamw", 0.01, 0.03, weight_decay=0.0, threads=1),  # DMLP
    ("fashion-mnist", "cnn"): Recipe(500, 64, "adamw", 0.01, 0.02, weight_decay=0.0, threads=1),  # CNN
    ("digits", "mlp"): Recipe(300, 50, "sgd", 0.1, threads=1),
    ("*", "mlp"): Recipe(600, 100, "sgd", 0.1, threads=1),
    ("*", "lenet300"): Recipe(600, 100, "sgd", 0.1, clip=1.0, threads=1),
    ("*", "lenet5"): Recipe(600, 100, "sgd", 0.1, clip=1.0, threads=1),
    ("*", "cnn"): Recipe(600, 64, "adamw", 0.01, 0.02, weight_decay=0.0),
    ("*", "vit-tiny"): Recipe(10_000, 128, "adamw", 1e-3, weight_decay=0.05, warmup=0.1, clip=1.0),
    ("*", "gpt"): Recipe(2000, 16, "adamw", 3e-3, beta2=0.99, weight_decay=0.01, warmup=0.1, clip=1.0),
    ("*", "mobilenetv2"): Recipe(30_000, 128, "sgd", 0.1, weight_decay=4e-5),
    ("*", "*"): Recipe(30_000, 128, "sgd", 0.1, weight_decay=5e-4),
}
# Peak learning rates for an optimizer that is not the recipe's own.
OPTIMIZER_LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "muon": 2e-3}


def find_recipe(data: str, model: str) -> Recipe:
    """Return the settings of a (data, model) pair."""
    for key in ((data, model), ("*", model)):
        if key in RECIPES:
            return RECIPES[key]
    return RECIPES["*", "*"]


def resolve(config: RunConfig, dataset: Dataset) -> ResolvedConfig:
    """Fill every open field of `config` from its recipe and the data set.

    Raises:
        ConfigError: fields that only make sense together do not fit.
    """
    recipe = find_recipe(config.data, config.model)
    values = {name: getattr(config, name) for name in FIELDS}
    defaults = asdict(recipe) | _derived(config, recipe, dataset)
    for name in FIELDS:
        if values[name] is None and name in defaults:
            values[name] = defaults[name]
    if config.epochs is not None:
        values["epochs"], values["steps"] = None, _steps(config.epochs, values, dataset)
    for name, known in (
        ("args", method_parameters(config.method)),
        ("model_options", model_options(config.model)),
        ("data_options", data_options(config.data)),
        ("mask_data_options", data_options(config.mask_data) if config.mask_data else {}),
    ):
        values[name] = spell(typed_options(values[name], known, name))
    for name, parts in (("eval_every", _EVALUATIONS), ("checkpoint_every", _CHECKPOINTS)):
        values[name] = values[name] or max(1, values["steps"] // parts)
    return ResolvedConfig(**values)


def default_folder(config: RunConfig) -> Path:
    """Where a run goes that names no folder."""
    density = None if config.density is None else f"{config.density:g}"
    scored = None if config.mask_data is None else f"on-{config.mask_data}"
    executed = None if config.execution == "masked" else config.execution
    fixed = [*([spell(config.offset)] if config.offset else []), *(f"frozen-{part}" for part in config.freeze)]
    if config.subspace is not None:
        fixed.append(f"subspace-{config.subspace}-{spell(config.projection)}-from-{config.origin}")
    checks = (config.control, config.kept_weights, scored, executed)
    told = (config.data, config.model, config.method, density, *fixed, *checks, config.seed)
    return Path("runs") / "-".join(str(part) for part in told if part is not None)


def _derived(config: RunConfig, recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    density = config.density if config.density is not None else ONLY_DENSITY.get(config.method, 1.0)
    lr = recipe.sparse_lr if recipe.sparse_lr and density <= _SPARSE_BELOW else recipe.lr
    if config.optimizer not in (None, recipe.optimizer):
        lr = OPTIMIZER_LR[str(config.optimizer)]
    return {
        "density": density,
        "out": str(default_folder(config)),
        "accumulate": 1,
        "lr": lr,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": recipe.threads or min(os.cpu_count() or 1, 8),
    }


def _steps(epochs: float, values: dict[str, Any], dataset: Dataset) -> int:
    per_example = dataset.input_shape[0] if dataset.task == "language" else 1
    per_epoch = len(dataset.train) / (values["batch_size"] * values["accumulate"] * per_example)
    steps = round(epochs * per_epoch)
    if steps < 1:
        raise ConfigError(f"epochs = {epochs}: that is less than one step of {values['batch_size']} examples")
    return steps
