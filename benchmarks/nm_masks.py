"""2:4 masks of dense weights: the native kernel, the reference in torch, and the product with all 90 patterns.

    python benchmarks/nm_masks.py [--rounds 30] [--threads 2] [--json FILE]

Along the inputs, along the outputs, and transposable (the exact optimum of every 4 x 4 tile), of float32 magnitudes.
"with active" also reads the mask of what is active now and decides ties by it, and takes the magnitudes itself; "and
view" writes the sparse weight in the same pass, as training does. The product of 4 x 4 tiles with the 90 patterns gives
another pattern where sums are equal to rounding; the sums it keeps are compared. Floor: 0.5 G weights a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, agree, measure, options  # noqa: E402
from torch import Tensor  # noqa: E402

from gossamer.kernels import n_m as kernel  # noqa: E402
from gossamer.kernels.patterns import patterns  # noqa: E402
from gossamer.topology import NM  # noqa: E402
from gossamer.topology.structures.n_m import tiles_of, untiled  # noqa: E402

SHAPES = ((1024, 1024), (4096, 1024), (4096, 4096), (512, 512, 3, 3))
FLOOR = 0.5  # G weights a second
SLOW = 1 << 22  # the product needs 22 numbers per weight: larger weights are left out
TWO_D = NM(2, 4, transposable=True)


def by_product(scores: Tensor, table: Tensor) -> Tensor:
    """All tiles times all patterns, the largest of each."""
    tiles = tiles_of(scores, 4)
    best = (tiles.reshape(-1, 16) @ table.t()).argmax(1)
    return untiled(table[best].bool().view(-1, 4, 4), scores.shape)


def sides(weight: Tensor) -> dict[str, Callable[[], object]]:
    scores, table = weight.abs(), patterns().view(90, 16).float()
    half = weight.numel() // 2
    (mask,) = TWO_D.select([scores], half)
    view, wide = torch.empty_like(weight), scores.double()
    (wanted,) = TWO_D.select([wide], half)  # float64 takes the reference
    if not torch.equal(mask, wanted):
        raise SystemExit("the native kernel and the reference differ")
    runs: dict[str, Callable[[], object]] = {
        "transposable": lambda: kernel.best_patterns(scores, 2, "both"),
        "transposable, with active": lambda: kernel.best_patterns(weight, 2, "both", mask, magnitudes=True),
        "transposable, with active and view": lambda: kernel.best_patterns(
            weight, 2, "both", mask, magnitudes=True, view=view
        ),
        "along inputs": lambda: kernel.best_patterns(scores, 2, "inputs"),
        "along outputs": lambda: kernel.best_patterns(scores, 2, "outputs"),
    }
    if weight.numel() < SLOW:
        agree(scores[by_product(scores, table)].sum(), scores[mask].sum(), 1e-6)
        runs["transposable, reference"] = lambda: TWO_D._select(scores, None)
        runs["transposable, 90 patterns"] = lambda: by_product(scores, table)
        runs["along inputs, reference"] = lambda: NM(2, 4)._select(scores, None)
    return runs


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("2:4 masks", arguments)
    if kernel.best_patterns(torch.zeros(4, 4), 2, "both") is None:
        raise SystemExit("this needs the native kernels")
    for shape in SHAPES:
        torch.manual_seed(0)
        timings = measure(sides(torch.randn(shape)), arguments.rounds)
        report.timings(f"{' x '.join(map(str, shape))}", timings)
        speeds = {name: math.prod(shape) / timing.seconds / 1e9 for name, timing in timings.items()}
        rows = [(name, speed, FLOOR if name == "transposable" else None) for name, speed in speeds.items()]
        report.floors(rows, "G weights a second")
    report.write()


if __name__ == "__main__":
    main()
