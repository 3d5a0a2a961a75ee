"""A small GPT-style model of bytes."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ...errors import ConfigError
from .layers import TransformerBlock, at_least_one, positions, scaled, scaled_dim

Shape = tuple[int, ...]


class GPT(nn.Module):
    """Token and position embeddings, causal pre-norm blocks, final norm, head not tied to the embedding."""

    def __init__(self, context: int, vocabulary: int, dim: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = positions(context, dim, std=0.5 / math.sqrt(dim))
        self.blocks = nn.Sequential(*[TransformerBlock(dim, heads, hidden, causal=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self._init(depth)

    def _init(self, depth: int) -> None:
        """Half of 1/sqrt(fan_in), what writes to the residual stream also / sqrt(2 depth); embeddings 2/sqrt(dim)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith(("attention.out", "down"))
                std = 0.5 / math.sqrt(module.in_features) / (math.sqrt(2 * depth) if writes else 1.0)
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=2 / math.sqrt(self.embedding.embedding_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, positions) int64 to logits (n, positions, vocabulary); positions is at most the context."""
        if tokens.shape[1] > len(self.positions):
            raise ConfigError(f"{tokens.shape[1]} tokens do not fit the model's context of {len(self.positions)}")
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def gpt(
    input_shape: Shape,
    classes: int,
    width: float = 1.0,
    *,
    dim: int = 96,
    depth: int = 2,
    heads: int = 4,
    hidden: int = 384,
) -> nn.Module:
    """Return a GPT-style byte model for contexts of up to `input_shape[0]` tokens; `hidden` is the feed-forward width.

    Source: Radford et al. 2019 (GPT-2). Deviations: untied head; initial scale by fan-in, so that it follows the width.
    """
    at_least_one(dim=dim, depth=depth, heads=heads, hidden=hidden)
    sizes = scaled_dim(dim, heads, width), depth, heads, scaled(hidden, width)
    return GPT(input_shape[0], classes, *sizes)
