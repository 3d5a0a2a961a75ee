"""CIFAR-10 and CIFAR-100 in either of their published layouts: the "binary version" and the "python version"."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from . import folders
from .dataset import Dataset, Raw, classification, content_digest

PIXELS = 3 * 32 * 32
_UNREADABLE = (  # what reading a damaged pickle may raise
    OSError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, OverflowError,
    RecursionError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """One set as published.

    binary, python: folder and files (training ones first, the last is the test set). label_bytes: labels before the
    pixels of a binary row, of which the last counts. label_key: of a pickled batch.
    """

    name: str
    classes: int
    binary: tuple[str, tuple[str, ...]]
    python: tuple[str, tuple[str, ...]]
    label_bytes: int
    label_key: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Layout(
    "cifar10",
    10,
    ("cifar-10-batches-bin", (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")),
    ("cifar-10-batches-py", (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
    1,
    "labels",
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
)
CIFAR100 = Layout(
    "cifar100",
    100,
    ("cifar-100-binary", ("train.bin", "test.bin")),
    ("cifar-100-python", ("train", "test")),
    2,
    "fine_labels",
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
)


def cifar10(
    root: Path | None = None,
    seed: int = 0,
    valid_fraction: float = 0.1,
    *,
    train_subset: int | None = None,
    normalise: bool = True,
    augment: bool = False,
) -> Dataset:
    """Return 50,000 + 10,000 colour images of 3x32x32; `augment` shifts and mirrors training batches."""
    return _load(CIFAR10, root, seed, valid_fraction, train_subset, normalise, augment)


def cifar100(
    root: Path | None = None,
    seed: int = 0,
    valid_fraction: float = 0.1,
    *,
    train_subset: int | None = None,
    normalise: bool = True,
    augment: bool = False,
) -> Dataset:
    """Return 50,000 + 10,000 colour images of 3x32x32 with their fine labels; `augment` as for cifar10."""
    return _load(CIFAR100, root, seed, valid_fraction, train_subset, normalise, augment)


def present(layout: Layout, root: Path | None = None) -> bool:
    """Whether a folder in one of the layouts is in one of the places that are looked in."""
    return _locate(layout, root) is not None


def _locate(
    layout: Layout, root: Path | None
) -> tuple[list[Path], Callable[[Path], tuple[np.ndarray, np.ndarray]]] | None:
    readers = (
        (layout.binary, lambda path: read_binary(path, layout.label_bytes)),
        (layout.python, lambda path: read_pickled(path, layout.label_key)),
    )
    for (folder, files), reader in readers:
        found = folders.find(root, (folder, f"{layout.name}/{folder}", layout.name, "."), files)
        if found is not None:
            return found, reader
    return None


def _load(
    layout: Layout,
    root: Path | None,
    seed: int,
    valid_fraction: float,
    train_subset: int | None,
    normalise: bool,
    augment: bool,
) -> Dataset:
    located = _locate(layout, root)
    if located is None:
        raise folders.missing(
            layout.name,
            root,
            " or ".join(f"{folder}/ with {_listing(files)}" for folder, files in (layout.binary, layout.python)),
            f"unpack the published archive {layout.binary[0]} or {layout.python[0]} into {root or folders.cache()}, "
            f"or set {folders.VARIABLE} to the folder that holds it",
        )
    paths, reader = located
    parts = [_checked(path, *reader(path), layout.classes) for path in paths]
    x, y = (np.concatenate([part[i] for part in parts[:-1]]) for i in (0, 1))
    test_x, test_y = parts[-1]
    raw = Raw(
        x,
        y,
        test_x,
        test_y,
        classes=layout.classes,
        scale=255.0,
        mean=layout.mean,
        std=layout.std,
        source=f"{layout.name.upper()} (A. Krizhevsky 2009), {paths[0].parent}",
        digest=content_digest([x, y, test_x, test_y]),
    )
    return classification(
        layout.name,
        raw,
        seed=seed,
        valid_fraction=valid_fraction,
        train_subset=train_subset,
        normalise=normalise,
        augmented=augment,
    )


def _listing(files: Sequence[str]) -> str:
    return ", ".join(files) if len(files) <= 2 else f"{files[0]} ... {files[-2]}, {files[-1]}"


def _checked(path: Path, pixels: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels (n,) of one file, uint8; raises DataError if they cannot be that."""
    if pixels.shape != (len(labels), PIXELS) or not len(labels):
        raise DataError(f"{path} has pixels of shape {pixels.shape} for {len(labels)} labels; expected (n, {PIXELS})")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{path} has labels {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.uint8)


def read_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read rows of label bytes and 3072 pixels (red, green, blue planes); pixels (n, 3072) and labels (n,), uint8."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    row = label_bytes + PIXELS
    if len(content) % row:
        raise DataError(f"{path} has {len(content)} bytes, not a multiple of the {row} of one row: copy it again")
    rows = content.reshape(-1, row)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


def read_pickled(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a pickled batch (a dict of Python 2 strings to a uint8 array and lists) without running what it says."""
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = fields["data"], np.array(fields[label_key], dtype=np.int64)
    except KeyError as error:
        raise DataError(f"{path} has no field {error}; expected a batch of the published python version") from error
    except _UNREADABLE as error:
        raise DataError(f"cannot read {path} as a batch of the published python version: {error}") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise DataError(f"the field 'data' of {path} is no uint8 array")
    return pixels, labels


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows the three names an array is made of, and nothing that could run code."""

    _RECONSTRUCT: Any = np.empty(0).__reduce__()[0]

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): self._RECONSTRUCT,
            ("numpy._core.multiarray", "_reconstruct"): self._RECONSTRUCT,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch of arrays does not need")
        return allowed[module, name]
