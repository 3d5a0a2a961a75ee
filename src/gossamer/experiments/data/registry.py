"""The table of data sets, and `load`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConfigError, did_you_mean
from ..values import parameters, parse
from . import cifar, embedded, fashion, source_text
from .dataset import DataInfo, Dataset


def _always(root: Path | None = None) -> bool:
    return True


DATASETS: dict[str, DataInfo] = {
    "digits": DataInfo(
        "1,797 handwritten digits, 1x8x8, 10 classes; in the package", embedded.digits, "CC BY 4.0", _always
    ),
    "mnist1d": DataInfo(
        "5,000 one-dimensional digits, 40 samples, 10 classes; in the package", embedded.mnist1d, "Apache-2.0", _always
    ),
    "mnist5k": DataInfo(
        "5,000 MNIST digits, 1x28x28, 10 classes; in the package", embedded.mnist5k, "CC BY-SA 3.0", _always
    ),
    "fashion-mnist": DataInfo(
        "70,000 pictures of clothes, 1x28x28, 10 classes; Debian package or folder",
        fashion.fashion_mnist,
        "MIT",
        fashion.present,
    ),
    "stdlib": DataInfo(
        "source text of the running Python's standard library, bytes",
        source_text.stdlib,
        "PSF-2.0",
        source_text.present,
    ),
    "cifar10": DataInfo(
        "60,000 colour images, 3x32x32, 10 classes; folder",
        cifar.cifar10,
        "none stated; cite Krizhevsky 2009",
        partial(cifar.present, cifar.CIFAR10),
    ),
    "cifar100": DataInfo(
        "60,000 colour images, 3x32x32, 100 classes; folder",
        cifar.cifar100,
        "none stated; cite Krizhevsky 2009",
        partial(cifar.present, cifar.CIFAR100),
    ),
}
COMMON = ("root", "seed", "valid_fraction")


def load(
    name: str, *, root: Path | str | None = None, seed: int = 0, valid_fraction: float = 0.1, **options: Any
) -> Dataset:
    """Return a data set of `DATASETS`, split into train, valid and test.

    The validation split is cut from the training data, so that the test split serves for no choice.

    root: folder to look in, instead of the usual places (see docs/data.md); data in the package ignores it.
    seed: of the cut (and of `train_subset`); leave it, so that runs of all training seeds see the same split.
    valid_fraction: share of the training data that is held out, in [0, 1).
    options: as `data_options(name)` lists them; text such as "2" is understood.

    Raises:
        ConfigError: an unknown name or option, or a value that cannot be.
        DataError: the data is not on this machine, or is damaged.

    >>> data = load("digits")
    >>> data.input_shape, data.classes, len(data.train), len(data.valid), len(data.test)
    ((1, 8, 8), 10, 1293, 144, 360)
    """
    known = data_options(name)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "; it takes none"
            raise ConfigError(f"unknown option {option!r} of data set {name}{hint}")
    given = {option: parse(value, known[option][0], option) for option, value in options.items()}
    return DATASETS[name].load(_folder(root), seed, valid_fraction, **given)


def data_options(name: str) -> dict[str, tuple[Any, Any]]:
    """Return the options of a data set: name -> (annotation, default).

    Raises:
        ConfigError: an unknown name.
    """
    return parameters(_info(name).load, skip=COMMON)


def available(name: str, root: Path | str | None = None) -> bool:
    """Whether the data set's files are on this machine.

    Raises:
        ConfigError: an unknown name.
    """
    return _info(name).present(_folder(root))


def _folder(root: Path | str | None) -> Path | None:
    return None if root is None else Path(root).expanduser()


def _info(name: str) -> DataInfo:
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}{did_you_mean(name, DATASETS)}")
    return DATASETS[name]
