"""The running Python's standard library as byte text: a language corpus that is on every machine."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError, DataError
from .batches import keyed_generator
from .dataset import Dataset, Tokens, content_digest, held_out

CHUNK = 4096  # bytes; consecutive chunks go to one split or another
TEST_EVERY = 20  # every 20th chunk is test


def stdlib(root: Path | None = None, seed: int = 0, valid_fraction: float = 0.1, *, context: int = 64) -> Dataset:
    """Return the top-level modules of the standard library, sorted by name and joined, as bytes.

    The text differs between Python versions: compare runs by the digest. Of every 20 chunks of 4 KB one is test and
    `valid_fraction`, rounded to twentieths but at least one if it is not 0, is validation.
    """
    folder = _folder(root)
    files = sorted(folder.glob("*.py"), key=lambda path: path.name)
    content = b"".join(path.read_bytes() for path in files)
    if len(content) < TEST_EVERY * CHUNK:
        raise DataError(
            f"{folder} has {len(content)} bytes of *.py files, too few for a corpus; this Python comes without its "
            "sources: use another Python, or give a folder of .py files as root"
        )
    if context < 1:
        raise ConfigError(f"context = {context}: expected at least 1 token")
    train, valid, test = (Tokens(part, context) for part in _split(content, seed, valid_fraction))
    return Dataset(
        name="stdlib",
        task="language",
        train=train,
        valid=valid,
        test=test,
        input_shape=(context,),
        classes=256,
        source=f"{len(files)} top-level modules of the standard library of Python {sysconfig.get_python_version()}",
        digest=content_digest([content]),
    )


def present(root: Path | None = None) -> bool:
    """Whether this Python comes with its sources."""
    return any(_folder(root).glob("*.py"))


def _folder(root: Path | None) -> Path:
    return Path(sysconfig.get_paths()["stdlib"]) if root is None else root


def _split(content: bytes, seed: int, valid_fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    text = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    held = held_out(TEST_EVERY, valid_fraction) or (1 if valid_fraction > 0 else 0)
    offsets = torch.randperm(TEST_EVERY - 1, generator=keyed_generator("valid", seed))[: min(held, TEST_EVERY - 2)]
    kind = torch.zeros(TEST_EVERY, dtype=torch.uint8)
    kind[offsets], kind[-1] = 1, 2
    of_byte = kind[torch.arange(len(text)) // CHUNK % TEST_EVERY]
    train, valid, test = (text[of_byte == k] for k in range(3))
    return train, valid, test
