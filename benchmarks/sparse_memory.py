"""Memory of really sparse training with Adam: bytes per non-zero, and a layer that would not fit dense.

    python benchmarks/sparse_memory.py [--json FILE]

1. Bytes of the live tensors that belong to one layer without bias after a training step: values, index, gradient and
   optimizer slots, per stored value. 2. Peak resident memory of training one 32768x32768 layer at density 1e-3, batch
   128, in a process of its own with the default malloc: the high-water mark at the end less what was resident after
   imports and one step of a tiny layer (which loads what the optimizer imports). Dense needs 16 GiB for that.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch
from comparison import Report
from timing import QUIET
from torch import nn

from gossamer.nn import SparseLinear

SIZE, DENSITIES, BYTES = 4096, (0.25, 0.1, 0.05, 0.01), 18.5
LARGE, LARGE_DENSITY, BATCH, PEAK = 32768, 1e-3, 128, 400.0
MIB = 2**20


class Training:
    """One layer learning to map a fixed batch to a fixed target with Adam."""

    def __init__(self, size: int, density: float, batch: int) -> None:
        torch.manual_seed(0)
        self.layer = SparseLinear(size, size, density, bias=False)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=1e-2)
        self.x, self.target = torch.randn(batch, size), torch.randn(batch, size)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.layer(self.x), self.target)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def bytes_per_value(size: int, density: float) -> dict[str, float]:
    """Part -> bytes per stored value; nothing else that the training leaves behind may be as large as the values."""
    training = Training(size, density, 16)
    training.step()
    layer = training.layer
    slots = [slot for slot in training.optimizer.state[layer.values].values() if isinstance(slot, torch.Tensor)]
    parts = {
        "values": [layer.values],
        "index": list(layer.buffers()),
        "gradient": [layer.values.grad],
        "optimizer slots": slots,
    }
    known = {tensor.data_ptr() for tensors in parts.values() for tensor in tensors}
    known |= {training.x.data_ptr(), training.target.data_ptr()}
    unknown = [t for t in live_tensors() if t.data_ptr() not in known and t.numel() >= layer.values.numel()]
    if unknown:
        raise SystemExit(f"tensors that no part accounts for: {[tuple(tensor.shape) for tensor in unknown]}")
    return {
        part: sum(tensor.untyped_storage().nbytes() for tensor in tensors) / layer.values.numel()
        for part, tensors in parts.items()
    }


def live_tensors() -> list[torch.Tensor]:
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} in /proc/self/status")


def train_large(threads: int, steps: int, answers: Any) -> None:
    torch.set_num_threads(threads)
    Training(64, 0.5, 16).step()
    before = resident("VmRSS")
    start = time.perf_counter()
    training = Training(LARGE, LARGE_DENSITY, BATCH)
    built = time.perf_counter()
    losses = [training.step() for _ in range(steps)]
    seconds = time.perf_counter() - built
    peak = resident("VmHWM") - before
    answers.put({"build": built - start, "step": seconds / steps, "losses": (losses[0], losses[-1]), "peak": peak})


def in_own_process(threads: int, steps: int) -> dict[str, Any]:
    """Run `train_large` where no setting of malloc and no earlier tensor is in the way."""
    for name in QUIET:
        os.environ.pop(name, None)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=train_large, args=(threads, steps, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"training the {LARGE}x{LARGE} layer ended with status {process.exitcode}")
    answer: dict[str, Any] = answers.get()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of the large layer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    arguments = parser.parse_args()
    report = Report("Memory of really sparse training", arguments)
    for size, density in [*((SIZE, density) for density in DENSITIES), (LARGE, LARGE_DENSITY)]:
        parts = bytes_per_value(size, density)
        rows = [(f"{size}x{size} at {density:g}: {part}", value, None) for part, value in parts.items()]
        report.figures(
            [*rows, (f"{size}x{size} at {density:g}: all", sum(parts.values()), BYTES)], "bytes per non-zero"
        )
    large = in_own_process(arguments.threads, arguments.steps)
    title = f"{LARGE}x{LARGE} at {LARGE_DENSITY:g}, Adam, batch {BATCH}"
    report.figures([(f"{title}: peak over the start", large["peak"], PEAK)], "MiB")
    first, last = large["losses"]
    report.figures(
        [(f"{title}: seconds to build", large["build"], None), (f"{title}: per step", large["step"], None)], "s"
    )
    report.figures([(f"{title}: loss after {arguments.steps} steps, at first {first:.4f}", last, first)], "loss")
    report.write()


if __name__ == "__main__":
    main()
