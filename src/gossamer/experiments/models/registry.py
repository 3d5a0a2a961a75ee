"""The table of reference models, `build`, and the narrower dense twin that SMALL trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ... import targets
from ...errors import ConfigError, did_you_mean
from ..data import Dataset
from ..values import parameters, parse
from . import fixup, mlp, residual, text, vision, vit, winners

Kind = Literal["vector", "image", "tokens"]
Shape = tuple[int, ...]
FIXED = ("input_shape", "classes", "width")


@dataclass(frozen=True)
class ModelInfo:
    """One row of the table of models.

    build: (input_shape, classes, width, **options) -> module. kinds: of data that it takes.
    """

    summary: str
    build: Callable[..., nn.Module]
    kinds: tuple[Kind, ...]


IMAGE: tuple[Kind, ...] = ("image",)
FLAT: tuple[Kind, ...] = ("vector", "image")
MODELS: dict[str, ModelInfo] = {
    "mlp": ModelInfo("fully connected, 256-256, batch norm", mlp.mlp, FLAT),
    "lenet300": ModelInfo("fully connected, 300-100", mlp.lenet300, FLAT),
    "lenet5": ModelInfo("LeNet-5", vision.lenet5, IMAGE),
    "lenet5-dctps": ModelInfo("LeNet-5 of DCTpS: no biases, average pooling", vision.lenet5_dctps, IMAGE),
    "cnn": ModelInfo("five 3x3 convolutions 16-32-32-64-64, batch norm", vision.cnn, IMAGE),
    "winners": ModelInfo("5x5x30 convolution and 300 units, k-winners or ReLU", winners.winners, IMAGE),
    "vgg11": ModelInfo("VGG-11 with batch norm", vision.vgg11, IMAGE),
    "vgg19": ModelInfo("VGG-19 with batch norm", vision.vgg19, IMAGE),
    "resnet8": ModelInfo("ResNet-8, 16-32-64 channels", residual.resnet8, IMAGE),
    "resnet20": ModelInfo("ResNet-20, 16-32-64 channels", residual.resnet20, IMAGE),
    "resnet18": ModelInfo("ResNet-18, 3x3 stem, 64-512 channels", residual.resnet18, IMAGE),
    "resnet50": ModelInfo("ResNet-50, 3x3 stem, 64-512 channels, bottlenecks", residual.resnet50, IMAGE),
    "fixup8": ModelInfo("ResNet-8 without batch norm (Fixup)", fixup.fixup8, IMAGE),
    "fixup20": ModelInfo("ResNet-20 without batch norm (Fixup)", fixup.fixup20, IMAGE),
    "fixup110": ModelInfo("ResNet-110 without batch norm (Fixup)", fixup.fixup110, IMAGE),
    "mobilenetv2": ModelInfo("MobileNetV2 for 32x32", residual.mobilenetv2, IMAGE),
    "vit-tiny": ModelInfo("vision Transformer, 12 layers of 192", vit.vit_tiny, IMAGE),
    "gpt": ModelInfo("GPT-style model of bytes, 2 layers of 96", text.gpt, ("tokens",)),
}


def build(name: str, dataset: Dataset | tuple[Shape, int], *, width: float = 1.0, **options: Any) -> nn.Module:
    """Return a reference model for a data set, initialised from torch's global random state.

    dataset: a `Dataset`, or (input_shape, classes). width: scales hidden sizes and channels, not inputs or classes.
    options: as `model_options(name)` lists them; text such as "300,100" is understood.

    Raises:
        ConfigError: an unknown name or option, a value that cannot be, or data that the model cannot take.

    >>> build("mlp", ((40,), 10), hidden=(8,))(torch.zeros(2, 40)).shape
    torch.Size([2, 10])
    """
    known = model_options(name)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "; it takes none"
            raise ConfigError(f"unknown option {option!r} of model {name}{hint}")
    if not 0 < width < math.inf:
        raise ConfigError(f"width = {width}: expected a factor above 0, e.g. 0.5")
    input_shape, classes, kinds = _describe(dataset)
    if not kinds & set(MODELS[name].kinds):
        fitting = [model for model, info in MODELS.items() if kinds & set(info.kinds)]
        raise ConfigError(
            f"model {name} takes {' or '.join(MODELS[name].kinds)} data, not inputs of shape {input_shape}; "
            f"use {', '.join(fitting) or 'inputs of 1 or 3 axes'}"
        )
    given = {option: parse(value, known[option][0], option) for option, value in options.items()}
    return MODELS[name].build(input_shape, classes, width, **given)


def model_options(name: str) -> dict[str, tuple[Any, Any]]:
    """Return the options of a model: name -> (annotation, default).

    Raises:
        ConfigError: an unknown name.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}{did_you_mean(name, MODELS)}")
    return parameters(MODELS[name].build, skip=FIXED)


def _describe(dataset: Dataset | tuple[Shape, int]) -> tuple[Shape, int, set[Kind]]:
    """Input shape, classes, and the kinds of data that these can be; a bare (n,) may be features or tokens."""
    if isinstance(dataset, Dataset):
        shape, classes, task = dataset.input_shape, dataset.classes, dataset.task
    else:
        (shape, classes), task = dataset, None
    kinds: set[Kind] = {"image"} if len(shape) == 3 else set()
    if len(shape) == 1:
        kinds = {"vector", "tokens"} if task is None else {"tokens"} if task == "language" else {"vector"}
    return tuple(shape), classes, kinds


def eligible_count(model: nn.Module) -> int:
    """Return the number of weights that `sparsify` makes sparse by default: not embeddings, nor a vocabulary head."""
    return sum(row.parameter.numel() for row in targets.choose(model, None) if row.sparse)


def small_twin(
    name: str, dataset: Dataset | tuple[Shape, int], target_count: int, **options: Any
) -> tuple[nn.Module, float, float]:
    """Return the SMALL control: the dense model with narrower hidden layers and about `target_count` eligible weights.

    Of the reachable counts the nearest to the target is taken.

    Returns:
        the model, its count / target_count, and its width.

    Raises:
        ConfigError: `target_count` is not in 1..count of the full model, or as `build`.

    >>> model, ratio, width = small_twin("mlp", ((40,), 10), 3917)
    >>> eligible_count(model), round(ratio, 3)
    (3864, 0.986)
    """

    def count(width: float) -> int:
        with torch.device("meta"):
            return eligible_count(build(name, dataset, width=width, **options))

    low, high, full = 0.0, 1.0, count(1.0)
    if not 1 <= target_count <= full:
        raise ConfigError(f"target_count = {target_count}: expected 1 to {full}, the weights of the full {name}")
    counts = {1.0: full}
    while high - low > 1e-4:  # hidden sizes are at most a few thousand
        middle = (low + high) / 2
        counts[middle] = count(middle)
        low, high = (middle, high) if counts[middle] <= target_count else (low, middle)
    width = min(counts, key=lambda w: (abs(counts[w] - target_count), -w))
    return build(name, dataset, width=width, **options), counts[width] / target_count, width
