"""The targets: what is measured, beside dense bfloat16 in the same turn, and what is to be reached."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from rows import Row, at_least, at_most, beside, ratio
from stage import Stage
from torch import Tensor
from transform_targets import fast_transforms, offset_layer

from gossamer.kernels.gpu import blocks, threshold, transposable

# -- 2:4 --


def _layers(stage: Stage, rows: int, columns: int, execution: str) -> tuple[torch.nn.Module, torch.nn.Module] | None:
    """A semi-structured layer and a dense one of the same weight; None if there is no such layer."""
    from gossamer import nn

    if not hasattr(nn, "SemiStructuredLinear"):
        return None
    dense = torch.nn.Linear(columns, rows, bias=False, device=stage.device, dtype=torch.bfloat16)
    pruned, mask = transposable.transposable_prune(dense.weight.detach())
    with torch.no_grad():
        dense.weight.copy_(pruned)
    layer = nn.SemiStructuredLinear.from_dense(dense)
    layer.declare(mask)  # as a controller does: from then on nothing waits for the device
    layer.execution = "packed" if execution == "packed" and not stage.dry else "auto"
    return layer, dense


def two_four_products(stage: Stage) -> Iterator[Row]:
    """G1, G3: forward and gradient of the input, where 2:4 should win; and never slower where it is free to choose."""
    for n, tokens in ((4096, 4096), (4096, 16384), (8192, 8192)) if not stage.dry else ((64, 16),):
        yield _product_row(stage, "G1", n, tokens, "packed", 1.35)
    for tokens in (1, 16, 256, 2048, 16384) if not stage.dry else (8,):
        yield _product_row(stage, "G3", stage.size(4096, 64), tokens, "auto", 0.98)


def _product_row(stage: Stage, target: str, n: int, tokens: int, execution: str, wanted: float) -> Row:
    both = _layers(stage, n, n, execution)
    what = f"{n}x{n}, {tokens} tokens, {'forward and dX' if execution == 'packed' else 'forward, free to choose'}"
    if both is None:
        return Row(target, what, f">= {wanted}x", "not there", None, "gossamer.nn.SemiStructuredLinear is missing")
    sets = stage.sets(4 * tokens * n)
    inputs = [stage.random(tokens, n).requires_grad_(execution == "packed") for _ in range(sets)]
    for layer in both:
        layer.weight.requires_grad_(False)
    slope = stage.random(tokens, n)

    def run(layer: torch.nn.Module) -> Callable[[int], object]:
        def call(number: int) -> object:
            y = layer(inputs[number])
            return torch.autograd.grad(y, inputs[number], slope) if execution == "packed" else y

        return call

    for layer in both:
        run(layer)(0)  # tunes, outside any graph
    told = stage.milliseconds({"2:4": run(both[0]), "dense": run(both[1])}, sets)
    return at_least(target, what, wanted, ratio(told, "dense", "2:4"), beside(told))


def pruning(stage: Stage) -> Iterator[Row]:
    """G4, G5: the exact mask, and packing both ways."""
    n = stage.size(4096, 64)
    sets = stage.sets(2 * n * n)
    weights = [stage.random(n, n) for _ in range(sets)]

    def prune(number: int) -> Tensor:
        return transposable.transposable_prune(weights[number], with_mask=False)[0]

    def pack(number: int) -> object:
        pruned = prune(number)
        if stage.dry:
            return pruned
        return torch._cslt_compress(pruned), torch._cslt_compress(pruned.t().contiguous())

    def dense(number: int) -> Tensor:
        return weights[number] @ weights[number]

    told = stage.milliseconds({"prune": prune, "prune and pack": pack, "dense product": dense}, sets)
    figure = 1e3 * told["prune and pack"] if told else None
    yield at_most("G4", f"{n}x{n}: prune, pack W and W^T", 40, figure, "us", beside(told))
    yield Row(
        "G5", "all tiles, CPU and GPU to the bit", "100 %", "see the checks", None, "checked before anything is timed"
    )


def two_four_step(stage: Stage) -> Iterator[Row]:
    """G6: forward, backward and a new mask in each step."""
    n, tokens = stage.size(4096, 64), stage.size(16384, 32)
    both = _layers(stage, n, n, "packed")
    if both is None:
        yield Row("G6", f"{n}x{n} step", ">= 1.2x", "not there", None, "gossamer.nn.SemiStructuredLinear is missing")
        return
    x, slope = stage.random(tokens, n).requires_grad_(), stage.random(tokens, n)
    latent = stage.random(n, n)

    def step(layer: torch.nn.Module, pruned: bool) -> Callable[[int], object]:
        def call(number: int) -> object:
            if pruned:
                layer.weight.data.copy_(transposable.transposable_prune(latent, with_mask=False)[0])
                torch.autograd.graph.increment_version(layer.weight)
            return torch.autograd.grad(layer(x), (x, layer.weight), slope)

        return call

    sides = {"2:4": step(both[0], True), "dense": step(both[1], False)}
    for run in sides.values():
        run(0)
    told = stage.milliseconds(sides, 1)
    yield at_least(
        "G6", f"{n}x{n}, {tokens} tokens, prune and dense dW", 1.2, ratio(told, "dense", "2:4"), beside(told)
    )


# -- masked-dense Algorithm 1 --


def masked_step(stage: Stage) -> Iterator[Row]:
    """G9: the step of a linear layer and AdamW, with a new threshold in every step."""
    for tokens, wanted in ((2048, 5), (8192, 2)) if not stage.dry else ((16, 5),):
        yield _masked_row(stage, tokens, wanted)


def _masked_row(stage: Stage, tokens: int, wanted: float) -> Row:
    n = stage.size(4096, 32)
    master = stage.random(n, n, dtype=torch.float32).requires_grad_()
    optimizer = torch.optim.AdamW([master], fused=not stage.dry, capturable=not stage.dry)
    x, slope = stage.random(tokens, n).requires_grad_(), stage.random(tokens, n)

    def step(chosen: bool) -> Callable[[int], object]:
        def call(number: int) -> None:
            source = master.detach()
            if chosen:
                key = threshold.magnitude_key(source, None, source.numel() // 4)
                used, _ = threshold.masked(source, key, dtype=torch.bfloat16, with_mask=False)
            else:
                used = source.to(torch.bfloat16)
            used.requires_grad_()
            gradient = torch.autograd.grad(F.linear(x, used), (x, used), slope)[1]
            master.grad = gradient.float()
            optimizer.step()

        return call

    told = stage.milliseconds({"masked": step(True), "dense": step(False)}, 1)
    figure = 100 * (told["masked"] / told["dense"] - 1) if told else None
    return at_most("G9", f"{n}x{n}, {tokens} tokens, r = 1", wanted, figure, "%", beside(told))


def thresholds(stage: Stage) -> Iterator[Row]:
    """G10."""
    n = stage.size(4096, 32)
    sets = stage.sets(4 * n * n)
    weights = [stage.random(n, n, dtype=torch.float32) for _ in range(sets)]
    half = [weight.bfloat16() for weight in weights]
    count = n * n // 2
    sides = {
        "key": lambda i: threshold.magnitude_key(weights[i], None, count),
        "topk": lambda i: weights[i].abs().view(-1).topk(count, sorted=False),
        "dense bf16 product": lambda i: half[i] @ half[i],
    }
    told = stage.milliseconds(sides, sets)
    figure = 1e3 * told["key"] if told else None
    yield at_most("G10", f"{n * n:,} weights, exact, half of them", 40, figure, "us", beside(told))


# -- blocks --


def block_forward(stage: Stage) -> Iterator[Row]:
    """G11, G12: the best of at most six configurations."""
    real = (("G11", 128, 0.5, 1.5), ("G11", 128, 0.25, 2.8), ("G11", 128, 0.1, 6.0), ("G12", 64, 0.25, 2.2))
    for row in (("G11", 16, 0.5, 1.0), ("G12", 16, 0.25, 1.0)) if stage.dry else (*real, ("G12", 32, 0.25, 1.3)):
        yield _block_row(stage, *row)


def _product(inputs: list[Tensor], values: Tensor, index: Tensor, n: int, config: blocks.Config, number: int) -> Tensor:
    return blocks.block_matmul(inputs[number], values, index, None, n, config)


def _fits(run: Callable[[int], object]) -> bool:
    """Whether a configuration fits the chip: some ask for more shared memory than there is."""
    from triton.runtime.errors import OutOfResources

    try:
        run(0)
    except OutOfResources:
        return False
    return True


def _blocks(stage: Stage, n: int, side: int, density: float) -> tuple[Tensor, Tensor]:
    total = (n // side) ** 2
    order = torch.randperm(total, device=stage.device, generator=stage.generator)
    index = order[: max(1, round(density * total))].sort().values.int()
    return stage.random(len(index), side, side, dtype=stage_dtype(stage)), index


def stage_dtype(stage: Stage) -> torch.dtype:
    """bfloat16, but not where the interpreter would round it."""
    return torch.float32 if stage.dry else torch.bfloat16


def _block_row(stage: Stage, target: str, side: int, density: float, wanted: float) -> Row:
    n, tokens = stage.size(4096, 64), stage.size(8192, 24)
    values, index = _blocks(stage, n, side, density)
    inputs = [stage.random(tokens, n, dtype=stage_dtype(stage)) for _ in range(stage.sets(2 * tokens * n))]
    weight = stage.random(n, n, dtype=stage_dtype(stage))
    if not stage.kernels(values):
        return Row(target, f"block {side}", f">= {wanted}x", "not run", None, "no Triton")
    sides: dict[str, Callable[[int], object]] = {"dense": lambda i: F.linear(inputs[i], weight)}
    for config in blocks.CONFIGS[: 1 if stage.dry else None]:
        run = functools.partial(_product, inputs, values, index, n, config)
        if _fits(run):
            sides[str(tuple(config))] = run
    told = stage.milliseconds(sides, len(inputs))
    best = min((name for name in told if name != "dense"), key=told.__getitem__, default="")
    what = f"{n}x{n}, {tokens} tokens, block {side}, density {density:g}"
    note = f"tokens, warps, stages {best}; {beside({name: told[name] for name in ('dense', best)})}" if told else ""
    return at_least(target, what, wanted, ratio(told, "dense", best), note)


def block_step(stage: Stage) -> Iterator[Row]:
    """G13: forward and both gradients, that of the values only where there are blocks."""
    n, tokens, side = stage.size(4096, 64), stage.size(8192, 24), stage.size(128, 16)
    values, index = _blocks(stage, n, side, 0.25)
    x, slope = (stage.random(tokens, n, dtype=stage_dtype(stage)) for _ in range(2))
    weight = stage.random(n, n, dtype=stage_dtype(stage))
    if not stage.kernels(values):
        yield Row("G13", f"block {side} step", ">= 2.5x", "not run", None, "no Triton")
        return

    def sparse(number: int) -> object:
        return blocks.forward(x, values, index, None, n), blocks.backward(x, values, index, slope, True, True)

    def dense(number: int) -> object:
        return F.linear(x, weight), slope @ weight, slope.t() @ x

    told = stage.milliseconds({"blocks": sparse, "dense": dense}, 1)
    what = f"{n}x{n}, {tokens} tokens, block {side}, density 0.25, step"
    yield at_least("G13", what, 2.5, ratio(told, "dense", "blocks"), beside(told))


def elsewhere(stage: Stage) -> Iterator[Row]:
    """What this script does not measure, and why."""
    rows = {
        "G2": ("eager overhead of a 2:4 call", "<= 25 us", "torch builds a plan in each call; capture a graph"),
        "G7": ("ViT-L step, compiled", ">= 1.1x", "needs a model of that size, not in the package"),
        "G8": ("one prune for k micro-batches", "1", "tests/kernels/test_semi_structured.py counts packs"),
        "G16": ("unstructured inference", ">= 1.2x", "there is no such kernel; dense is used"),
        "G17": ("one all-reduce for all thresholds", "1", "needs several GPUs"),
        "G18": ("all-gather of packed 2:4", "0.6x", "needs several GPUs"),
    }
    for target, (what, wanted, why) in rows.items():
        yield Row(target, what, wanted, "not measured", None, why)


TARGETS: dict[str, Callable[[Stage], Iterator[Row]]] = {
    "G1,G3": two_four_products,
    "G4,G5": pruning,
    "G6": two_four_step,
    "G9": masked_step,
    "G10": thresholds,
    "G11,G12": block_forward,
    "G13": block_step,
    "G14": fast_transforms,
    "G15": offset_layer,
    "G2,G7,G8,G16,G17,G18": elsewhere,
}
