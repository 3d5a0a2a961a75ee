"""The targets of transforms: alone, and in a layer with an offset."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from rows import Row, at_least, beside, ratio
from stage import Stage
from torch import Tensor

from gossamer.kernels.gpu import transforms


def fast_transforms(stage: Stage) -> Iterator[Row]:
    """G14."""
    for n, wanted in ((1024, 2), (4096, 6), (16384, 12)) if not stage.dry else ((256, 2),):
        tokens = stage.size(16384, 3)
        dtype = torch.float16 if stage.dry else torch.bfloat16
        inputs = [stage.random(tokens, n, dtype=dtype) for _ in range(stage.sets(2 * tokens * n))]
        if not stage.kernels(inputs[0]):
            yield Row("G14", f"transforms of {n}", f">= {wanted}x", "not run", None, "no Triton")
            continue
        weight, sizes = stage.random(n, n, dtype=dtype), (n, n, n)
        told = stage.milliseconds(
            {
                "DCT": lambda i, x=inputs, s=sizes: transforms.transform("cosine", x[i], None, s, -1, False),
                "Hadamard": lambda i, x=inputs, s=sizes: transforms.transform("hadamard", x[i], None, s, -1, False),
                "dense": lambda i, x=inputs, w=weight: F.linear(x[i], w),
            },
            len(inputs),
        )
        for name in ("DCT", "Hadamard"):
            what = f"{name}, N = {n}, {tokens} tokens"
            yield at_least("G14", what, wanted, ratio(told, "dense", name), beside(told))


def offset_layer(stage: Stage) -> Iterator[Row]:
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
    yield at_least("G15", what, 1.0, ratio(told, "dense", "offset"), f"the fallback; {beside(told)}")
