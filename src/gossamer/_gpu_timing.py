"""How gossamer times on a GPU: captured graphs in turns, on inputs that do not fit the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch

CACHE = 96 << 20  # bytes that the inputs of a measurement take at least: an H200 has 60 MB of L2
ROUNDS = 25
STATISTIC = f"median of {ROUNDS} turns, each a replayed CUDA graph, timed by events"
Run = Callable[[int], object]  # of the number of a set of inputs


def sets_of(each: int) -> int:
    """How many sets of inputs of so many bytes exceed the cache.

    >>> sets_of(1 << 30), sets_of(8 << 20)
    (3, 12)
    """
    return min(64, max(3, -(-CACHE // each)))


def milliseconds(sides: Mapping[str, Run], sets: int, *, graphs: bool = True) -> dict[str, float]:
    """Milliseconds of a call of every side. All take turns; a turn is a graph of one call for each set of inputs.

    graphs: False for what cannot be captured; then calls are launched one by one, which short ones show.
    """
    turns = {name: _captured(run, sets).replay if graphs else _launched(run, sets) for name, run in sides.items()}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, turn in turns.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            turn()  # untimed: the caches hold what others used
            start.record()
            turn()
            end.record()
            end.synchronize()
            spent[name].append(start.elapsed_time(end) / sets)
    return {name: statistics.median(values) for name, values in spent.items()}


def _launched(run: Run, sets: int) -> Callable[[], None]:
    def turn() -> None:
        for number in range(sets):
            run(number)

    turn()  # compiles, tunes, allocates
    return turn


def _captured(run: Run, sets: int) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # compiles, tunes, allocates
            for number in range(sets):
                run(number)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(sets):
            run(number)
    return graph
