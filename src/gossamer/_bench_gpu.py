"""`gossamer bench --device cuda`: what a new mask in every step costs a linear layer, beside dense bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import __version__
from ._gpu_timing import STATISTIC, Run, milliseconds, sets_of
from .errors import ConfigError
from .kernels.gpu.runtime import has_triton
from .kernels.gpu.threshold import magnitude_key, masked
from .kernels.gpu.transposable import transposable_prune
from .nn.layer_shape import LayerShape


def check(request: Mapping[str, Any]) -> None:
    """Raise ConfigError for what cannot be measured on a GPU, or if there is none."""
    if request["model"] or any(text.startswith("conv") for text in request["layers"]):
        raise ConfigError("--device cuda measures linear layers, e.g. --layer 4096x4096; there are no other kernels")
    if request["threads"] is not None or request["hybrid"]:
        raise ConfigError("--threads and --hybrid are for the CPU; leave them out with --device cuda")
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; leave it out to measure the CPU")


def report(request: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds of a training step's weight, forward and backward work, by layer and density.

    Raises:
        ConfigError: as `check`.
    """
    check(request)
    device = torch.device("cuda")
    return {
        "gossamer": __version__,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "triton": has_triton(),
        "statistic": STATISTIC,
        "request": dict(request),
        "layers": [_layer(text, request["batch"], request["densities"], device) for text in request["layers"]],
    }


def _layer(text: str, batch: int, densities: Sequence[float], device: torch.device) -> dict[str, Any]:
    shape = LayerShape.parse(text, batch)
    rows, columns = shape.weight[:2]
    count = sets_of(2 * batch * (rows + columns) + 4 * rows * columns)
    told = [
        {"density": density, "milliseconds": milliseconds(sides(rows, columns, batch, density, count, device), count)}
        for density in densities
    ]
    return {"layer": text, "batch": batch, "densities": told}


def sides(rows: int, columns: int, batch: int, density: float, sets: int, device: torch.device) -> dict[str, Run]:
    """What is measured: from float32 weights to the product and both gradients, in bfloat16.

    "dense" casts the weight, "masked" keeps its largest magnitudes, chosen anew, in the cast; "2:4 masked" prunes to
    the best transposable pattern instead, where the sides divide by 4.
    """
    weights = [torch.randn(rows, columns, device=device) for _ in range(sets)]
    inputs = [torch.randn(batch, columns, device=device, dtype=torch.bfloat16) for _ in range(sets)]
    slope = torch.randn(batch, rows, device=device, dtype=torch.bfloat16)
    kept = max(1, round(density * rows * columns))

    def chosen(weight: Tensor) -> Tensor:
        return masked(weight, magnitude_key(weight, None, kept), dtype=torch.bfloat16, with_mask=False)[0]

    def pattern(weight: Tensor) -> Tensor:
        return transposable_prune(weight, dtype=torch.bfloat16, with_mask=False)[0]

    def step(used: Callable[[Tensor], Tensor]) -> Run:
        def run(number: int) -> object:
            weight, x = used(weights[number]), inputs[number]
            return F.linear(x, weight), slope @ weight, slope.t() @ x

        return run

    told = {"dense bf16": step(lambda weight: weight.to(torch.bfloat16)), "masked": step(chosen)}
    return told if rows % 4 or columns % 4 else told | {"2:4 masked": step(pattern)}


def lines(told: Mapping[str, Any]) -> list[str]:
    """What is printed."""
    kernels = "Triton" if told["triton"] else "plain torch: Triton is not installed"
    text = [f"{told['gpu']}, torch {told['torch']}, kernels {kernels}", f"milliseconds, {told['statistic']}"]
    for layer in told["layers"]:
        text.append(f"\n{layer['layer']}, batch {layer['batch']}")
        for row in layer["densities"]:
            times = row["milliseconds"]
            others = [f"{name} {ms:.3f} ({times['dense bf16'] / ms:.2f}x dense)" for name, ms in times.items()]
            text.append(f"density {row['density']:g}: {', '.join(others)}")
    return text
