"""The fixed matrix U, (N, k), of w = d + U theta: four ways to draw it.

Symbols: N weights in all, k trained numbers, ``n_l`` the weights of tensor l. Source: Li et al. 2018, arXiv:1804.08838,
whose three projections have columns of unit norm; `Disjoint` is the one that makes a network sparse (Price and Tanner
2021, arXiv:2102.07655).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError, check_choice
from ..nn._drawing import draw_positions
from ..seeding import generator_for
from ..topology import ALLOCATIONS, resolve_allocation

Shapes = Mapping[str, Sequence[int]]
_MOST = 2**31  # numbers in a dense U: 8 GiB
_BLOCK = 64


class Embedding(nn.Module):
    """U, as buffers that no state dict holds: ``forward(theta)`` is U theta, of shape (N,); differentiable."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)


@dataclass(frozen=True)
class Projection(ABC):
    """How U is drawn. name: on the command line."""

    name: ClassVar[str]

    @abstractmethod
    def embed(self, shapes: Shapes, dimension: int, seed: int) -> Embedding:
        """U for tensors of these shapes, one after the other, and ``dimension`` columns."""

    def _draw(self, seed: int, part: str) -> torch.Generator:
        return generator_for(seed, f"subspace-{self.name}", part)


class _Matrix(Embedding):
    matrix: Tensor

    def forward(self, theta: Tensor) -> Tensor:
        return self.matrix @ theta


@dataclass(frozen=True)
class Dense(Projection):
    """Normal entries, columns divided by their norms. Holds N k numbers.

    Raises:
        ConfigError: these would be more than 2^31.
    """

    name = "dense"

    def embed(self, shapes: Shapes, dimension: int, seed: int) -> Embedding:
        """U."""
        rows = sum(map(math.prod, shapes.values()))
        if rows * dimension > _MOST:
            raise ConfigError(
                f"a dense projection of {rows} weights from {dimension} dimensions holds {rows * dimension} numbers; "
                "use Sparse() or Fastfood()"
            )
        matrix = torch.randn(rows, dimension, generator=self._draw(seed, "entries"), dtype=torch.float32)
        return _Matrix(matrix=matrix.div_(torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float64).float()))


class _Coordinates(Embedding):
    """Non-zeros: value_i in row_i and column_i."""

    row: Tensor
    column: Tensor
    value: Tensor

    def __init__(self, size: int, **buffers: Tensor) -> None:
        super().__init__(**buffers)
        self.size = size

    def forward(self, theta: Tensor) -> Tensor:
        terms = self.value.to(theta.dtype) * theta.index_select(0, self.column)
        return theta.new_zeros(self.size).index_add(0, self.row, terms)


