"""The target of a whole model: a training step of Transformer blocks with 2:4 MLPs, compiled, beside dense ones."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from rows import Row, Task, at_least, beside, ratio
from stage import Stage
from torch import Tensor, nn

import gossamer
from gossamer import methods
from gossamer.nn import SemiStructuredLinear
from gossamer.topology import NM

MLPS = ["*.up.weight", "*.down.weight"]


class Block(nn.Module):
    """A block of ViT: attention, and an MLP of four times the width, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width)."""
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.between(x))))


def tasks(stage: Stage) -> Iterator[Task]:
    """G7."""
    yield Task("G7", "compiled training step, blocks of ViT-L, MLPs 2:4", functools.partial(model_step, stage))


def model_step(stage: Stage) -> Row:
    """G7: float32 weights under autocast, fused AdamW, a new transposable mask in every step."""
    depth, width, heads = (1, 32, 2) if stage.dry else (4, 1024, 16)
    batch, tokens = (2, 8) if stage.dry else (64, 197)
    torch.manual_seed(0)
    dense = nn.Sequential(*(Block(width, heads) for _ in range(depth))).to(stage.device)
    x = stage.random(batch, tokens, width)
    sides = {"2:4": _step(stage, copy.deepcopy(dense), x, True), "dense": _step(stage, dense, x, False)}
    told = stage.milliseconds(sides, 1, graphs=False)
    what = f"{depth} compiled blocks of ViT-L, {batch * tokens:,} tokens, training step, MLPs 2:4"
    return at_least("G7", what, 1.1, ratio(told, "dense", "2:4"), beside(told))


def _step(stage: Stage, model: nn.Module, x: Tensor, sparse: bool) -> Callable[[int], object]:
    method = methods.rewire(0.5, allocation="uniform", structure=NM(2, 4, transposable=True))
    if sparse:
        model = gossamer.convert(model, method, layout="semi_structured", targets=MLPS)
        for layer in model.modules():
            if isinstance(layer, SemiStructuredLinear):
                layer.execution = "packed"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not stage.dry)
    if sparse:
        gossamer.sparsify(model, method, optimizer, targets=MLPS, total_steps=10_000)
    run = torch.compile(model, backend="eager" if stage.dry else "inductor")

    def step(number: int) -> None:
        with torch.autocast(stage.device.type, torch.bfloat16):
            loss = run(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
