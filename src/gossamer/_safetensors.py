"""One safetensors file: written whole or not at all, read with every failure as one line.

The safetensors package reads. Writing is done here, because its writer neither forces data to the disk before the
old file is replaced, nor honours the umask, nor tells a full disk from other failures.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, GossamerError

# safetensors' names of the types it stores
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def raw(tensor: Tensor) -> Tensor:
    """The values of a tensor in row-major order, as a 1-D tensor of integers of the same width, on the CPU."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(_INTEGER[flat.element_size()])


def dtype_of(code: str) -> torch.dtype:
    """The torch type of a safetensors type name."""
    return _BY_NAME[code]


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write header and data; wide types come first, so that all are aligned."""
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        code = DTYPES[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(raw(tensors[name]).numpy().data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends without an error.

    Its name is its own, so that two who save to one path at a time cannot mix their data; the last one stays.
    """
    target = _target(path)
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")  # 50: names have a longest length
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = "; the file that was there is unchanged" if os.path.isfile(target) else ""
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}{kept}") from error
        raise


def _target(path: Path) -> Path:
    """The regular file, there or not, that `path` means: a link stays a link, a device stays a device."""
    try:
        target = Path(os.path.realpath(path))
    except ValueError as error:
        raise CheckpointError(f"cannot write {str(path)!r}: {error}") from error
    if os.path.isdir(target):
        raise CheckpointError(f"cannot write {path}: Is a directory")
    if os.path.lexists(target) and not os.path.isfile(target):
        raise CheckpointError(f"cannot write {path}: it is not a regular file and would be replaced by one")
    return target


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to the disk, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file for reading; whatever is wrong with it becomes a `CheckpointError`."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        kind = "Is a directory" if os.path.isdir(path) else "it is not a regular file"
        raise CheckpointError(f"cannot read {path}: {kind}")
    try:
        with sensible(path), _open(path) as file:
            yield file
    except CheckpointError as error:
        named = str(path) in str(error)
        raise CheckpointError(str(error) if named else f"{path}: {error}") from error
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}); it was cut short, damaged, or is of another kind"
        ) from error


def _open(path: str | Path) -> Any:
    """`safe_open` reads the header and maps the data by two openings: try again if a save came in between."""
    while True:
        before, file, failure = _identity(path), None, None
        try:
            file = safe_open(str(path), framework="pt")
        except Exception as error:
            failure = error
        if _identity(path) == before:
            if failure is not None:
                raise failure
            return file


def _identity(path: str | Path) -> tuple[int, ...]:
    about = os.stat(path)
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


@contextlib.contextmanager
def sensible(path: str | Path) -> Iterator[None]:
    """Whatever nonsense in the file leads to becomes a `CheckpointError`; our own errors pass."""
    try:
        yield
    except GossamerError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, struct.error) as error:
        about = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{path} is damaged: its header makes no sense ({about})") from error