@dataclass(frozen=True)
class Sparse(Projection):
    """A share 1 / sqrt(n_l) of each tensor's entries, +-n_l^(1/4), columns divided by their norms over all tensors.

    Deviations: exactly ``round(k sqrt(n_l))`` entries, where the source draws each one by itself; a column that got
    none is zero.
    """

    name = "sparse"

    def embed(self, shapes: Shapes, dimension: int, seed: int) -> Embedding:
        """U."""
        rows, columns, values, start = [], [], [], 0
        for number, size in enumerate(map(math.prod, shapes.values())):
            generator = self._draw(seed, f"tensor {number}")
            flat = draw_positions(
                size * dimension, min(size * dimension, round(dimension * math.sqrt(size))), generator
            )
            signs = torch.randint(0, 2, flat.shape, generator=generator) * 2 - 1
            rows.append(start + flat // dimension)
            columns.append(flat % dimension)
            values.append(signs.float() * size**0.25)
            start += size
        column, value = torch.cat(columns), torch.cat(values).double()
        norms = torch.zeros(dimension, dtype=torch.float64).index_add(0, column, value.square()).sqrt()
        scaled = (value / norms[column]).float()
        return _Coordinates(start, row=torch.cat(rows), column=column, value=scaled)


class _Fastfood(Embedding):
    signs: Tensor
    order: Tensor
    gains: Tensor

    def __init__(self, size: int, dimension: int, **buffers: Tensor) -> None:
        super().__init__(**buffers)
        length = len(self.signs)
        self.size = size
        squares = float(self.gains.double().square().sum())
        self.norm = math.sqrt(length * squares) * math.sqrt(size / length)

    def forward(self, theta: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(theta, (0, len(self.signs) - len(theta)))
        mixed = hadamard(padded * self.signs.to(theta.dtype)).index_select(0, self.order)
        return hadamard(mixed * self.gains.to(theta.dtype))[: self.size] / self.norm


def hadamard(x: Tensor) -> Tensor:
    """The unnormalised Walsh-Hadamard transform of a vector whose length is a power of two.

    >>> hadamard(torch.tensor([1.0, 0.0, 2.0, 0.0]))
    tensor([ 3.,  3., -1., -1.])
    """
    length, done = len(x), 1
    while done < length:  # a product with a small matrix takes six levels at once
        size = min(_BLOCK, length // done)
        small = _small_hadamard(size).to(x)
        blocks = x.view(-1, size) @ small if done == 1 else small @ x.view(-1, size, done)
        x, done = blocks.view(length), done * size
    return x


@cache
def _small_hadamard(size: int) -> Tensor:
    with torch.inference_mode(False), torch.device("cpu"):  # the next one to use it may be in no such mode
        if size == 1:
            return torch.ones(1, 1)
        half = _small_hadamard(size // 2)
        return torch.cat((torch.cat((half, half), 1), torch.cat((half, -half), 1)))


@dataclass(frozen=True)
class Fastfood(Projection):
    """H G P H B, cropped: Hadamard transforms, a permutation, random signs and normal gains.

    Columns have unit norm on average. Time O(N log N), memory O(N). Source: Le et al. 2013, as Li et al. use it; one
    block over all tensors.
    """

    name = "fastfood"

    def embed(self, shapes: Shapes, dimension: int, seed: int) -> Embedding:
        """U."""
        size = sum(map(math.prod, shapes.values()))
        length = 1 << max(0, size - 1).bit_length()
        generator = self._draw(seed, "factors")
        signs = (torch.randint(0, 2, (length,), generator=generator) * 2 - 1).float()
        order = torch.randperm(length, generator=generator)
        gains = torch.randn(length, generator=generator, dtype=torch.float32)
        return _Fastfood(size, dimension, signs=signs, order=order, gains=gains)


@dataclass(frozen=True)
class Disjoint(Projection):
    """One entry of 1 in each column, at most one in each row: theta are k of the weights themselves.

    allocation: how many in each tensor (see `gossamer.topology.ALLOCATIONS`); None draws them from all weights alike.
    """

    allocation: str | None = None
    name = "disjoint"

    def __post_init__(self) -> None:
        if self.allocation is not None:
            check_choice("allocation", self.allocation, tuple(ALLOCATIONS))

    def embed(self, shapes: Shapes, dimension: int, seed: int) -> Embedding:
        """U."""
        sizes = [math.prod(shape) for shape in shapes.values()]
        total, counts = sum(sizes), [dimension]
        if self.allocation is not None:
            counts = list(resolve_allocation(self.allocation)(shapes, dimension / total).values())
        starts, ranges = ([0], [total]) if self.allocation is None else (_starts(sizes), sizes)
        rows = [
            start + draw_positions(size, count, self._draw(seed, f"part {number}"))
            for number, (start, size, count) in enumerate(zip(starts, ranges, counts, strict=True))
        ]
        row = torch.cat(rows)
        return _Coordinates(total, row=row, column=torch.arange(len(row)), value=torch.ones(len(row)))


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:number]) for number in range(len(sizes))]


PROJECTIONS: Mapping[str, type[Projection]] = {made.name: made for made in (Dense, Sparse, Fastfood, Disjoint)}
