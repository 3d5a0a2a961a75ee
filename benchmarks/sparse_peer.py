"""Our public sparse linear layer against sparselab's, both with dense fp32 beside: 4096x4096, batch 128.

    pip install --no-deps --target FOLDER sparselab==0.2.2
    PYTHONPATH=FOLDER python benchmarks/sparse_peer.py [--rounds 30] [--json FILE]

sparselab brings an OpenMP runtime of its own, which would fight ours for the cores, so every side lives in a process
of its own; all but the one whose turn it is are stopped. Our side and the dense one run pinned. sparselab's runtime
takes a pinned main thread for a machine of one core, so it is measured pinned and unpinned; its best counts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from comparison import Report, Timing, agree, best, options, timing
from timing import QUIET, interleave
from torch import nn

from gossamer.nn import SparseLinear

SIZE, BATCH = 4096, 128
FLOORS = {0.1: 4.0, 0.01: 2.8}
VERSION = "0.2.2"
MALLOC = {name: value for name, value in QUIET.items() if name.startswith("MALLOC")}
SIDES: dict[str, dict[str, str]] = {
    "gossamer": QUIET,
    "dense fp32": QUIET,
    "sparselab": MALLOC,
    "sparselab, passive": {**MALLOC, "OMP_WAIT_POLICY": "passive"},
    "sparselab, pinned": QUIET,
}
PEERS = tuple(name for name in SIDES if name.startswith("sparselab"))


def make(side: str, density: float) -> Callable[[], object]:
    """Forward and backward of one layer with bias, to activations and all parameters."""
    torch.manual_seed(0)
    x, gradient = torch.randn(BATCH, SIZE, requires_grad=True), torch.randn(BATCH, SIZE)
    if side == "gossamer":
        layer: nn.Module = SparseLinear(SIZE, SIZE, density)
        with torch.no_grad():
            agree(layer(x), nn.functional.linear(x, layer.to_dense(), layer.bias))
    elif side == "dense fp32":
        layer = nn.Linear(SIZE, SIZE)
    else:
        import sparselab

        layer = sparselab.SparseLinear(SIZE, SIZE, True, 1 - density)  # it asks for the share of zeros
        if abs(layer.density / density - 1) > 0.01:
            raise SystemExit(f"sparselab's layer has density {layer.density}, not {density}")
    inputs = (x, *layer.parameters())
    return lambda: torch.autograd.grad(layer(x), inputs, gradient)


def serve(side: str, density: float, threads: int, connection: Any) -> None:
    """Answer every message with the seconds of a call in one turn, as every benchmark here takes them."""
    torch.set_num_threads(threads)
    step = make(side, density)
    connection.send("ready")
    while connection.recv():
        connection.send(interleave({side: step}, 1)[side][0])


class Side:
    """A process that is stopped unless it is its turn."""

    def __init__(self, name: str, density: float, threads: int) -> None:
        settings = {**SIDES[name], "OMP_NUM_THREADS": str(threads)}
        before = dict(os.environ)
        os.environ.update(settings)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, density, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()
        os.environ.clear()
        os.environ.update(before)
        self._answer(name)
        self._signal(signal.SIGSTOP)

    def turn(self) -> float:
        self._signal(signal.SIGCONT)
        self.connection.send(True)
        seconds: float = self._answer("a side")
        self._signal(signal.SIGSTOP)
        return seconds

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self.connection.send(False)
        self.process.join()

    def _answer(self, name: str) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise SystemExit(f"{name} ended early, its message is above") from None

    def _signal(self, number: int) -> None:
        if self.process.pid is not None:
            os.kill(self.process.pid, number)


def compare(density: float, report: Report, rounds: int, threads: int) -> None:
    sides = {name: Side(name, density, threads) for name in SIDES}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, side in sides.items():
            taken = side.turn()
            if turn >= 2:  # two to warm up
                seconds[name].append(taken)
    for side in sides.values():
        side.close()
    timings = {name: timing(values) for name, values in seconds.items()}
    report.timings(f"{SIZE}x{SIZE}, batch {BATCH}, density {density:g}, forward and backward", timings)
    peer, dense, ours = best(timings, *PEERS), timings["dense fp32"], timings["gossamer"]
    rows: list[tuple[str, Timing, Timing, float | None]] = [
        (f"gossamer at {density:g} against {peer}", timings[peer], ours, FLOORS[density]),
        (f"gossamer at {density:g} against dense fp32", dense, ours, None),
        (f"{peer} at {density:g} against dense fp32", dense, timings[peer], None),
    ]
    report.ratios(rows)


def main() -> None:
    arguments = options(__doc__).parse_args()
    if importlib.util.find_spec("sparselab") is None:
        raise SystemExit(
            f"sparselab is not installed: pip install --no-deps --target FOLDER sparselab=={VERSION}, "
            "then PYTHONPATH=FOLDER python benchmarks/sparse_peer.py"
        )
    if hasattr(os, "sched_setaffinity"):  # children of a pinned thread would share its one core
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    report = Report("Against sparselab", arguments)
    report.note(f"sparselab {importlib.metadata.version('sparselab')}; the floors were set against {VERSION}.")
    for density in FLOORS:
        compare(density, report, arguments.rounds, arguments.threads)
    report.write()


if __name__ == "__main__":
    main()
