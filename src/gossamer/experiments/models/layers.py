"""Small shared parts of the reference models."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import ConfigError


def scaled(size: int, width: float) -> int:
    """Return a hidden size times `width`, rounded, at least 1.

    >>> scaled(256, 0.1), scaled(10, 0.001)
    (26, 1)
    """
    return max(1, round(size * width))


def scaled_dim(dim: int, heads: int, width: float) -> int:
    """Return an embedding size times `width`, in whole sizes of `heads` heads.

    Raises ConfigError if `heads` does not divide `dim`.

    >>> scaled_dim(96, 4, 0.3)
    28
    """
    if dim % heads:
        raise ConfigError(f"dim = {dim} cannot be cut into {heads} heads; use a multiple of {heads}")
    return heads * scaled(dim // heads, width)


def he_normal_(model: nn.Module) -> nn.Module:
    """Draw every linear and convolution weight from N(0, 2 / fan_in), set their biases to 0, and return the model.

    Source: He et al. 2015, arXiv:1502.01852, equation 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def chain(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return the layers one after the other, under the names that tables of weights show."""
    return nn.Sequential(OrderedDict(layers))


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Return convolution without bias (same padding), batch norm and, unless None, the activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    layers: dict[str, nn.Module] = {"conv": conv, "norm": nn.BatchNorm2d(outputs)}
    return chain(layers | ({"activation": activation()} if activation else {}))


def pooled_head(channels: int, classes: int) -> nn.Sequential:
    """Return global average pooling and a linear layer: (n, channels, height, width) to (n, classes)."""
    return chain({"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "linear": nn.Linear(channels, classes)})


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values: (n, tokens, dim) to the same."""

    def __init__(self, dim: int, heads: int, *, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens."""
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, dim))


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feed-forward(norm(x)); (n, tokens, dim) to the same."""

    def __init__(self, dim: int, heads: int, hidden: int, *, causal: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal=causal)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both residual branches."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def positions(count: int, dim: int, std: float) -> nn.Parameter:
    """Return learned position embeddings (count, dim), drawn from N(0, std^2)."""
    return nn.Parameter(torch.randn(count, dim) * std)


def at_least_one(**sizes: int | tuple[int, ...]) -> None:
    """Raise ConfigError unless every named size, or every member of it, is 1 or more."""
    for name, value in sizes.items():
        if any(size < 1 for size in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{name} = {value}: expected 1 or more")
