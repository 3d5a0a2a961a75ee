"""One sparse convolution against the dense one: forward and backward to activations and weights.

    python benchmarks/sparse_conv.py [--rounds 30] [--json FILE]

"packed" takes and gives activations in the packed layout, as between the layers of a converted model; "with copies"
is the public layer on ordinary tensors. Dense is measured contiguous and channels_last, and the better one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, agree, best, crossing, measure, options  # noqa: E402
from torch import nn  # noqa: E402

from gossamer.kernels import sparse  # noqa: E402
from gossamer.nn import SparseConv2d  # noqa: E402

DENSITIES = (0.25, 0.1, 0.05, 0.02, 0.01)
FLOORS = {0.05: 3.0}  # packed, against the best fp32
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Setting(NamedTuple):
    """Stride 1, padding that keeps the size, as many output channels as input channels."""

    channels: int
    kernel: int
    size: int
    batch: int
    floors: dict[float, float]

    def __str__(self) -> str:
        kernel = f"{self.kernel}x{self.kernel}"
        return f"{self.channels}->{self.channels} {kernel} @{self.size}, batch {self.batch}"


SETTINGS = (
    Setting(64, 3, 32, 32, FLOORS),
    Setting(256, 3, 8, 32, FLOORS),
    Setting(512, 1, 7, 32, FLOORS),
    Setting(64, 3, 32, 128, {}),
)


def images(setting: Setting, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(setting.batch, setting.channels, setting.size, setting.size, dtype=dtype)


def dense_side(setting: Setting, dtype: torch.dtype, layout: torch.memory_format) -> Callable[[], object]:
    layer = nn.Conv2d(setting.channels, setting.channels, setting.kernel, padding=setting.kernel // 2, bias=False)
    layer = layer.to(dtype=dtype, memory_format=layout)
    x = images(setting, dtype).contiguous(memory_format=layout).requires_grad_()
    gradient = images(setting, dtype).contiguous(memory_format=layout)
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight), gradient)


def sparse_sides(setting: Setting, density: float) -> tuple[Callable[[], object], Callable[[], object]]:
    """(packed, with copies) of one layer, checked against its dense twin."""
    padding = setting.kernel // 2
    layer = SparseConv2d(setting.channels, setting.channels, setting.kernel, density, padding=padding, bias=False)
    x, gradient = images(setting).requires_grad_(), images(setting)
    with torch.no_grad():
        agree(layer(x), nn.functional.conv2d(x, layer.to_dense(), padding=padding))
        packed, packed_gradient = sparse.pack(x).requires_grad_(), sparse.pack(gradient)

    def on_packed() -> object:
        geometry = (layer.weight_shape, (1, 1), (padding, padding), (1, 1), 1)
        y = sparse.conv(packed, layer.values, layer.index, None, *geometry)
        return torch.autograd.grad(y, (packed, layer.values), packed_gradient)

    def with_copies() -> object:
        return torch.autograd.grad(layer(x), (x, layer.values), gradient)

    return on_packed, with_copies


def compare(setting: Setting, report: Report, rounds: int) -> None:
    torch.manual_seed(0)
    runs: dict[str, Callable[[], object]] = {}
    for dtype in DTYPES:
        for layout in FORMATS:
            runs[f"dense {dtype} {layout}"] = dense_side(setting, DTYPES[dtype], FORMATS[layout])
    for density in DENSITIES:
        runs[f"packed {density:g}"], runs[f"with copies {density:g}"] = sparse_sides(setting, density)
    timings = measure(runs, rounds)
    report.timings(f"{setting}, forward and backward", timings)
    dense = {dtype: best(timings, *(f"dense {dtype} {layout}" for layout in FORMATS)) for dtype in DTYPES}
    rows: list[tuple[str, Timing, Timing, float | None]] = []
    for side in ("packed", "with copies"):
        for dtype, against in dense.items():
            for density in DENSITIES:
                floor = setting.floors.get(density) if (side, dtype) == ("packed", "fp32") else None
                fast = timings[f"{side} {density:g}"]
                rows.append((f"{side} at {density:g} against {against}", timings[against], fast, floor))
    report.ratios(rows)
    for against in dense.values():
        speedups = {p: timings[against].seconds / timings[f"packed {p:g}"].seconds for p in DENSITIES}
        report.note(f"Break-even density, packed against {against}: {crossing(speedups)}")


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("Sparse convolutions", arguments)
    for setting in SETTINGS:
        compare(setting, report, arguments.rounds)
    report.write()


if __name__ == "__main__":
    main()
