"""Inference with sparse weights on sparse activations: multiplications counted, and the time that they take.

The bound is what the share of multiplications promises, density of the weight times density of the input: 25x where
both are .2. Beside it stand the measured speed-up over dense float32, and over the layer with a sparse weight only.
"""

# ruff: noqa: E402
from __future__ import annotations

from timing import restart_pinned

restart_pinned()

import torch
from comparison import Report, agree, measure, options
from torch import Tensor, nn

from gossamer.nn import SparseConv2d, SparseLinear
from gossamer.nn.doubly_sparse import DoublySparse

PAIRS = ((0.2, 0.2), (0.1, 0.1), (0.05, 0.1), (0.05, 0.02))


def winners(shape: tuple[int, ...], density: float) -> Tensor:
    """Activations of which a sample keeps its largest, as behind k-winners."""
    x = torch.randn(shape).flatten(1)
    kept = x.topk(max(1, round(density * x.shape[1])), dim=1)
    return torch.zeros_like(x).scatter(1, kept.indices, kept.values.abs()).view(shape)


@torch.no_grad()
def compare(report: Report, what: str, sparse: nn.Module, dense: nn.Module, x: Tensor, rounds: int) -> None:
    doubly = DoublySparse.of(sparse)
    agree(doubly(x), dense(x))
    share = doubly.multiplications / doubly.dense_multiplications
    timings = measure(
        {"dense": lambda: dense(x), "sparse weight": lambda: sparse(x), "doubly": lambda: doubly(x)}, rounds
    )
    report.timings(what, timings)
    name = f"{what}: bound {1 / share:.0f}x, dense over doubly sparse"
    report.ratios([(name, timings["dense"], timings["doubly"], None)])
    report.ratios([(f"{what}: sparse weight over doubly", timings["sparse weight"], timings["doubly"], None)])
    report.figures([(f"{what}: share of the multiplications", share, None)], "of dense")


def main() -> None:
    parser = options(__doc__)
    arguments = parser.parse_args()
    report = Report("Sparse weights on sparse activations, forward", arguments)
    torch.manual_seed(0)
    for weight, inputs in PAIRS:
        for batch in (1, 128):
            sparse = SparseLinear(2048, 2048, weight, bias=False)
            what = f"linear 2048, batch {batch}, weight {weight}, input {inputs}"
            compare(report, what, sparse, sparse.dense_module(), winners((batch, 2048), inputs), arguments.rounds)
        conv = SparseConv2d(64, 64, 3, weight, padding=1, bias=False)
        what = f"conv 64 to 64, 3x3 at 32x32, batch 16, weight {weight}, input {inputs}"
        compare(report, what, conv, conv.dense_module(), winners((16, 64, 32, 32), inputs), arguments.rounds)
    report.write()


if __name__ == "__main__":
    main()
