"""What a data set is: three splits, each of which gives the batch of a step and the whole of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError
from .batches import augment, batch_indices, keyed_generator, token_batch


class Split(Protocol):
    """One part of a data set."""

    def __len__(self) -> int:
        """Number of examples or tokens."""

    def batch(self, step: int, batch_size: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of step `step`, a pure function of (seed, step)."""

    def whole(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of everything once, in order: what a metric is measured on."""

    def to(self, device: torch.device | str) -> Self:
        """The same split on another device."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples.

    x: (n, *input_shape) float32, normalised. y: (n,) int64. augmented: whether `batch` shifts and mirrors images.
    """

    x: Tensor
    y: Tensor
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, step: int, batch_size: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs (batch_size, *input_shape) and labels (batch_size,) of step `step`."""
        chosen = batch_indices(step, batch_size, len(self), seed).to(self.y.device)
        x = self.x[chosen]
        return augment(x, step, seed) if self.augmented else x, self.y[chosen]

    def whole(self) -> tuple[Tensor, Tensor]:
        """All inputs and labels, never augmented."""
        return self.x, self.y

    def to(self, device: torch.device | str) -> Self:
        """The same split on another device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


@dataclass(frozen=True, eq=False)
class Tokens:
    """Text as one uint8 tensor of bytes; `context` tokens make one input."""

    tokens: Tensor
    context: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, step: int, batch_size: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Windows (batch_size, context) of step `step`, and the same moved on by one token."""
        return token_batch(self.tokens, step, batch_size, self.context, seed)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Every token but the first as a target once, in windows side by side; what fills no window is left out."""
        windows = max(len(self.tokens) - 1, 0) // self.context
        text = self.tokens[: windows * self.context + 1].long()
        return text[:-1].view(windows, self.context), text[1:].view(windows, self.context)

    def to(self, device: torch.device | str) -> Self:
        """The same split on another device."""
        return replace(self, tokens=self.tokens.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split and ready to train on.

    input_shape: of one input, without the batch: (channels, height, width), (features,) or (context,).
    classes: number of labels, or 256 for bytes. source: where the data came from, in one line.
    digest: first 16 hex digits of the sha256 of the raw content.
    """

    name: str
    task: Literal["classification", "language"]
    train: Examples | Tokens
    valid: Examples | Tokens
    test: Examples | Tokens
    input_shape: tuple[int, ...]
    classes: int
    source: str
    digest: str

    @property
    def examples(self) -> int:
        """Number of training examples; of text, windows side by side."""
        return len(self.train) // (self.input_shape[0] if self.task == "language" else 1)

    def to(self, device: torch.device | str) -> Self:
        """The same data set on another device."""
        return replace(self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class DataInfo:
    """One row of the table of data sets.

    load: makes the `Dataset`; its keyword arguments beside root, seed and valid_fraction are the options.
    present: whether the files are there, given the folder to look in (None: the usual places).
    """

    summary: str
    load: Callable[..., Dataset]
    licence: str
    present: Callable[[Path | None], bool]


@dataclass(frozen=True, eq=False)
class Raw:
    """Classification data as published: pixels or signals of any number type, integer labels.

    x: (n, *input_shape); y: (n,); the test set likewise. scale: what a pixel is divided by to be in [0, 1].
    mean, std: of the scaled training pixels, one per channel or one for all. digest: of the content.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    source: str = ""
    digest: str = ""


def content_digest(parts: Iterable[bytes | np.ndarray]) -> str:
    """Return the first 16 hex digits of the sha256 of the joined content.

    >>> content_digest([b"ab", b"c"]) == content_digest([b"abc"])
    True
    """
    state = hashlib.sha256()
    for part in parts:
        state.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return state.hexdigest()[:16]


def classification(
    name: str,
    raw: Raw,
    *,
    seed: int,
    valid_fraction: float,
    train_subset: int | None = None,
    normalise: bool = True,
    pool: int = 1,
    augmented: bool = False,
) -> Dataset:
    """Choose, cut and normalise the splits of `raw`.

    `train_subset` examples are drawn first, as if the training set had no more; validation is cut from them. Both
    draws depend on `seed` alone. `pool`: side of the squares that are averaged to one pixel.
    """
    available = torch.arange(len(raw.y))
    if train_subset is not None:
        if not 1 <= train_subset <= len(available):
            raise ConfigError(f"train_subset = {train_subset}: {name} has 1 to {len(available)} training examples")
        available = draw(len(available), train_subset, "subset", seed)
    chosen = draw(len(available), held_out(len(available), valid_fraction), "valid", seed)
    is_valid = torch.zeros(len(available), dtype=torch.bool)
    is_valid[chosen] = True

    def examples(x: np.ndarray, y: np.ndarray, augmented: bool = False) -> Examples:
        return Examples(_inputs(x, raw, normalise, pool), torch.from_numpy(y.astype(np.int64)), augmented)

    train, valid = available[~is_valid].numpy(), available[is_valid].numpy()
    test = examples(raw.test_x, raw.test_y)
    return Dataset(
        name=name,
        task="classification",
        train=examples(raw.x[train], raw.y[train], augmented),
        valid=examples(raw.x[valid], raw.y[valid]),
        test=test,
        input_shape=tuple(test.x.shape[1:]),
        classes=raw.classes,
        source=raw.source,
        digest=raw.digest,
    )


def held_out(n: int, valid_fraction: float) -> int:
    """Number of examples of `n` that go into validation."""
    if not 0 <= valid_fraction < 1:
        raise ConfigError(f"valid_fraction = {valid_fraction}: expected a share of the training data in [0, 1)")
    return round(n * valid_fraction)


def draw(n: int, count: int, purpose: str, seed: int) -> Tensor:
    """Return `count` of 0..n-1 at random, sorted, as (purpose, seed) decides."""
    return torch.randperm(n, generator=keyed_generator(purpose, seed))[:count].sort().values


def _inputs(x: np.ndarray, raw: Raw, normalise: bool, pool: int) -> Tensor:
    """Float32 inputs, scaled, pooled and normalised; a channel axis of one is added to grey images."""
    inputs = torch.from_numpy(x.astype(np.float32)).div_(raw.scale)
    if inputs.ndim == 3:
        inputs = inputs.unsqueeze(1)
    if pool != 1:
        if inputs.ndim != 4 or not 1 <= pool <= min(inputs.shape[2:]):
            raise ConfigError(
                f"pool = {pool}: expected 1 to the side of an image; inputs are {tuple(inputs.shape[1:])}"
            )
        inputs = F.avg_pool2d(inputs, pool)
    if normalise:
        shape = (-1, *[1] * (inputs.ndim - 2))
        inputs = inputs.sub_(torch.tensor(raw.mean).view(shape)).div_(torch.tensor(raw.std).view(shape))
    return inputs
