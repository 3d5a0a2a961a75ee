"""The networks that the foresight tests run on: every layer type, small, in float64 unless asked otherwise."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from gossamer import foresight

Batch = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """Batch norm, a residual sum, a depthwise and a grouped convolution, strides, a 1x1 shortcut, pooling, a head.

    (n, 3, 8, 8) -> (n, 4). norm: else identities, and a bias in the stem. pool: the maximum, else the mean.
    """

    def __init__(self, norm: bool = True, act: type[nn.Module] = nn.Softplus, drop: float = 0.0, pool: bool = True):
        super().__init__()
        bn = nn.BatchNorm2d if norm else nn.Identity
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=not norm), bn(8)
        self.pool = nn.MaxPool2d(2) if pool else nn.AvgPool2d(2)
        self.depthwise, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), bn(8)
        self.grouped, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4, bias=False), bn(12)
        self.shortcut, self.bn3 = nn.Conv2d(8, 12, 1, stride=2, bias=False), bn(12)
        self.act, self.drop, self.head = act(), nn.Dropout(drop), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.bn0(self.stem(x))))
        branch = self.act(self.bn1(self.depthwise(x)))
        x = self.act(self.bn2(self.grouped(branch)) + self.bn3(self.shortcut(x)))
        return self.head(self.drop(x.mean((2, 3))))


class Recurrent(nn.Module):
    """Tokens (n, positions) -> logits (n, positions, 5), through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(7, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


class Attention(nn.Module):
    """Tokens (n, positions) -> logits (n, 3), through a Transformer block and an attention layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.embedding(x))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Tied(nn.Module):
    """An embedding whose table is the output layer too: tokens (n, positions) -> logits (n, positions, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(x))))


def mlp(*widths: int, bias: bool = True, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers of these widths with an activation between them; biases are not zero."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [act()] * (i > 0) + [nn.Linear(a, b, bias=bias)]
    return nn.Sequential(*layers)


def seeded(make, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:  # type: ignore[no-untyped-def]
    """Build with a seed of its own; the caller's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype)


def images(count: int = 3, size: int = 6, dtype: torch.dtype = torch.float64) -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(count):
        x = torch.randn(size, 3, 8, 8, generator=g, dtype=torch.float64).to(dtype)
        pairs.append((x, torch.randint(0, 4, (size,), generator=g)))
    return pairs


def vectors(width: int, classes: int, count: int = 3, size: int = 8, dtype: torch.dtype = torch.float64) -> list[Batch]:
    g = torch.Generator().manual_seed(2)
    pairs = []
    for _ in range(count):
        x = torch.randn(size, width, generator=g, dtype=torch.float64).to(dtype)
        pairs.append((x, torch.randint(0, classes, (size,), generator=g)))
    return pairs


def tokens(classes: int, *, each: bool, count: int = 3, size: int = 4) -> list[Batch]:
    """each: one label per position, else one per sequence."""
    g = torch.Generator().manual_seed(3)
    shape = (size, 5) if each else (size,)
    return [
        (torch.randint(0, 7, (size, 5), generator=g), torch.randint(0, classes, shape, generator=g))
        for _ in range(count)
    ]


NETS = {
    "residual": (Residual, images(), foresight.Ones((3, 8, 8))),
    "mlp": (lambda: mlp(6, 8, 7, 3), vectors(6, 3), foresight.Ones((6,))),
    "recurrent": (Recurrent, tokens(5, each=True), foresight.Ones((5,), tokens=True)),
    "attention": (Attention, tokens(3, each=False), foresight.Ones((5,), tokens=True)),
    "tied": (Tied, tokens(7, each=True), foresight.Ones((5,), tokens=True)),
}
