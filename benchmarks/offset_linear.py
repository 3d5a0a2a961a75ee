"""A linear layer with an offset, y = alpha D x + S x + b, against the dense one: forward and backward to all of them.

    python benchmarks/offset_linear.py [--rounds 30] [--json FILE]

"row-major" is the public layer on ordinary tensors, conversions included; "packed" takes and gives activations in the
packed layout, as between the layers of a converted model. The parts of the latter are shown by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, agree, measure, options  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gossamer.kernels import sparse  # noqa: E402
from gossamer.nn import OffsetLinear, SparseLinear  # noqa: E402
from gossamer.nn._offset_operator import scaled  # noqa: E402

SIZE, BATCH = 4096, 128
FLOORS = {0.01: 13, 0.001: 24}
FP32 = "dense fp32"


def dense_side() -> Callable[[], object]:
    layer = nn.Linear(SIZE, SIZE)
    x, gradient = torch.randn(BATCH, SIZE, requires_grad=True), torch.randn(BATCH, SIZE)
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), gradient)


def sides(density: float) -> dict[str, Callable[[], object]]:
    """One layer with numbers in S, checked against its dense twin."""
    layer = OffsetLinear(SIZE, SIZE, density)
    inner = layer.sparse
    assert isinstance(inner, SparseLinear)
    with torch.no_grad():
        inner.values.normal_()
    x, gradient = torch.randn(BATCH, SIZE, requires_grad=True), torch.randn(BATCH, SIZE)
    with torch.no_grad():
        agree(layer(x), layer.dense_module()(x))
    packed, packed_gradient = sparse.pack(x.detach()).requires_grad_(), sparse.pack(gradient)

    def offset() -> Tensor:
        return scaled(packed, layer.alpha, None, repr(layer.offset), [SIZE, SIZE], [], True)

    def product() -> Tensor:
        return sparse.linear(packed, inner.values, inner.index, inner.bias, SIZE)

    mine = (inner.values, inner.bias)
    return {
        f"packed {density:g}": lambda: torch.autograd.grad(
            product() + offset(), (packed, layer.alpha, *mine), packed_gradient
        ),
        f"row-major {density:g}": lambda: torch.autograd.grad(layer(x), (x, layer.alpha, *mine), gradient),
        f"S alone {density:g}": lambda: torch.autograd.grad(product(), (packed, *mine), packed_gradient),
        "D alone": lambda: torch.autograd.grad(offset(), (packed, layer.alpha), packed_gradient),
    }


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("Linear layers with an offset", arguments)
    torch.manual_seed(0)
    runs = {FP32: dense_side()}
    for density in FLOORS:
        runs |= sides(density)
    timings = measure(runs, arguments.rounds)
    report.timings(f"{SIZE}x{SIZE}, batch {BATCH}, forward and backward", timings)
    rows: list[tuple[str, Timing, Timing, float | None]] = [
        (f"{side} at {density:g}", timings[FP32], timings[f"{side} {density:g}"], floor)
        for side in ("packed", "row-major")
        for density, floor in FLOORS.items()
    ]
    report.ratios(rows)
    report.write()


if __name__ == "__main__":
    main()
