"""The native library, loaded once: which instruction set it uses, and its functions with their types."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import Any

import torch  # first: its OpenMP runtime is the one that the library then shares
from torch import Tensor

from ...errors import ConfigError

CHOICES = ("avx512", "avx2", "portable", "reference")
VARIABLE = "GOSSAMER_CPU"
LIBRARY = Path(__file__).with_name("_native.so")  # build.LIBRARY; that module is run, never imported
REMEDY = "with a C++ compiler at hand, run: python -m gossamer.kernels.cpu.build"
_P, _N, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "use": (_I, [ctypes.c_char_p]),
    "index_bytes": (_N, [_N] * 5),
    "index_build": (_I, [_P, _N, _N, _N, _N, _N, _P, _P, _I]),
    "index_check": (_I, [_P, _N, _N, _N, _N]),
    "index_positions": (None, [_P, _P]),
    "index_ascending": (None, [_P, _P, _P, _I]),
    "sources": (None, [_P, _P, _N, _P, _P, _N, _P, _I]),
    "carry": (None, [_P, _P, _N, ctypes.c_float, _P, _I]),
    "exchange": (_I, [_P, _P, _P, _N, _N, _P, _P, _I]),
    "inactive": (_N, [_P, _P, _N, _I]),
    "row_of": (_N, [_P, _N, _P, _P, _P]),
    "merge": (None, [_P, _N, _P, _N, _P, _P]),
    "collect": (_N, [_P, _N, ctypes.c_float, _P, _N, _P, _I]),
    "screen": (_N, [_P, _N, _N, _N, _P, _P, ctypes.c_float, _P, _I]),
    "beyond": (_N, [_P, _P, _N, ctypes.c_float, _P, _P, _N, ctypes.c_char_p, _I]),
    "sampled_product": (None, [_P, _P, _N, _N, _P, _N, _P, _I]),
    "gather": (None, [_P, _P, _P, _I]),
    "split": (_I, [_N, _P, _P, _P, _P, _P, _N, ctypes.c_char_p, _I]),
    "pack": (None, [_P, _P, _N, _N, _I]),
    "unpack": (None, [_P, _P, _N, _N, _I]),
    "linear_forward": (None, [_P, _P, _P, _P, _P, _N, _I]),
    "linear_backward": (None, [_P, _P, _P, _P, _P, _P, _N, _I]),
    "conv_forward": (None, [_P, _P, _P, _P, _P, _P, _I]),
    "conv_backward": (None, [_P, _P, _P, _P, _P, _P, _P, _I]),
    "skip_forward": (_N, [_P, _P, _P, _P, _P, _P, _P, _I]),
    "max_pool_forward": (None, [_P, _P, _P, _N, _P, _I]),
    "max_pool_backward": (None, [_P, _P, _P, _N, _P, _I]),
    "taps_forward": (None, [_P, _P, _P, _P, _P, _N, _I]),
    "taps_backward": (None, [_P, _P, _P, _P, _P, _N, _I]),
    "cosine": (None, [_P, _P, _P, _P, _P, _P, _I]),
    "hadamard": (None, [_P, _P, _P, _P, _I]),
    "patterns": (_I, [_P, _P, _P, _P, _N, _N, _N, _I, _I, _I, _I]),
    "block_forward": (_I, [_P, _N, _N, _N, _N, _P, _P, _P, _P, _N, _I]),
    "block_backward": (_I, [_P, _N, _N, _N, _N, _P, _P, _P, _P, _P, _N, _I]),
}


class Library:
    """The functions of the native library, without their prefix; each takes plain addresses.

    isa: the instruction set in use, one of `CHOICES` but the last.
    """

    def __init__(self, file: Path) -> None:
        loaded = ctypes.CDLL(str(file))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, f"gossamer_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.isa = ""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def call(function: Any, *arguments: Any) -> Any:
    """Call a function of the library, passing addresses for tensors and null pointers for None.

    Tensors to read may be strided. Those to write must be contiguous.
    """
    kept = [_readable(each) if isinstance(each, Tensor) else each for each in arguments]  # alive until it returns
    return function(*[each.data_ptr() if isinstance(each, Tensor) else each for each in kept])


def _readable(tensor: Tensor) -> Tensor:
    """Contiguous, and an index where its words can be read."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.dtype == torch.uint8 and tensor.data_ptr() % 8 else tensor


def path() -> Path | None:
    """The file of the native library, None if it was not built."""
    return LIBRARY if LIBRARY.exists() else None


def _open() -> Library | str:
    """The library, or why there is none."""
    file = path()
    if file is None:
        return "the native kernels were not built"
    try:
        return Library(file)
    except (OSError, AttributeError) as error:  # a runtime is missing; the sources are newer
        return f"the native kernels cannot be loaded ({error})"


@functools.cache
def native() -> Library | None:
    """The native library, or None where it was not built or the environment asks for the reference.

    Raises:
        ConfigError: the environment variable GOSSAMER_CPU asks for what this machine, or this build, does not have.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in CHOICES:
        raise ConfigError(f"{VARIABLE}={wanted!r}: choose {', '.join(CHOICES)}, or leave it unset for the best of them")
    if wanted == "reference":
        return None
    library = _open()
    if isinstance(library, str):
        if wanted:
            raise ConfigError(f"{VARIABLE}={wanted}: {library}; {REMEDY}")
        logging.getLogger("gossamer").warning(
            "%s, so sparse layers use the slower plain-torch reference; %s", library, REMEDY
        )
        return None
    for isa in [wanted] if wanted else CHOICES[:3]:
        if library.use(isa.encode()) == 0:
            library.isa = isa
            return library
    raise ConfigError(f"{VARIABLE}={wanted}: this CPU cannot run it; choose another or leave it unset")


def threads() -> int:
    """As many as torch uses."""
    return torch.get_num_threads()
