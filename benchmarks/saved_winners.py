"""What the backward pass keeps of a network with k-winners: dense, and without the winners' zeros.

    python benchmarks/saved_winners.py [--json FILE]

1. The network of the k-winners study (batch 64, winners behind the pooling). 2. Four 3x3 convolutions to 64 channels on
16 images of 32x32, winners behind each (10 %), nothing else. 3. Four linear layers of 1024, batch 1024, winners behind
each (10 %). Of each: bytes that operations save for the backward pass (every storage once, without
parameters and the input), of these what k-winners caused; the peak over the start of forward and backward pass, in a
process of its own; and the time of both. ReLU in the same place is the third side.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from comparison import Report, measure, options
from timing import QUIET, restart_pinned
from torch import Tensor, nn

from gossamer.experiments import models
from gossamer.experiments.memory import PeakMemory
from gossamer.nn import KWinners, KWinners2d, SavedWinners, compressed_winners

MIB = 2**20
CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "ReLU": nullcontext,
    "k-winners": nullcontext,
    "k-winners, compressed": compressed_winners,
}
SIDES = list(CONTEXTS)


class Case(NamedTuple):
    model: nn.Module
    x: Tensor

    def forward(self) -> Tensor:
        return self.model(self.x).square().mean()

    def step(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        with context():
            loss = self.forward()
        loss.backward()
        self.model.zero_grad()


def study(side: str) -> Case:
    activation = "relu" if side == "ReLU" else "kwinners"
    return Case(models.build("winners", ((1, 28, 28), 10), activation=activation), torch.rand(64, 1, 28, 28))


def convolutions(side: str) -> Case:
    layers: list[nn.Module] = []
    for inputs in (3, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, padding=1), nn.ReLU() if side == "ReLU" else KWinners2d(64, 0.1)]
    return Case(nn.Sequential(*layers), torch.randn(16, 3, 32, 32))


def linears(side: str) -> Case:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(1024, 1024), nn.ReLU() if side == "ReLU" else KWinners(1024, 0.1)]
    return Case(nn.Sequential(*layers), torch.randn(1024, 1024))


CASES: dict[str, Callable[[str], Case]] = {
    "study network": study,
    "convolutions 64x32x32": convolutions,
    "linear 1024": linears,
}


@contextmanager
def recorded(found: dict[int, int]) -> Iterator[None]:
    """Inside, the storages that operations save: address -> bytes; they are kept, so that addresses stay theirs."""
    held = []

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def saved_bytes(case: Case) -> tuple[int, SavedWinners]:
    """Bytes that the forward pass saves as it is, and what compression makes of the winners."""
    found: dict[int, int] = {}
    with recorded(found):
        loss = case.forward()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*case.model.parameters(), case.x)}
    total = sum(size for address, size in found.items() if address not in own)
    del loss
    with compressed_winners() as winners:
        loss = case.forward()
    loss.backward()
    case.model.zero_grad(set_to_none=True)
    return total, winners


def peak(case: str, side: str, threads: int, answers: Any) -> None:
    torch.set_num_threads(threads)
    made = CASES[case](side)
    for parameter in made.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    context = CONTEXTS[side]
    with context():
        made.model(made.x[:2]).sum().backward()  # loads what the first pass loads
    memory = PeakMemory("cpu")
    with context():
        loss = made.forward()
    loss.backward()
    answers.put(memory.bytes)


def peak_in_own_process(case: str, side: str, threads: int) -> float:
    for variable in QUIET:
        os.environ.pop(variable, None)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # malloc gives memory back at once
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=peak, args=(case, side, threads, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{case}, {side}: the process ended with status {process.exitcode}")
    return float(answers.get() or 0)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--no-times", action="store_true", help="memory only")
    arguments = parser.parse_args()
    restart_pinned()
    report = Report("What k-winners leave for the backward pass", arguments)
    for name in arguments.cases:
        if not arguments.no_times:
            runs = {side: partial(CASES[name](side).step, CONTEXTS[side]) for side in SIDES}
            report.timings(f"{name}: forward and backward", measure(runs, arguments.rounds))
        dense, winners = saved_bytes(CASES[name](SIDES[1]))
        relu, _ = saved_bytes(CASES[name](SIDES[0]))
        figures = {SIDES[0]: relu, SIDES[1]: dense, SIDES[2]: dense - winners.dense + winners.kept}
        peaks = {side: peak_in_own_process(name, side, arguments.threads) for side in SIDES}
        caused = {SIDES[0]: 0, SIDES[1]: winners.dense, SIDES[2]: winners.kept}
        rows = [(side, figures[side] / MIB, caused[side] / MIB, peaks[side] / MIB) for side in SIDES]
        report.table((name, "saved, MiB", "of winners, MiB", "peak, MiB"), rows)
    report.write()


if __name__ == "__main__":
    main()
