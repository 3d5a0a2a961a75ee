"""One sparse linear layer against the dense one: forward and backward to activations, weights and bias.

    python benchmarks/sparse_linear.py [--rounds 30] [--json FILE]

"packed" takes and gives activations in the packed layout, as between the layers of a converted model; "row-major" is
the public layer on ordinary tensors, conversions included. Dense bf16 has weights and activations in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, agree, crossing, measure, options  # noqa: E402
from torch import nn  # noqa: E402

from gossamer.kernels import sparse  # noqa: E402
from gossamer.nn import SparseLinear  # noqa: E402

Sides = dict[str, Callable[[], object]]
FP32, BF16 = "dense fp32", "dense bf16"


class Setting(NamedTuple):
    """A square layer; floors: (side, density, against) -> how many times faster it has to be."""

    size: int
    batch: int
    densities: tuple[float, ...]
    floors: dict[tuple[str, float, str], float]


SETTINGS = (
    Setting(
        4096,
        128,
        (0.5, 0.25, 0.1, 0.05, 0.01, 0.001),
        {
            ("packed", 0.25, FP32): 1.9,
            ("packed", 0.1, FP32): 4.2,
            ("packed", 0.05, FP32): 7.6,
            ("packed", 0.01, FP32): 27,
            ("row-major", 0.25, FP32): 1.9,
            ("row-major", 0.1, FP32): 4.0,
            ("row-major", 0.05, FP32): 7,
            ("row-major", 0.01, FP32): 20,
            ("packed", 0.1, BF16): 1.35,
        },
    ),
    Setting(4096, 32, (0.5, 0.25, 0.1, 0.05, 0.01), {("packed", 0.1, BF16): 3.0}),
    Setting(1024, 128, (0.5, 0.25, 0.1, 0.05, 0.01), {("packed", 0.1, FP32): 4.5, ("row-major", 0.1, FP32): 3.4}),
)


def dense_side(setting: Setting, dtype: torch.dtype) -> Callable[[], object]:
    layer = nn.Linear(setting.size, setting.size, dtype=dtype)
    x = torch.randn(setting.batch, setting.size, dtype=dtype, requires_grad=True)
    gradient = torch.randn(setting.batch, setting.size, dtype=dtype)
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), gradient)


def sparse_sides(setting: Setting, density: float) -> tuple[Callable[[], object], Callable[[], object]]:
    """(packed, row-major) of one layer, checked against its dense twin."""
    layer = SparseLinear(setting.size, setting.size, density)
    x = torch.randn(setting.batch, setting.size, requires_grad=True)
    gradient = torch.randn(setting.batch, setting.size)
    with torch.no_grad():
        agree(layer(x), nn.functional.linear(x, layer.to_dense(), layer.bias))
        packed, packed_gradient = sparse.pack(x).requires_grad_(), sparse.pack(gradient)

    def on_packed() -> object:
        y = sparse.linear(packed, layer.values, layer.index, layer.bias, setting.size)
        return torch.autograd.grad(y, (packed, layer.values, layer.bias), packed_gradient)

    def on_rows() -> object:
        return torch.autograd.grad(layer(x), (x, layer.values, layer.bias), gradient)

    return on_packed, on_rows


def compare(setting: Setting, report: Report, rounds: int) -> None:
    torch.manual_seed(0)
    runs: Sides = {FP32: dense_side(setting, torch.float32), BF16: dense_side(setting, torch.bfloat16)}
    for density in setting.densities:
        runs[f"packed {density:g}"], runs[f"row-major {density:g}"] = sparse_sides(setting, density)
    timings = measure(runs, rounds)
    report.timings(f"{setting.size}x{setting.size}, batch {setting.batch}, forward and backward", timings)
    rows: list[tuple[str, Timing, Timing, float | None]] = []
    for side in ("packed", "row-major"):
        for against in (FP32, BF16):
            for density in setting.densities:
                floor = setting.floors.get((side, density, against))
                fast = timings[f"{side} {density:g}"]
                rows.append((f"{side} at {density:g} against {against}", timings[against], fast, floor))
    report.ratios(rows)
    for side in ("packed", "row-major"):
        for against in (FP32, BF16):
            dense = timings[against].seconds
            speedups = {density: dense / timings[f"{side} {density:g}"].seconds for density in setting.densities}
            report.note(f"Break-even density, {side} against {against}: {crossing(speedups)}")


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("Sparse linear layers", arguments)
    for setting in SETTINGS:
        compare(setting, report, arguments.rounds)
    report.write()


if __name__ == "__main__":
    main()
