"""Will a sparse layer pay on this machine? Measured, not guessed: dense, masked and sparse side by side."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from .._timing import ROUNDS, STATISTIC, faster_half, pinned
from ..errors import ConfigError, check_choice, check_number
from . import _measurements
from ._variants import DENSE, base_name, passes
from .layer_shape import LayerShape, traced

__all__ = ["STATISTIC", "LayerShape", "Measured", "Timing", "Verdict", "break_even", "measure", "pays", "traced"]

VARIANTS = ("dense fp32", "dense bf16", "masked", "sparse", "packed")
HYBRID = ("hybrid", "hybrid rewired")  # the second one with another support in every step
MARGIN = 1.05  # a layer is swapped if it wins by more than measurements scatter
_MOST_ROUNDS, _WARM_UP = 60, 2
_BYTES = {
    "dense fp32": 16,
    "dense bf16": 8,
    "masked": 13,
    "hybrid": 9,
    "hybrid rewired": 9,
}  # per entry: weight, gradient, both formats


@dataclass(frozen=True)
class Timing:
    """Seconds of one forward and one backward pass (`STATISTIC` of each)."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Measured:
    """What one layer takes at one density.

    timings: variant -> seconds, "dense fp32" and "dense bf16" of the faster memory format; a variant that does not fit
    in memory is missing. "sparse" is the public row-major layer, conversions included, "packed" the kernel between
    consecutive sparse layers. index_bytes: of the sparse layer's index. pinned: with pinned threads.
    """

    shape: LayerShape
    density: float
    timings: Mapping[str, Timing]
    rounds: int
    threads: int
    pinned: bool
    index_bytes: int

    def speedup(self, variant: str, over: str = "dense fp32") -> float | None:
        """How many times faster `variant` is than `over`, forward and backward; None where one was not measured."""
        if variant not in self.timings or over not in self.timings:
            return None
        return self.timings[over].total / self.timings[variant].total


@dataclass(frozen=True)
class Verdict:
    """Whether to swap a layer: `sparse`, how many times faster it is than dense, and `why` in a line."""

    sparse: bool
    speedup: float
    why: str


def measure(
    shape: LayerShape,
    density: float,
    variants: Sequence[str] = VARIANTS,
    *,
    budget: float = 2.0,
    cached: bool = True,
) -> Measured:
    """Time forward and backward passes of one layer in float32 ("dense bf16": in bfloat16 throughout).

    All variants take turns, for at least 15 rounds and as long as `budget` lasts; what is told is the median of the
    faster half. Dense variants that would take more than half of the free memory are left out. Results are kept in the
    user's cache folder, by processor, versions, threads, shape, batch and density rounded to two digits.

    budget: seconds. cached: take an earlier measurement where there is one.

    Raises:
        ConfigError: an unknown variant, a density outside (0, 1], or a layer that has no sparse form.
    """
    check_number("density", density, "the fraction of the weights that is kept", 0, 1)
    for variant in variants:
        check_choice("variant", variant, (*VARIANTS, *HYBRID))
    density = float(f"{density:.2g}")
    if round(density * shape.numel) < 1:
        raise ConfigError(f"density {density:g} keeps none of the {shape.numel:,} weights of {shape}; use a larger one")
    fitting = [v for v in variants if v not in DENSE or not _too_large(shape, variants)]
    key = _measurements.key_of(shape, density)
    record = _measurements.find(key, fitting) if cached else None
    if record is None:
        record = _time(shape, density, fitting, budget)
        _measurements.store(key, record)
    timings = {name: Timing(*seconds) for name, seconds in record["variants"].items()}
    threads = torch.get_num_threads()
    return Measured(shape, density, timings, record["rounds"], threads, record["pinned"], record["index_bytes"])


def _time(shape: LayerShape, density: float, variants: Sequence[str], budget: float) -> _measurements.Record:
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        runs, index_bytes = passes(shape, density, variants)
        seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
        collecting, rounds, started = gc.isenabled(), -_WARM_UP, time.perf_counter()
        gc.disable()
        try:
            while rounds < ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() - started < budget):
                for name, run in runs.items():
                    start = time.perf_counter()
                    y = run.forward()
                    middle = time.perf_counter()
                    run.backward(y)
                    if rounds >= 0:
                        seconds[name][0].append(middle - start)
                        seconds[name][1].append(time.perf_counter() - middle)
                rounds += 1
        finally:
            if collecting:
                gc.enable()
    best: dict[str, list[float]] = {}
    for name, (forward, backward) in seconds.items():
        told, variant = [faster_half(forward), faster_half(backward)], base_name(name)
        if variant not in best or sum(told) < sum(best[variant]):
            best[variant] = told
    return {"variants": best, "rounds": rounds, "pinned": pinned(), "index_bytes": index_bytes}


