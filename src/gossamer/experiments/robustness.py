"""How accuracy falls when pixels of the test images are replaced by noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_model
from ..errors import ConfigError
from . import data, models
from .computing import pinned
from .config import RunConfig
from .data.batches import keyed_generator
from .runs import RunFolder
from .setup import make_plan
from .tasks import evaluate

LEVELS = tuple(percent / 100 for percent in range(0, 51, 5))


@dataclass(frozen=True)
class Robustness:
    """Right answers of one model among `count` test images at each noise level.

    >>> Robustness((0.0, 0.5), (9, 6), 10).score, Robustness((0.0, 0.5), (9, 6), 10).accuracies
    (15, (90.0, 60.0))
    """

    levels: tuple[float, ...]
    correct: tuple[int, ...]
    count: int

    @property
    def score(self) -> int:
        """The noise score: right answers over all levels."""
        return sum(self.correct)

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Accuracy at each level, in %."""
        return tuple(100.0 * right / self.count for right in self.correct)

    @property
    def mean(self) -> float:
        """The noise score in % of the most that it can be: the mean of the accuracies."""
        return 100.0 * self.score / (self.count * len(self.levels))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"score": self.score, "accuracies": self.accuracies}


def noisy(images: Tensor, level: float, value: float, generator: torch.Generator) -> Tensor:
    """Return a copy in which floor(level * pixels) pixels of each image, drawn at random, are `value` in all channels.

    images: (n, channels, height, width). generator: on the CPU.

    Source: Ahmad and Scheinkman 2019 (1903.11257), whose code sets `value` to the mean of all training pixels plus two
    standard deviations.
    """
    if images.ndim != 4 or not 0 <= level <= 1:
        raise ConfigError(
            f"noise of level {level} on a tensor of shape {tuple(images.shape)}: expected a share of the pixels, from "
            "0 to 1, and images (n, channels, height, width)"
        )
    pixels = images.shape[2] * images.shape[3]
    count = math.floor(level * pixels + 1e-9)  # 0.35 * 20 is a little below 7
    places = torch.rand(len(images), pixels, generator=generator).argsort(1)[:, :count].to(images.device)
    places = places.unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).scatter(2, places, value).view(images.shape)


def measure(model: nn.Module, dataset: data.Dataset, levels: Sequence[float] = LEVELS, *, seed: int = 0) -> Robustness:
    """Evaluate a model on the test split at each noise level; equal seeds give equal noise.

    Raises:
        ConfigError: the data are no images with labels.
    """
    if dataset.task != "classification" or len(dataset.input_shape) != 3:
        raise ConfigError(f"data set {dataset.name}: noise in pixels needs images with labels, e.g. mnist5k")
    pixels = dataset.train.whole()[0]
    value = float(pixels.mean() + 2 * pixels.std())
    x, y = dataset.test.whole()
    right = []
    for number, level in enumerate(levels):
        changed = noisy(x, level, value, keyed_generator("noise", seed, number))
        right.append(evaluate(model, changed, y).correct)
    return Robustness(tuple(levels), tuple(right), len(y))


def of_run(path: Path, levels: Sequence[float] = LEVELS) -> Robustness:
    """Measure the model of a finished run, with the run's own threads and the noise of its seed.

    Raises:
        ConfigError: the run is not finished, or its data are no images with labels.
        CheckpointError: the model is of another kind than the run says.
    """
    folder = RunFolder(path)
    if not folder.finished:
        raise ConfigError(f"{path} holds no finished run; run it first, or name another folder")
    plan = make_plan(RunConfig.from_dict(folder.stored_config()))
    cfg, small = plan.config, folder.result().config.get("small")
    width: Mapping[str, float] = {"width": small["width"]} if small else {}
    with pinned(cfg):
        model = models.build(cfg.model, plan.dataset, **width, **cfg.model_options).to(cfg.device)
        load_model(folder.model_file, model)
        return measure(model, plan.dataset, levels, seed=cfg.seed)
