"""Shared by the benchmarks: a quiet process, interleaved rounds, medians with their spread."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping

# Unpinned threads and page faults of large gradients are worth a factor of two here; both sides get the same setting.
QUIET = {
    "OMP_WAIT_POLICY": "active",
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "cores",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def restart_pinned() -> None:
    """Restart this process with pinned threads, once; these settings are read before torch is loaded."""
    if os.environ.get("GOSSAMER_BENCHMARK") != "1":
        environment = {**os.environ, **QUIET, "GOSSAMER_BENCHMARK": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, all runs taking turns so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median and the quartiles around it."""
    quartiles = statistics.quantiles(values, n=4)
    return statistics.median(values), quartiles[0], quartiles[2]
