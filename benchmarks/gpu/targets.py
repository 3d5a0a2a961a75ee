"""All targets: what is measured, beside dense bfloat16 in the same turn, what is to be reached, what is not done."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import block_targets
import masked_targets
import model_targets
import torch
import transform_targets
import two_four_targets
from rows import Row, Task, not_done
from stage import Stage, clocks

CEILINGS = "ceilings"
_BARE = {
    "G15": (
        "DCT + S with a sparse product, S at .1 %",
        ">= 2.5x",
        "there is no GPU kernel for unstructured S; the row above adds S to D and multiplies once",
    ),
    "G16": (
        "unstructured inference, up to 32 tokens",
        ">= 1.2x",
        "there is no gathering kernel: unstructured weights run dense with a mask, so the ratio is 1",
    ),
    "G17": (
        "threshold of all weights in one all-reduce",
        "1, <= 0.6 MB",
        "not with one GPU. Under DDP every rank finds the threshold in its own replica: no collective for it. Under "
        "FSDP2 weights are gathered one by one; counted with gloo in tests/distributed",
    ),
    "G18": (
        "all-gather of packed 2:4 under FSDP2",
        "0.6x",
        "FSDP2 gathers dense weights and the layer packs what was gathered: 1.0x of the bytes",
    ),
}


def tasks(stage: Stage) -> list[Task]:
    """All of them, in the order in which they are done, the same in every process."""
    first, last = (Task(CEILINGS, when, functools.partial(ceilings, stage, when)) for when in ("at first", "at last"))
    parts = (masked_targets, two_four_targets, transform_targets, block_targets, model_targets)
    real = [task for part in parts for task in part.tasks(stage)]
    return [first, *_not_done(), *real, last]


def _not_done() -> Iterator[Task]:
    for target, (what, wanted, why) in _BARE.items():
        yield Task(target, what, functools.partial(not_done, target, what, wanted, why))


def ceilings(stage: Stage, when: str) -> Row:
    """What a copy and a dense bfloat16 product reach, on random data, to read the rest by."""
    n = stage.size(8192, 32)
    source, weight = stage.random(8 * n, n), stage.random(n, n)
    target = torch.empty_like(source)
    x = stage.random(n, n)
    told = stage.milliseconds({"copy": lambda i: target.copy_(source), "product": lambda i: x @ weight}, 1)
    if not told:
        return Row(CEILINGS, when, "", "dry run", None)
    moved, done = 2 * source.nbytes / told["copy"] / 1e9, 2 * n**3 / told["product"] / 1e9
    return Row(CEILINGS, when, "", f"copy {moved:.2f} TB/s, bfloat16 product {done:.0f} TFLOP/s", None, clocks())
