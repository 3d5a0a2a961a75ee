"""The targets of masked dense training: the threshold, and a step with a new one each time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from rows import Row, Task, at_most, beside
from stage import Stage
from torch import Tensor

from gossamer.kernels.gpu import threshold


def tasks(stage: Stage) -> Iterator[Task]:
    """G10, G9."""
    n = stage.size(4096, 32)
    yield Task("G10", f"{n * n:,} weights, exact, half of them", functools.partial(threshold_alone, stage, n))
    for tokens, wanted in ((2048, 5), (8192, 2)) if not stage.dry else ((16, 5),):
        run = functools.partial(masked_step, stage, n, tokens, wanted)
        yield Task("G9", f"{n}x{n}, {tokens} tokens, r = 1", run)
    yield Task("G10", "the same by torch.topk, for comparison", functools.partial(by_topk, stage, n))


def masked_step(stage: Stage, n: int, tokens: int, wanted: float) -> Row:
    """G9: the step of a linear layer and AdamW, with a new threshold in every step."""
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


def _weights(stage: Stage, n: int) -> list[Tensor]:
    return [stage.random(n, n, dtype=torch.float32) for _ in range(stage.sets(4 * n * n))]


def threshold_alone(stage: Stage, n: int) -> Row:
    """G10."""
    weights, count = _weights(stage, n), n * n // 2
    half = [weight.bfloat16() for weight in weights]
    keys = [threshold.magnitude_key(weight, None, count) for weight in weights]
    sides: dict[str, Callable[[int], object]] = {
        "key": lambda i: threshold.magnitude_key(weights[i], None, count),
        "masked cast": lambda i: threshold.masked(weights[i], keys[i], dtype=torch.bfloat16, with_mask=False),
        "cast": lambda i: weights[i].bfloat16(),
        "dense bf16 product": lambda i: half[i] @ half[i],
    }
    told = stage.milliseconds(sides, len(weights))
    figure = 1e3 * told["key"] if told else None
    return at_most("G10", f"{n * n:,} weights, exact, half of them", 40, figure, "us", beside(told))


def by_topk(stage: Stage, n: int) -> Row:
    """What others do."""
    weights, count = _weights(stage, n), n * n // 2
    told = stage.milliseconds({"topk": lambda i: weights[i].abs().view(-1).topk(count, sorted=False)}, len(weights))
    what = "the same by torch.topk, for comparison"
    return Row("G10", what, "", f"{1e3 * told['topk']:.1f} us" if told else "dry run", None)
