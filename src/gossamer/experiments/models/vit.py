"""A small vision Transformer."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ...errors import ConfigError
from .layers import TransformerBlock, at_least_one, he_normal_, positions, scaled_dim

Shape = tuple[int, ...]


class ViT(nn.Module):
    """Patches, position embeddings, pre-norm blocks, mean over the patches, linear head."""

    def __init__(self, input_shape: Shape, classes: int, patch: int, dim: int, depth: int, heads: int, hidden: int):
        super().__init__()
        channels, height, columns = input_shape
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.positions = positions((height // patch) * (columns // patch), dim, std=0.02)
        self.blocks = nn.Sequential(*[TransformerBlock(dim, heads, hidden, causal=False) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, height, width) to logits (n, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def vit_tiny(
    input_shape: Shape,
    classes: int,
    width: float = 1.0,
    *,
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    patch: int | None = None,
) -> nn.Module:
    """Return a small vision Transformer; hidden layers are 4 * dim wide.

    patch: side of a patch in pixels; None takes the largest that divides the image into at least 7x7.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; the sizes are those of DeiT-Ti (Touvron et al. 2021,
    arXiv:2012.12877). Deviations: mean over the patches in place of a class token; no dropout; He-normal init.
    """
    at_least_one(dim=dim, depth=depth, heads=heads)
    side = math.gcd(*input_shape[1:])
    if patch is None:
        patch = max(p for p in range(1, max(1, min(input_shape[1:]) // 7) + 1) if side % p == 0)
    if patch < 1 or side % patch:
        raise ConfigError(f"patch = {patch} does not divide images of {input_shape[1]}x{input_shape[2]}")
    dim = scaled_dim(dim, heads, width)
    return he_normal_(ViT(input_shape, classes, patch, dim, depth, heads, 4 * dim))
