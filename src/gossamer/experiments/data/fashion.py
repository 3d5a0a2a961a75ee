"""Fashion-MNIST, from Debian's package or a folder with the four published files; and the idx format they are in."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from ...errors import DataError
from . import folders
from .dataset import Dataset, Raw, classification, content_digest

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FOLDERS = ("fashion-mnist", "FashionMNIST/raw", ".")


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an idx file of unsigned bytes, plain or gzipped; uint8 with `ndim` axes.

    Raises:
        DataError: the file cannot be read, is no such idx file, or its length is not what its header says.

    Source: the format's description at the MNIST page of Y. LeCun: bytes 0, 0, type (8 = unsigned byte), ndim, then
    the sizes as big-endian 32-bit integers, then the content in C order.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; copy it again") from error
    header = 4 + 4 * ndim
    magic = bytes([0, 0, 8, ndim])
    if content[:4] != magic or len(content) < header:
        raise DataError(f"{path} begins with {content[:4].hex()}, not {magic.hex()}: no idx file with {ndim} axes")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise DataError(f"{path} has {len(content)} bytes; its header {shape} asks for {expected}: copy it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def present(root: Path | None = None) -> bool:
    """Whether the four files are in one of the places that are looked in."""
    return _find(root) is not None


def _find(root: Path | None) -> list[Path] | None:
    return folders.find(root, FOLDERS, FILES, ("", ".gz"))


def fashion_mnist(
    root: Path | None = None,
    seed: int = 0,
    valid_fraction: float = 0.1,
    *,
    train_subset: int | None = None,
    normalise: bool = True,
    pool: int = 1,
) -> Dataset:
    """Return 60,000 + 10,000 pictures of clothes, 1x28x28; `pool=2` averages them to 1x14x14."""
    files = _find(root)
    if files is None:
        place = (root or folders.cache()) / FOLDERS[0]
        raise folders.missing(
            "fashion-mnist",
            root,
            f"{FOLDERS[0]}/{FILES[0]}[.gz] and its siblings",
            "on Debian run `apt-get update && apt-get install -y dataset-fashion-mnist`, elsewhere put "
            f"{', '.join(FILES)} (plain or .gz) into {place}, or set {folders.VARIABLE} to its parent",
        )
    x, y, test_x, test_y = (read_idx(path, ndim) for path, ndim in zip(files, (3, 1, 3, 1), strict=True))
    for images, labels, path in ((x, y, files[1]), (test_x, test_y, files[3])):
        if len(images) != len(labels):
            raise DataError(
                f"{path} has {len(labels)} labels for {len(images)} images: the files do not belong together"
            )
    raw = Raw(
        x,
        y,
        test_x,
        test_y,
        classes=10,
        scale=255.0,
        mean=(0.286,),
        std=(0.353,),
        source=f"Fashion-MNIST (Zalando SE), {files[0].parent}",
        digest=content_digest([x, y, test_x, test_y]),
    )
    return classification(
        "fashion-mnist",
        raw,
        seed=seed,
        valid_fraction=valid_fraction,
        train_subset=train_subset,
        normalise=normalise,
        pool=pool,
    )
