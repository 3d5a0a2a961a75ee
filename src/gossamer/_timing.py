"""How gossamer times: pinned threads, interleaved rounds, one statistic. Loads no torch."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

# Unpinned threads and page faults of large gradients are worth a factor of two; all sides get the same setting.
QUIET = {
    "OMP_WAIT_POLICY": "active",
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "cores",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_TOP_PAD_": str(1 << 28),
}
ROUNDS = 15
TURN = 0.02
STATISTIC = f"median of the faster half of at least {ROUNDS} interleaved rounds"
_MARK = "GOSSAMER_BENCHMARK"


def pinned() -> bool:
    """Whether this process was started with pinned threads, by `restart_pinned` or with `quiet_environment`."""
    return os.environ.get(_MARK) == "1"


def quiet_environment() -> dict[str, str]:
    """The environment of a process with pinned threads; torch reads it once, when it is loaded."""
    return {**os.environ, **QUIET, _MARK: "1"}


def restart_pinned() -> None:
    """Restart this process with pinned threads, once; to be called before torch is loaded."""
    if not pinned():
        os.execve(sys.executable, [sys.executable, *sys.argv], quiet_environment())


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds per call in every round, all runs taking turns so that a slow moment of the machine meets all of them.

    A turn begins with a call that is not timed, for the caches hold what others used, and then lasts `TURN` seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            calls, start, spent = 0, time.perf_counter(), 0.0
            while spent < TURN:
                run()
                calls, spent = calls + 1, time.perf_counter() - start
            seconds[name].append(spent / calls)
    return seconds


def faster_half(values: Sequence[float]) -> float:
    """Median of the faster half, the middle one included: other load on a machine only ever adds time.

    >>> faster_half([5.0, 1.0, 9.0, 2.0, 3.0])
    2.0
    """
    return statistics.median(sorted(values)[: (len(values) + 1) // 2])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the quartiles around it."""
    quartiles = statistics.quantiles(values, n=4)
    return statistics.median(values), quartiles[0], quartiles[2]
