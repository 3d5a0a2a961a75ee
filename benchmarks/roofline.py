"""How close the sparse kernels come to what this machine can do.

    python benchmarks/roofline.py [--rounds 30] [--json FILE]

Needs a C++ compiler: it builds probe.cpp for this very CPU, which runs the inner loops of the kernels on buffers that
stay in the first-level cache, the second, the third, and in memory. A forward product needs one load and one
multiply-add of 16 floats per stored value and 16 examples; the fused backward two loads, one store and two
multiply-adds. These are the roofs; 100 % would need every operand to lie in that cache and nothing else to be done.
"traffic" is the time in which memory could deliver activations, values, index and gradients once, as a share of the
time taken.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, measure, options  # noqa: E402
from torch import Tensor  # noqa: E402

from gossamer.kernels import sparse  # noqa: E402
from gossamer.nn import SparseConv2d, SparseLinear  # noqa: E402

LANES, WORK = 16, 2**24  # floats of a vector; vectors that one probe touches per thread
SIZES = {"L1": 2**14, "L2": 2**18, "L3": 2**22, "memory": 2**26}  # bytes per thread, all buffers together
DENSITIES = (0.25, 0.1, 0.05, 0.01, 0.001)
CONVOLUTIONS = ((64, 3, 32, 32), (256, 3, 8, 32), (512, 1, 7, 32))  # channels, kernel, size, batch
CONVOLUTION_DENSITIES = (0.1, 0.05, 0.01)


Attained = tuple[str, float, float, float, float, float]


class Kernel(NamedTuple):
    """One call; work: multiply-adds; bytes: what it must read or write at least once."""

    run: Callable[[], object]
    backward: bool
    work: float
    bytes: float


def build_probe(folder: str) -> ctypes.CDLL:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise SystemExit("benchmarks/roofline.py needs a C++ compiler: install g++ or clang++")
    library = Path(folder) / "probe.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-ffp-contract=fast", "-std=c++17"]
    subprocess.run([compiler, *flags, str(Path(__file__).with_name("probe.cpp")), "-o", str(library)], check=True)
    probe = ctypes.CDLL(str(library))
    size, address = ctypes.c_int64, ctypes.c_void_p
    probe.probe_forward.argtypes = [address, size, size, ctypes.c_int]
    probe.probe_backward.argtypes = [address, address, size, size, ctypes.c_int]
    probe.probe_forward.restype = probe.probe_backward.restype = ctypes.c_float
    return probe


def aligned(floats: int) -> Tensor:
    """Ones from an address that is a multiple of 64 bytes."""
    whole = torch.ones(floats + LANES)
    return whole[-(whole.data_ptr() // 4) % LANES :][:floats]


def probes(probe: ctypes.CDLL, threads: int) -> dict[tuple[str, str], tuple[Callable[[], object], float]]:
    """(phase, level) -> (run, multiply-adds per run)."""
    found: dict[tuple[str, str], tuple[Callable[[], object], float]] = {}
    for level, size in SIZES.items():
        vectors = size // (4 * LANES)
        x = aligned(threads * vectors * LANES)
        passes = WORK // vectors

        def forward(x: Tensor = x, vectors: int = vectors, passes: int = passes) -> None:
            probe.probe_forward(x.data_ptr(), vectors, passes, threads)

        def backward(x: Tensor = x, half: int = vectors // 2, passes: int = passes) -> None:
            probe.probe_backward(x.data_ptr(), x[threads * half * LANES :].data_ptr(), half, passes, threads)

        work = float(threads * vectors * passes * LANES)
        found["forward", level] = forward, work
        found["backward", level] = backward, work  # half the vectors, two multiply-adds each
    return found


def kernels_of(
    apply: Callable[[], Tensor], x: Tensor, values: Tensor, index: Tensor, positions: int
) -> tuple[Kernel, Kernel]:
    """Forward and fused backward. positions: output positions of one packed activation, all its lanes counted."""

    def forward() -> object:
        with torch.no_grad():
            return apply()

    y = apply()
    gradient = torch.randn_like(y)
    work = float(values.numel()) * positions
    weight = values.nbytes + index.nbytes
    return (
        Kernel(forward, False, work, x.nbytes + y.nbytes + weight),
        Kernel(
            lambda: torch.autograd.grad(y, (x, values), gradient, retain_graph=True),
            True,
            2 * work,
            2 * x.nbytes + y.nbytes + weight + values.nbytes,
        ),
    )


def linear_kernels(size: int, batch: int, density: float) -> tuple[Kernel, Kernel]:
    layer = SparseLinear(size, size, density, bias=False)
    x = sparse.pack(torch.randn(batch, size)).requires_grad_()
    lanes = x.shape[0] * LANES
    return kernels_of(
        lambda: sparse.linear(x, layer.values, layer.index, None, size), x, layer.values, layer.index, lanes
    )


def conv_kernels(channels: int, kernel: int, size: int, batch: int, density: float) -> tuple[Kernel, Kernel]:
    padding = kernel // 2
    layer = SparseConv2d(channels, channels, kernel, density, padding=padding, bias=False)
    x = sparse.pack(torch.randn(batch, channels, size, size)).requires_grad_()
    geometry = (layer.weight_shape, (1, 1), (padding, padding), (1, 1), 1)
    lanes = x.shape[0] * LANES * size * size
    return kernels_of(
        lambda: sparse.conv(x, layer.values, layer.index, None, *geometry), x, layer.values, layer.index, lanes
    )


def roofs(report: Report, threads: int, rounds: int) -> dict[tuple[str, str], float]:
    """(phase, level) -> GFLOP/s that the probe reaches."""
    with tempfile.TemporaryDirectory() as folder:
        runs = probes(build_probe(folder), threads)
        named = {f"{phase}, {level}": run for (phase, level), (run, _) in runs.items()}
        timings = measure(named, rounds)
    report.timings("Probes", timings)
    found = {key: 2e-9 * work / timings[", ".join(key)].seconds for key, (_, work) in runs.items()}
    report.table(("operands in", "GFLOP/s"), [(f"{phase}, {level}", value) for (phase, level), value in found.items()])
    return found


def attained(name: str, kernel: Kernel, taken: Timing, roof: dict[tuple[str, str], float]) -> Attained:
    phase = "backward" if kernel.backward else "forward"
    speed = 2e-9 * kernel.work / taken.seconds
    # The forward probe does 2 FLOP per 4 bytes read.
    traffic = kernel.bytes / (2e9 * roof["forward", "memory"])
    return (
        name,
        1e3 * taken.seconds,
        speed,
        100 * speed / roof[phase, "L1"],
        100 * speed / roof[phase, "L2"],
        100 * traffic / taken.seconds,
    )


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("Roofline", arguments)
    roof = roofs(report, arguments.threads, arguments.rounds)
    torch.manual_seed(0)
    pairs = {f"linear 4096x4096 b128 at {p:g}": linear_kernels(4096, 128, p) for p in DENSITIES}
    for channels, kernel, size, batch in CONVOLUTIONS:
        for p in CONVOLUTION_DENSITIES:
            name = f"{channels}->{channels} {kernel}x{kernel} @{size} b{batch} at {p:g}"
            pairs[name] = conv_kernels(channels, kernel, size, batch, p)
    kernels = {f"{name}, {'backward' if k.backward else 'forward'}": k for name, pair in pairs.items() for k in pair}
    timings = measure({name: kernel.run for name, kernel in kernels.items()}, arguments.rounds)
    report.timings("Kernels through the public operators, packed", timings)
    rows = [attained(name, kernel, timings[name], roof) for name, kernel in kernels.items()]
    report.table(("kernel", "ms", "GFLOP/s", "% of the L1 roof", "% of the L2 roof", "traffic, % of the time"), rows)
    report.write()


if __name__ == "__main__":
    main()
