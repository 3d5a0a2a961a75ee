"""The targets of 2:4 weights: products, pruning and packing, what a call and a step cost."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from rows import Row, Task, at_least, at_most, beside, ratio
from stage import Stage
from torch import Tensor, nn

import gossamer
from gossamer import methods
from gossamer import nn as sparse_nn
from gossamer.kernels.gpu import transposable
from gossamer.kernels.semi_structured import cusparselt, operator
from gossamer.topology import NM

DTYPE = torch.bfloat16


class UnavailableError(Exception):
    """cuSPARSELt, or an algorithm of it that is right, is not there."""


def tasks(stage: Stage) -> Iterator[Task]:
    """In the order of their worth."""
    n = stage.size(4096, 64)
    yield Task("G4", f"{n}x{n}: prune, pack W and W^T", functools.partial(pruning, stage, n))
    yield Task("G5", "all tiles, CPU and GPU to the bit", quality)
    for side, tokens in ((4096, 4096), (4096, 16384), (8192, 8192)) if not stage.dry else ((64, 16),):
        what = f"{side}x{side}, {tokens} tokens, forward and dX, packed before"
        yield Task("G1", what, functools.partial(products, stage, what, side, tokens))
    for tokens in (1, 16, 256, 2048, 16384) if not stage.dry else (8,):
        what = f"{n}x{n}, {tokens} tokens, forward, free to choose, packing included"
        yield Task("G3", what, functools.partial(dispatched, stage, what, n, tokens))
    yield Task("G6", f"{n}x{n}, prune and dense dW", functools.partial(step, stage, n, stage.size(16384, 32)))
    yield Task("G2", "what a packed call costs the host, beyond a dense one", functools.partial(overhead, stage))
    yield Task("G8", "masks and packs in a step of 4 micro-batches", functools.partial(micro_batches, stage))


def _layers(stage: Stage, rows: int, columns: int, execution: str, dtype: torch.dtype = DTYPE) -> tuple[Any, nn.Linear]:
    """A semi-structured layer and a dense one of the same weight."""
    dense = nn.Linear(columns, rows, bias=False, device=stage.device, dtype=dtype)
    pruned, mask = transposable.transposable_prune(dense.weight.detach())
    with torch.no_grad():
        dense.weight.copy_(pruned)
    layer = sparse_nn.SemiStructuredLinear.from_dense(dense)
    layer.declare(mask)  # as a controller does: from then on nothing waits for the device
    layer.execution = "packed" if execution == "packed" else "auto"
    return layer, dense


def _product_of(stage: Stage, weight: Tensor, tokens: int, transposed: bool) -> tuple[Callable[[Tensor], Tensor], str]:
    """x W^T, or x W, of a weight packed now; and by which algorithm."""
    if stage.dry:
        return lambda x: operator.product(x, weight, None, -1, transposed, True, True), "emulated"
    algorithm = cusparselt.choice(tokens, DTYPE, weight, transposed, always=True)
    if algorithm is None:
        raise UnavailableError("no algorithm of cuSPARSELt is right here")
    device = cusparselt.Device(torch.cuda.current_device())
    packed = device.pack(weight.t() if transposed else weight)
    return lambda x: device.multiply(packed, x, None, algorithm), f"algorithm {algorithm}"


def products(stage: Stage, what: str, n: int, tokens: int) -> Row:
    """G1: nothing but the two products."""
    weight = transposable.transposable_prune(stage.random(n, n), with_mask=False)[0]
    (forward, first), (back, second) = (_product_of(stage, weight, tokens, way) for way in (False, True))
    inputs = [stage.random(tokens, n) for _ in range(stage.sets(2 * tokens * n))]
    slopes = [stage.random(tokens, n) for _ in inputs]
    sides = {
        "2:4": lambda i: (forward(inputs[i]), back(slopes[i])),
        "dense": lambda i: (F.linear(inputs[i], weight), slopes[i] @ weight),
    }
    told = stage.milliseconds(sides, len(inputs))
    return at_least("G1", what, 1.35, ratio(told, "dense", "2:4"), f"{first}, {second}; {beside(told)}")


def dispatched(stage: Stage, what: str, n: int, tokens: int) -> Row:
    """G3: a layer that may compute densely, on inputs and weights that take turns."""
    sets = stage.sets(2 * tokens * n + n * n)  # packed weights, too, exceed the cache
    pairs = [_layers(stage, n, n, "auto") for _ in range(sets)]
    inputs = [stage.random(tokens, n) for _ in range(sets)]

    def run(side: int) -> Callable[[int], object]:
        return lambda number: pairs[number][side](inputs[number])

    with torch.no_grad():
        run(0)(0)  # tunes, outside any graph
        told = stage.milliseconds({"2:4": run(0), "dense": run(1)}, sets)
    return at_least("G3", what, 0.98, ratio(told, "dense", "2:4"), beside(told))


def pruning(stage: Stage, n: int) -> Row:
    """G4: the exact mask, and packing both ways."""
    sets = stage.sets(2 * n * n)
    weights = [stage.random(n, n) for _ in range(sets)]
    device = cusparselt.Device(0)

    def prune(number: int) -> Tensor:
        return transposable.transposable_prune(weights[number], with_mask=False)[0]

    def bare(number: int) -> object:
        pruned = prune(number)
        return torch._cslt_compress(pruned), torch._cslt_compress(pruned.t().contiguous())

    def pack(number: int) -> object:
        pruned = prune(number)
        return device.pack(pruned), device.pack(pruned.t())

    def dense(number: int) -> Tensor:
        return weights[number] @ weights[number]

    real = {"prune and pack": bare, "with the check that it is 2:4": pack, "dense product": dense}
    sides = {"prune": prune} if stage.dry else {"prune": prune, **real}
    told = stage.milliseconds(sides, sets)
    figure = 1e3 * told["prune and pack"] if told else None
    return at_most("G4", f"{n}x{n}: prune, pack W and W^T", 40, figure, "us", beside(told))


def quality() -> Row:
    """G5: the checks decide."""
    return Row("G5", "all tiles, CPU and GPU to the bit", "100 %", "see the checks", None, "the row on masks above")


def step(stage: Stage, n: int, tokens: int) -> Row:
    """G6: forward, backward and a new mask in each step."""
    both = _layers(stage, n, n, "packed")
    x, slope = stage.random(tokens, n).requires_grad_(), stage.random(tokens, n)
    latent = stage.random(n, n)

    def run(layer: nn.Linear, pruned: bool) -> Callable[[int], object]:
        def call(number: int) -> object:
            if pruned:
                layer.weight.data.copy_(transposable.transposable_prune(latent, with_mask=False)[0])
                torch.autograd.graph.increment_version(layer.weight)
            return torch.autograd.grad(layer(x), (x, layer.weight), slope)

        return call

    sides = {"2:4": run(both[0], True), "dense": run(both[1], False)}
    for call in sides.values():
        call(0)
    told = stage.milliseconds(sides, 1)
    what = f"{n}x{n}, {tokens} tokens, prune and dense dW"
    return at_least("G6", what, 1.2, ratio(told, "dense", "2:4"), beside(told))


def overhead(stage: Stage, calls: int = 200) -> Row:
    """G2: how long the host takes to launch, the GPU far behind or not."""
    layers = dict(zip(("packed", "dense"), _layers(stage, 256, 256, "packed"), strict=True))
    x = stage.random(64, 256)
    told: dict[str, list[float]] = {name: [] for name in layers}
    with torch.no_grad():
        for _ in range(1 if stage.dry else 9):
            for name, layer in layers.items():
                layer(x)
                if not stage.dry:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(1 if stage.dry else calls):
                    layer(x)
                told[name].append(1e6 * (time.perf_counter() - start) / calls)
    times = {name: statistics.median(each) for name, each in told.items()}
    note = "median of 9 times 200 calls, not waiting: " + ", ".join(f"{n} {us:.1f} us" for n, us in times.items())
    figure = None if stage.dry else times["packed"] - times["dense"]
    what = "what a packed call costs the host, beyond a dense one"
    return at_most("G2", what, 25, figure, "us", "" if stage.dry else f"{note}; nothing in a captured graph")


def micro_batches(stage: Stage) -> Row:
    """G8: counted in the last of three steps of a controller, here as in the emulation."""
    owner = operator if stage.dry else cusparselt.Device
    pack, at_once = owner.pack, NM.at_once  # type: ignore[attr-defined]
    told: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            told.append(name)
            return function(*given, **named)

        return call

    dtype = torch.float32 if stage.dry else DTYPE  # which the CPU selects natively
    layer, _ = _layers(stage, 64, 64, "packed", dtype)
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = methods.rewire(0.5, allocation="uniform", structure=NM(2, 4, transposable=True))
    gossamer.sparsify(model, method, optimizer, total_steps=3)
    owner.pack, NM.at_once = counted("pack", pack), counted("mask", at_once)  # type: ignore
    try:
        for _ in range(3):
            told.clear()
            for _ in range(4):
                model(stage.random(16, 64, dtype=dtype).requires_grad_()).float().sum().backward()
            optimizer.step()
    finally:
        owner.pack, NM.at_once = pack, at_once  # type: ignore
    counts = told.count("mask"), told.count("pack")
    what, figure = "masks and packs in a step of 4 micro-batches", f"{counts[0]} mask, {counts[1]} packs"
    return Row("G8", what, "1 mask, 1 pack each way", figure, None if stage.dry else counts == (1, 2), "counted")