def _too_large(shape: LayerShape, variants: Sequence[str]) -> bool:
    return _dense_bytes(shape, variants) > _free_bytes() / 2


def _dense_bytes(shape: LayerShape, variants: Sequence[str]) -> int:
    return shape.numel * (4 + sum(_BYTES.get(variant, 0) for variant in variants))


def _free_bytes() -> float:
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            told = dict(line.split(":", 1) for line in file)
        return 1024 * int(told["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
        except (OSError, ValueError, AttributeError):
            return math.inf


def pays(
    kind: Literal["linear", "conv"],
    weight_shape: Sequence[int],
    count: int,
    batch: int,
    *,
    size: Sequence[int] = (),
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
    inner: bool = True,
    layout: Literal["sparse", "hybrid"] = "sparse",
    over: Literal["dense fp32", "dense bf16"] | None = None,
    every: float = math.inf,
) -> Verdict:
    """Say whether a layer of `count` active weights should be swapped on this machine, by `measure` (cached).

    It should if the public row-major layer, conversions included, beats the dense one by more than 5 %: packed between
    sparse neighbours it is faster still, so this errs towards dense. Other arguments are those of `LayerShape`.

    over: what is to be beaten; None: "dense bf16" under bfloat16 autocast, else "dense fp32". every: steps between two
    rewirings, of which a hybrid layer is charged its new index.

    Raises:
        ConfigError: as `measure`.
    """
    shape = LayerShape(
        kind, tuple(weight_shape), batch, tuple(size), tuple(stride), tuple(padding), tuple(dilation), groups, inner
    )
    return judge(shape, count, layout, over, every)


def judge(
    shape: LayerShape,
    count: int,
    layout: Literal["sparse", "hybrid"] = "sparse",
    over: Literal["dense fp32", "dense bf16"] | None = None,
    every: float = math.inf,
) -> Verdict:
    """As `pays`, of a `LayerShape`, such as `traced` returns."""
    if count == 0:
        return Verdict(True, math.inf, "nothing is kept, so there is nothing to compute")
    axes = len(shape.size)
    if axes > 2 or (axes == 1 and layout == "hybrid"):
        return Verdict(False, 0.0, f"no {layout} layer has a kernel of {axes} axes")
    if over is None:
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        over = "dense bf16" if half else "dense fp32"
    variants = (over, *HYBRID) if layout == "hybrid" else (over, layout)
    return verdict_of(measure(shape, count / shape.numel, variants), layout, over, every)


def verdict_of(
    measured: Measured, layout: str = "sparse", over: str = "dense fp32", every: float = math.inf
) -> Verdict:
    """What a measurement of both variants says."""
    if not {layout, over} <= measured.timings.keys():
        return Verdict(True, math.inf, f"{over} does not fit in half of the free memory")
    dense, seconds = measured.timings[over].total, measured.timings[layout].total
    if layout == "hybrid":
        seconds += max(0.0, measured.timings["hybrid rewired"].total - seconds) / every
    speedup, threads = dense / seconds, f"{measured.threads} thread{'s' * (measured.threads != 1)}"
    times = f"{layout} {1e3 * seconds:.3g} ms, {over} {1e3 * dense:.3g} ms"
    about = f"({times}, {threads}{'' if measured.pinned else ', unpinned'})"
    if speedup > MARGIN:
        return Verdict(True, speedup, f"{speedup:.2f}x {over} {about}")
    return Verdict(False, speedup, f"no speed-up here: {speedup:.2f}x {over} {about}")


def break_even(speedups: Mapping[float, float]) -> float | None:
    """The density at which sparse and dense take equally long; None if all measured densities lie on one side of it.

    speedups: density -> dense time / sparse time. Interpolated linearly between the logarithms of both.

    >>> round(break_even({0.1: 4.0, 0.4: 1.0, 0.8: 0.5}), 3)
    0.4
    >>> break_even({0.1: 4.0, 0.2: 2.0}) is None
    True
    """
    points = sorted(speedups.items())
    for (low, fast), (high, slow) in pairwise(points):
        if fast >= 1 >= slow:
            if fast == slow:
                return high
            share = math.log(fast) / math.log(fast / slow)
            return math.exp(math.log(low) + share * math.log(high / low))
    return None
