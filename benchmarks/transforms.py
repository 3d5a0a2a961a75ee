"""Cosine and Walsh-Hadamard transforms against torch.fft, scipy if it is installed, and the dense product.

    python benchmarks/transforms.py [--rounds 30] [--json FILE]

Forward only, of square float32 matrices. "torch.fft" is the same algorithm on torch's real Fourier transform with all
its tables made beforehand; scipy gets as many workers as there are threads. The last table is what the choice between a
transform and its matrix rests on (`gossamer.kernels.transforms.faster`).
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, agree, best, measure, options  # noqa: E402
from torch import Tensor  # noqa: E402

from gossamer.kernels import sparse  # noqa: E402
from gossamer.kernels.transforms import Cosine, Hadamard, Product, faster  # noqa: E402

try:
    from scipy.fft import dct
except ImportError:
    dct = None

LENGTHS, BATCHES = (512, 1024, 4096, 2304, 784), (32, 128, 512)
FLOORS = {("dense fp32", 4096, 128): 25.0, ("the best library", 4096, 128): 3.0}
SMALL = ((16, 16), (27, 27), (32, 27), (32, 32), (48, 48), (64, 64), (96, 96), (131, 131), (64, 147), (10, 1024))
Sides = dict[str, Callable[[], object]]


def by_fourier(length: int) -> Callable[[Tensor], Tensor]:
    """The transform of even length with torch.fft."""
    order = torch.cat([torch.arange(0, length, 2), torch.arange(1, length, 2).flip(0)])
    angles = torch.arange(length // 2 + 1, dtype=torch.float64) * (-math.pi / (2 * length))
    turn = math.sqrt(2 / length) * torch.complex(angles.cos(), angles.sin())
    turn[0] *= math.sqrt(1 / 2)
    turn = turn.to(torch.complex64)

    def transform(x: Tensor) -> Tensor:
        turned = torch.view_as_real(torch.fft.rfft(x.index_select(-1, order)).mul_(turn))
        return torch.cat([turned[..., 0], turned[..., 1:-1, 1].flip(-1).neg_()], -1)

    return transform


def sides(length: int, batch: int, threads: int) -> Sides:
    x, cosine, hadamard = torch.randn(batch, length), Cosine(length, length), Hadamard(length, length)
    packed, library, matrix = sparse.pack(x), by_fourier(length), cosine.matrix().float()
    wanted = x.double() @ cosine.matrix().t()
    for found in (cosine.apply(x, -1), library(x)):
        agree(found, wanted, 1e-6)
    runs: Sides = {
        "dense fp32": lambda: torch.nn.functional.linear(x, matrix),
        "torch.fft": lambda: library(x),
        "cosine": lambda: cosine.apply(x, -1),
        "cosine, transposed": lambda: cosine.transpose(x, -1),
        "cosine, packed": lambda: cosine.apply(packed, 1),
        "hadamard": lambda: hadamard.apply(x, -1),
    }
    if dct is not None:
        array = x.numpy()
        runs["scipy"] = lambda: dct(array, norm="ortho", workers=threads)
    return runs


def compare(length: int, batch: int, report: Report, arguments: Namespace) -> None:
    torch.manual_seed(0)
    timings = measure(sides(length, batch, arguments.threads), arguments.rounds)
    report.timings(f"{length} entries, {batch} vectors", timings)
    rows: list[tuple[str, Timing, Timing, float | None]] = []
    library = best(timings, *({"torch.fft", "scipy"} & set(timings)))
    against = {"dense fp32": "dense fp32", "the best library": library}
    for side in ("cosine", "cosine, transposed", "cosine, packed", "hadamard"):
        for what, name in against.items():
            floor = FLOORS.get((what, length, batch)) if side == "cosine" else None
            rows.append((f"{side} against {what} ({name})", timings[name], timings[side], floor))
    report.ratios(rows)


def choice(report: Report, rounds: int) -> None:
    """How many times faster than the product: rows, and packed images of 8 x 8."""
    report.note("Transform against product, times faster; and which one is taken.")
    rows = []
    for outputs, inputs in SMALL:
        cosine = Cosine(outputs, inputs)
        product, values = Product(cosine.matrix().float()), []
        for x, axis in ((torch.randn(128, inputs), -1), (torch.randn(8, inputs, 8, 8, 16), 1)):
            agree(cosine.apply(x, axis), product.apply(x, axis), 1e-5)
            runs: Sides = {
                "product": lambda product=product, x=x, axis=axis: product.apply(x, axis),
                "cosine": lambda cosine=cosine, x=x, axis=axis: cosine.apply(x, axis),
            }
            timings = measure(runs, rounds)
            values.append(timings["product"].seconds / timings["cosine"].seconds)
        taken = "transform" if faster(cosine) is cosine else "product"
        rows.append((f"{outputs} x {inputs}: {taken}", *values))
    report.table(("rows x columns", "128 rows", "packed"), rows)


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("Transforms", arguments)
    for length in LENGTHS:
        for batch in BATCHES:
            compare(length, batch, report, arguments)
    choice(report, arguments.rounds)
    report.write()


if __name__ == "__main__":
    main()
