"""The measuring process of `gossamer bench`: a request as JSON on stdin, the figures as JSON on stdout.

It is a process of its own because threads are pinned by variables that are read when torch is loaded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import __version__, methods
from ._timing import ROUNDS, STATISTIC, faster_half, pinned
from .analysis.ledger import HELD, entries
from .analysis.work import Work
from .entry import sparsify
from .errors import ConfigError, GossamerError
from .nn._measurements import cpu_model
from .nn.layer_shape import LayerShape, traced
from .nn.measure import HYBRID, VARIANTS, Measured, break_even, measure, verdict_of
from .targets import choose

SLOTS = 2  # of Adam, for the memory
_OVER = ("dense fp32", "dense bf16", "masked")  # what the others are compared with
_HELD = tuple(phase for phase in HELD if phase != "activations")


def report(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure what `request` names: "layers" (texts), or "model" with "data" and its options; "batch", "densities"...

    The figures, with the request itself: so a file of them says what was measured.

    Raises:
        ConfigError: what is named cannot be, or cannot be measured.
    """
    torch.set_num_threads(request["threads"] or torch.get_num_threads())
    model, batch = None, None
    if request["model"]:
        model, batch = _model(request)
        shapes = {row.name: shape for row, shape in _targets(model, batch[0])}
    else:
        shapes = {text: LayerShape.parse(text, request["batch"]) for text in request["layers"]}
    cpu = {"cpu": cpu_model(), "threads": torch.get_num_threads(), "pinned": pinned()}
    told: dict[str, Any] = {
        "gossamer": __version__,
        "torch": torch.__version__,
        **cpu,
        "isa": _isa(),
        "statistic": STATISTIC,
        "request": dict(request),
        "layers": [_layer(name, shape, request) for name, shape in shapes.items()],
    }
    if model is not None and batch is not None:
        told["steps"] = [_steps(request, density, batch) for density in request["densities"]]
    return told


def _isa() -> str:
    from .kernels.cpu.library import native

    library = native()
    return "reference, without native kernels" if library is None else library.isa


def _layer(name: str, shape: LayerShape, request: Mapping[str, Any]) -> dict[str, Any]:
    """All densities of one layer, and the densities at which sparse and dense take equally long."""
    hybrid = request["hybrid"] and len(shape.size) != 1  # there is none with a kernel of one axis
    variants = (*VARIANTS, *HYBRID) if hybrid else VARIANTS
    measured = [measure(shape, d, variants, budget=request["budget"], cached=False) for d in request["densities"]]
    even = {
        f"{variant} vs {over}": _even(
            {m.density: speed for m in measured if (speed := m.speedup(variant, over)) is not None}
        )
        for variant in variants
        if variant not in _OVER
        for over in ("dense fp32", "dense bf16")
    }
    rows = [_row(shape, m, variants) for m in measured]
    about = {"name": name, "layer": str(shape), "batch": shape.batch, "variants": variants}
    return {**about, "densities": rows, "break_even": even}


def _even(speedups: Mapping[float, float]) -> dict[str, Any] | None:
    """The density at which a variant breaks even, or that of the measured ones above or below which it must lie."""
    density = break_even(speedups)
    if density is not None:
        return {"side": "at", "density": density}
    if not speedups:
        return None
    last = max(speedups)
    return {"side": "above", "density": last} if speedups[last] > 1 else {"side": "below", "density": min(speedups)}


def _row(shape: LayerShape, measured: Measured, variants: Sequence[str]) -> dict[str, Any]:
    count = max(1, round(measured.density * shape.numel))
    dense = Work("", shape, shape.numel, shape.numel, "dense", slots=SLOTS)
    sparse = Work("", shape, shape.numel, count, "sparse", slots=SLOTS, index_bytes=measured.index_bytes)
    held = {"dense": _bytes(dense), "sparse": _bytes(sparse)}
    if HYBRID[0] in variants:
        held["hybrid"] = _bytes(replace(sparse, execution="hybrid", trained=shape.numel, live=True))
    return {
        "density": measured.density,
        "rounds": measured.rounds,
        "milliseconds": {
            name: {"forward": 1e3 * timing.forward, "backward": 1e3 * timing.backward}
            for name, timing in measured.timings.items()
        },
        "speedup": {f"{v} vs {o}": measured.speedup(v, o) for v in variants if v not in _OVER for o in _OVER},
        "bytes": held,
        "verdict": asdict(verdict_of(measured)),
    }


def _bytes(work: Work) -> int:
    """Weights, gradient, indices and the slots of Adam, as executed."""
    return sum(entry.bytes_executed for entry in entries(work) if entry.phase in _HELD)


# -- whole models --


def _model(request: Mapping[str, Any]) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    from .experiments import data, models

    options = request["model_options"]
    dataset = data.load(request["data"], **request["data_options"])
    torch.manual_seed(0)
    model = models.build(request["model"], dataset, **options)
    return model, dataset.train.batch(0, request["batch"], seed=0)


def _targets(model: nn.Module, x: Tensor) -> list[tuple[Any, LayerShape]]:
    shapes = traced(model, x)
    return [(row, shapes[row.name]) for row in choose(model, None) if row.sparse and row.name in shapes]


def _steps(request: Mapping[str, Any], density: float, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Milliseconds of whole training steps (SGD with momentum), the variants in turns."""
    runs = {name: _training(request, name, density, batch) for name in ("dense fp32", "masked", "sparse")}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    rounds, started = -2, time.perf_counter()
    while rounds < ROUNDS or (rounds < 4 * ROUNDS and time.perf_counter() - started < request["budget"]):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if rounds >= 0:
                seconds[name].append(time.perf_counter() - start)
        rounds += 1
    told = {name: 1e3 * faster_half(values) for name, values in seconds.items()}
    speedup = told["dense fp32"] / told["sparse"]
    return {"density": density, "rounds": rounds, "milliseconds": told, "speedup": speedup}


def _training(
    request: Mapping[str, Any], variant: str, density: float, batch: tuple[Tensor, Tensor]
) -> Callable[[], None]:
    from . import convert

    model, method = _model(request)[0], methods.static(density)
    x, y = batch
    if variant == "sparse":
        model = convert(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if variant != "dense fp32":
        sparsify(model, method, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()

    return step


def main() -> None:
    """Answer the request on stdin."""
    try:
        answer = report(json.load(sys.stdin))
    except GossamerError as error:
        answer = {"error": str(error)}
    except (RuntimeError, MemoryError) as error:
        why = " ".join(str(error).split())[:200]
        answer = {"error": str(ConfigError(f"cannot measure this here: {why}"))}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
