"""Which algorithm multiplies a packed matrix, and whether that beats the dense product: measured, and checked.

Algorithms of cuSPARSELt have numbers whose meaning changes with its version; the default is seldom the best, and some
have been seen to give wrong results, not always the same (pytorch issue 155333). So every one is compared with a
float32 reference on several draws before it is timed, and again for each number of samples that it is used for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ... import _user_cache
from .packs import Held, Pack, Side

MARGIN = 1.05  # packed products are taken if they win by more than measurements scatter
_MOST_ALGORITHMS, _DRAWS, _ROUNDS = 256, 3, 7
_MOST_SAMPLES, _FEWEST_SAMPLES = 16384, 8  # times of more are in proportion
_CHUNK = 4096  # samples of the reference at a time


@dataclass(frozen=True)
class Shape:
    """Of a product: (samples, columns) x (rows, columns)^T."""

    rows: int
    columns: int
    samples: int
    dtype: torch.dtype

    @property
    def bucket(self) -> Shape:
        """The shape that stands for this one in measurements: no more samples, and a power of two of them."""
        power = 1 << (self.samples.bit_length() - 1)
        return replace(self, samples=min(max(power, _FEWEST_SAMPLES), _MOST_SAMPLES))

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}, {self.samples} samples, {str(self.dtype).removeprefix('torch.')}"


class Backend(Protocol):
    """What multiplies: cuSPARSELt on one device, or a stand-in in tests."""

    device: torch.device

    def identity(self) -> str:
        """Device and versions, which measurements hold for."""

    def pack(self, matrix: Tensor) -> Pack:
        """Pack a 2:4 matrix."""

    def multiply(self, packed: Pack, x: Tensor, bias: Tensor | None, algorithm: int) -> Tensor:
        """x W^T + b; RuntimeError if there is no such algorithm."""

    def seconds(self, runs: Mapping[str, Callable[[], object]], rounds: int, *, graph: bool) -> dict[str, float]:
        """Seconds per call, all runs taking turns; graph: replayed from a CUDA graph."""


class Problem:
    """A random product of a shape, from a generator of its own."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self._generator = torch.Generator(device).manual_seed(0)
        self.draw()

    def draw(self) -> None:
        """New numbers."""
        shape = self.shape
        chance = self._random(shape.rows, shape.columns // 4, 4, uniform=True)
        kept = chance.argsort(-1).lt(2).view(shape.rows, shape.columns)
        self.matrix = (self._random(shape.rows, shape.columns) * kept).to(shape.dtype)
        self.x = self._random(shape.samples, shape.columns).to(shape.dtype)
        self.bias = self._random(shape.rows).to(shape.dtype)

    def _random(self, *size: int, uniform: bool = False) -> Tensor:
        draw = torch.rand if uniform else torch.randn
        return draw(size, device=self.device, generator=self._generator)

    def dense(self) -> Tensor:
        """The product by dense kernels."""
        return functional.linear(self.x, self.matrix, self.bias)

    def is_right(self, result: Tensor) -> bool:
        """Whether a result is the float32 product to rounding of its type."""
        matrix, bias = self.matrix.float(), self.bias.float()
        worst = largest = torch.zeros((), device=self.device)
        for x, y in zip(self.x.split(_CHUNK), result.split(_CHUNK), strict=True):
            expected = functional.linear(x.float(), matrix, bias)
            worst = torch.maximum(worst, (y.float() - expected).abs().amax())  # NaN stays
            largest = torch.maximum(largest, expected.abs().amax())
        return bool(worst <= torch.finfo(self.shape.dtype).eps * largest)


@dataclass
class Table:
    """What was measured on one device, kept in a file.

    A record: "algorithm", the fastest right one or None; "wrong", those that failed the comparison; "dense", "sparse"
    and "pack", seconds [called one by one, replayed from a CUDA graph].
    """

    backend: Backend
    path: Path | None
    _records: dict[Shape, dict[str, Any] | None] = field(default_factory=dict)
    _trusted: dict[tuple[Shape, int | None], bool] = field(default_factory=dict)

    def choice(self, shape: Shape, held: Held, side: Side, *, capturing: bool, always: bool) -> int | None:
        """The algorithm for a product with a weight, None if it is to be dense.

        A weight that is not packed yet is packed once its products have lost as much time as packing takes. always: if
        there is any right algorithm. capturing: nothing can be measured then; what is not known is dense.
        """
        record = self.record(shape.bucket, measure=not capturing)
        algorithm = None if record is None else record["algorithm"]
        if record is None or algorithm is None or not self._trust(shape, algorithm, measure=not capturing):
            return None
        if always:
            return int(algorithm)
        mode = int(capturing)
        saving = record["dense"][mode] / MARGIN - record["sparse"][mode]
        if saving <= 0:
            return None
        lasting = not (capturing or held.captured)
        if lasting and side in held.packs:
            return int(algorithm)
        lost = held.foregone.get(side, 0.0) if lasting else 0.0
        if lost + saving >= record["pack"][mode]:
            return int(algorithm)
        if lasting:
            held.foregone[side] = lost + saving
        return None

    def record(self, shape: Shape, *, measure: bool) -> dict[str, Any] | None:
        """What is known of a shape, measured if need be."""
        if shape in self._records:
            return self._records[shape]
        key = f"{self.backend.identity()}; {shape}"
        found = _user_cache.read(self.path).get(key)
        if not _sound(found):
            if not measure:
                return None
            found = self._measured(shape)
            if found is not None:
                self._trusted[shape, found["algorithm"]] = True
                _user_cache.write(self.path, {**_user_cache.read(self.path), key: found})
        self._records[shape] = found
        return found

    def _measured(self, shape: Shape) -> dict[str, Any] | None:
        """A new record; None if there is no memory for it, or the device refuses to be measured."""
        try:
            problem = Problem(shape, self.backend.device)
            right, wrong = self._sorted(problem)
            record: dict[str, Any] = {"algorithm": None, "wrong": wrong, "dense": [], "sparse": [], "pack": []}
            if not right:
                return record
            packed = self.backend.pack(problem.matrix)
            given = packed, problem.x, problem.bias
            runs = {str(each): functools.partial(self.backend.multiply, *given, each) for each in right}
            times = self.backend.seconds(runs, 1, graph=True)
            best = min(times, key=times.__getitem__)
            final: dict[str, Callable[[], object]] = {
                "dense": problem.dense,
                "sparse": runs[best],
                "pack": lambda: self.backend.pack(problem.matrix),
            }
            for graph in (False, True):
                for name, seconds in self.backend.seconds(final, _ROUNDS, graph=graph).items():
                    record[name].append(seconds)
            record["algorithm"] = int(best)
        except RuntimeError:
            return None
        return record

    def _sorted(self, problem: Problem) -> tuple[list[int], list[int]]:
        """Algorithms that are right on every draw, and the others."""
        right, wrong, count = list(range(_MOST_ALGORITHMS)), [], _MOST_ALGORITHMS
        for _ in range(_DRAWS):
            problem.draw()
            packed = self.backend.pack(problem.matrix)
            for algorithm in list(right):
                if algorithm >= count:
                    break
                try:
                    result = self.backend.multiply(packed, problem.x, problem.bias, algorithm)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:  # numbers end here
                    count = algorithm
                    break
                if not problem.is_right(result):
                    right.remove(algorithm)
                    wrong.append(algorithm)
            right = [algorithm for algorithm in right if algorithm < count]
        return right, wrong

    def _trust(self, shape: Shape, algorithm: int, *, measure: bool) -> bool:
        """Whether an algorithm is right for this very number of samples, in this process: files and drivers change."""
        key = (shape, algorithm)
        if key not in self._trusted and measure:
            try:
                problem = Problem(shape, self.backend.device)
                self._trusted[key] = all(self._agrees(problem, algorithm) for _ in range(_DRAWS))
            except RuntimeError:
                self._trusted[key] = False
        return self._trusted.get(key, False)

    def _agrees(self, problem: Problem, algorithm: int) -> bool:
        problem.draw()
        packed = self.backend.pack(problem.matrix)
        return problem.is_right(self.backend.multiply(packed, problem.x, problem.bias, algorithm))


def _sound(record: Any) -> bool:
    """Whether it has the form of a record."""
    if not isinstance(record, Mapping) or not record.keys() >= {"algorithm", "wrong", "dense", "sparse", "pack"}:
        return False
    if record["algorithm"] is None:
        return True
    pairs = [record[name] for name in ("dense", "sparse", "pack")]
    return type(record["algorithm"]) is int and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, float) and 0 < s < float("inf") for s in pair)
        for pair in pairs
    )
