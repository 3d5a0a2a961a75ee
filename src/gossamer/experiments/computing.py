"""What a run computes on and how: its device, its number format, and what makes it repeatable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ..errors import ConfigError
from .config import ResolvedConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_device(device: str) -> None:
    """Raise ConfigError if torch cannot compute on `device` here."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"device = {device!r} is no torch device; write cpu, cuda or cuda:1") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device = {device!r}: this torch sees no CUDA device; use --device cpu")
    try:
        torch.zeros(1, device=device).item()  # meta has no values; mps, xpu and cuda:9 may not be there
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(f"device = {device!r} cannot compute here; use --device cpu") from error


def autocast(config: ResolvedConfig) -> AbstractContextManager[object]:
    """The autocast context of a run; a no-op without amp."""
    if config.amp is None:
        return nullcontext()
    return torch.autocast(torch.device(config.device).type, dtype=_DTYPES[config.amp])


@contextmanager
def pinned(config: ResolvedConfig) -> Iterator[None]:
    """Fixed threads, deterministic kernels and a private random state, all put back afterwards."""
    device = torch.device(config.device)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only, memory = torch.is_deterministic_algorithms_warn_only_enabled(), torch.utils.deterministic
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time and changes no result
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
