"""How much memory a run took beyond what its process held before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch


class PeakMemory:
    """The peak since it was made, in bytes over the start: of the process on Linux, on a GPU of what torch allocated.

    A process that trains one run after the other must not count the earlier ones: what is free is given back to the
    system first, and the system's own peak is set back.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start: int | None = torch.cuda.memory_allocated(self._device)
            return
        gc.collect()
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._start = _status("VmRSS")
        except OSError:
            self._start = None

    @property
    def bytes(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        if self._start is None:
            return None
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else _status("VmHWM")
        return None if peak is None else max(0, peak - self._start)


def _status(key: str) -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return None
