"""The targets of block-sparse products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from checks import fitting
from rows import Row, Task, at_least, beside, ratio
from stage import Stage
from torch import Tensor

from gossamer.kernels.gpu import blocks


def tasks(stage: Stage) -> Iterator[Task]:
    """G11, G12: the best of at most six configurations; G13."""
    real = (("G11", 128, 0.5, 1.5), ("G11", 128, 0.25, 2.8), ("G11", 128, 0.1, 6.0), ("G12", 64, 0.25, 2.2))
    for row in (("G11", 16, 0.5, 1.0), ("G12", 16, 0.25, 1.0)) if stage.dry else (*real, ("G12", 32, 0.25, 1.3)):
        yield Task(row[0], f"block {row[1]}, density {row[2]:g}", functools.partial(forward, stage, *row))
    yield Task("G13", "step of blocks, density 0.25", functools.partial(step, stage))


def _product(inputs: list[Tensor], values: Tensor, index: Tensor, n: int, config: blocks.Config, number: int) -> Tensor:
    return blocks.block_matmul(inputs[number], values, index, None, n, config)


def _blocks(stage: Stage, n: int, side: int, density: float) -> tuple[Tensor, Tensor]:
    total = (n // side) ** 2
    order = torch.randperm(total, device=stage.device, generator=stage.generator)
    index = order[: max(1, round(density * total))].sort().values.int()
    return stage.random(len(index), side, side, dtype=_dtype(stage)), index


def _dtype(stage: Stage) -> torch.dtype:
    """bfloat16, but not where the interpreter would round it."""
    return torch.float32 if stage.dry else torch.bfloat16


def forward(stage: Stage, target: str, side: int, density: float, wanted: float) -> Row:
    """G11, G12: the figure is that of the best configuration; the note says what the library's own choice gives."""
    n, tokens = stage.size(4096, 64), stage.size(8192, 24)
    values, index = _blocks(stage, n, side, density)
    inputs = [stage.random(tokens, n, dtype=_dtype(stage)) for _ in range(stage.sets(2 * tokens * n))]
    weight = stage.random(n, n, dtype=_dtype(stage))
    if not stage.kernels(values):
        return Row(target, f"block {side}", f">= {wanted}x", "not run", None, "no Triton")
    sides: dict[str, Callable[[int], object]] = {"dense": lambda i: F.linear(inputs[i], weight)}
    for config in blocks.CONFIGS[: 1 if stage.dry else None]:
        run = functools.partial(_product, inputs, values, index, n, config)
        if fitting(functools.partial(run, 0)):
            sides[str(tuple(config))] = run
    told = stage.milliseconds(sides, len(inputs))
    best = min((name for name in told if name != "dense"), key=told.__getitem__, default="")
    what = f"{n}x{n}, {tokens} tokens, block {side}, density {density:g}"
    own = str(tuple(blocks.default(side, values.dtype)))
    note = f"tokens, warps, stages {best}; {beside({name: told[name] for name in ('dense', best)})}" if told else ""
    note += f"; as the library cuts it {ratio(told, 'dense', own):.2f}x" if own in told else ""
    return at_least(target, what, wanted, ratio(told, "dense", best), note)


def step(stage: Stage) -> Row:
    """G13: forward and both gradients, that of the values only where there are blocks."""
    n, tokens, side = stage.size(4096, 64), stage.size(8192, 24), stage.size(128, 16)
    values, index = _blocks(stage, n, side, 0.25)
    x, slope = (stage.random(tokens, n, dtype=_dtype(stage)) for _ in range(2))
    weight = stage.random(n, n, dtype=_dtype(stage))
    if not stage.kernels(values):
        return Row("G13", f"block {side} step", ">= 2.5x", "not run", None, "no Triton")

    def sparse(number: int) -> object:
        return blocks.forward(x, values, index, None, n), blocks.backward(x, values, index, slope, True, True)

    def dense(number: int) -> object:
        return F.linear(x, weight), slope @ weight, slope.t() @ x

    told = stage.milliseconds({"blocks": sparse, "dense": dense}, 1)
    what = f"{n}x{n}, {tokens} tokens, block {side}, density 0.25, step"
    return at_least("G13", what, 2.5, ratio(told, "dense", "blocks"), beside(told))
