"""A linear layer of square blocks against the dense one and against unstructured sparse layers of the same density.

    python benchmarks/block_sparse.py [--size 4096] [--batch 128] [--block 16] [--density 0.25] [--rounds 30]

Forward alone, and a training step: forward and the gradients of activations, weights and bias. Every side is the public
layer on row-major tensors, conversions included, but "packed", which takes and gives packed activations as between the
layers of a converted model. --size, --block and --density may be given several times; without them all are measured.
"""

from __future__ import annotations

from collections.abc import Callable

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, agree, measure, options  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gossamer.kernels import blocks, sparse  # noqa: E402
from gossamer.nn import BlockSparseLinear, SparseLinear  # noqa: E402

Side = tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]  # forward, input, what gradients are of
SIZES, BLOCKS, DENSITIES = (4096, 1024), (8, 16, 32, 64), (0.5, 0.25, 0.1, 0.05)
FLOORS = {(16, 0.25): 1.0, (16, 0.1): 1.0, (16, 0.05): 1.0}  # of a step against dense float32


def dense_side(size: int, batch: int, dtype: torch.dtype) -> Side:
    layer = nn.Linear(size, size, dtype=dtype)
    return layer, torch.randn(batch, size, dtype=dtype), list(layer.parameters())


def sparse_side(layer: SparseLinear, batch: int) -> Side:
    x = torch.randn(batch, layer.in_features)
    with torch.no_grad():
        agree(layer(x), nn.functional.linear(x, layer.to_dense(), layer.bias))
    return layer, x, list(layer.parameters())


def packed_side(layer: BlockSparseLinear, batch: int) -> Side:
    def forward(packed: Tensor) -> Tensor:
        return blocks.packed_linear(packed, layer.values, layer.index, layer.bias, layer.out_features)

    return forward, sparse.pack(torch.randn(batch, layer.in_features)), list(layer.parameters())


def runs_of(side: Side, *, step: bool) -> Callable[[], object]:
    forward, x, parameters = side
    if not step:

        def infer() -> Tensor:
            with torch.no_grad():
                return forward(x)

        return infer
    given = x.clone().requires_grad_()
    slope = torch.randn_like(forward(given).detach())
    return lambda: torch.autograd.grad(forward(given), (given, *parameters), slope)


def compare(size: int, batch: int, density: float, sides: list[int], report: Report, rounds: int) -> None:
    torch.manual_seed(0)
    made = {
        "dense fp32": dense_side(size, batch, torch.float32),
        "dense bf16": dense_side(size, batch, torch.bfloat16),
        "unstructured": sparse_side(SparseLinear(size, size, density), batch),
    }
    for side in sides:
        layer = BlockSparseLinear(size, size, density, side)
        made |= {f"block {side}": sparse_side(layer, batch), f"block {side} packed": packed_side(layer, batch)}
    for step in (False, True):
        timings = measure({name: runs_of(side, step=step) for name, side in made.items()}, rounds)
        what = "forward and backward" if step else "forward"
        report.timings(f"{size}x{size}, batch {batch}, density {density:g}, {what}", timings)
        rows: list[tuple[str, Timing, Timing, float | None]] = []
        for name in (name for name in made if name.startswith("block")):
            side = int(name.split()[1])
            for against in ("dense fp32", "dense bf16", "unstructured"):
                floor = FLOORS.get((side, density)) if step and against == "dense fp32" else None
                rows.append((f"{name} at {density:g} against {against}", timings[against], timings[name], floor))
        report.ratios(rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, action="append")
    parser.add_argument("--block", type=int, action="append")
    parser.add_argument("--density", type=float, action="append")
    arguments = parser.parse_args()
    report = Report("Block-sparse linear layers", arguments)
    for size in arguments.size or SIZES:
        for density in arguments.density or DENSITIES:
            compare(size, arguments.batch, density, arguments.block or list(BLOCKS), report, arguments.rounds)
    report.write()


if __name__ == "__main__":
    main()
