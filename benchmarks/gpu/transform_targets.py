"""The targets of transforms: alone, and in a layer with an offset."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from rows import Row, Task, at_least, beside, ratio
from stage import Stage
from torch import Tensor

from gossamer.kernels.gpu import transforms


def tasks(stage: Stage) -> Iterator[Task]:
    """G14, G15."""
    for n, wanted in ((1024, 2), (4096, 6), (16384, 12)) if not stage.dry else ((256, 2),):
        for name in ("cosine", "hadamard"):
            what = f"{name}, N = {n}"
            yield Task("G14", what, functools.partial(transform_alone, stage, what, name, n, wanted))
    yield Task("G15", "DCT + S, whole step, the fallback", functools.partial(offset_layer, stage))


def transform_alone(stage: Stage, what: str, name: str, n: int, wanted: float) -> Row:
    """G14."""
    tokens = stage.size(16384, 3)
    dtype = torch.float16 if stage.dry else torch.bfloat16
    inputs = [stage.random(tokens, n, dtype=dtype) for _ in range(stage.sets(2 * tokens * n))]
    if not stage.kernels(inputs[0]):
        return Row("G14", what, f">= {wanted}x", "not run", None, "no Triton")
    weight, sizes = stage.random(n, n, dtype=dtype), (n, n, n)
    sides = {
        "transform": lambda i: transforms.transform(name, inputs[i], None, sizes, -1, False),
        "copy": lambda i: inputs[i].clone(),
        "dense": lambda i: F.linear(inputs[i], weight),
    }
    told = stage.milliseconds(sides, len(inputs))
    return at_least("G14", f"{what}, {tokens} tokens", wanted, ratio(told, "dense", "transform"), beside(told))


def offset_layer(stage: Stage) -> Row:
    """G15: the fallback, one dense product with alpha D + S, made once in a step."""
    n, tokens, alpha = stage.size(4096, 32), stage.size(8192, 16), 0.5
    offset, sparse, weight = (stage.random(n, n) for _ in range(3))
    x, slope = stage.random(tokens, n), stage.random(tokens, n)

    def step(used: Tensor) -> object:
        return F.linear(x, used), slope @ used, slope.t() @ x

    sides = {
        "offset": lambda i: step(torch.add(sparse, offset, alpha=alpha)),
        "dense": lambda i: step(weight),
    }
    told = stage.milliseconds(sides, 1)
    what = f"DCT + S, N = {n}, {tokens} tokens, whole step"
    return at_least("G15", what, 1.0, ratio(told, "dense", "offset"), f"the fallback; {beside(told)}")
