"""The hybrid layer of live methods: sparse forward, sparse gradient of the input, dense gradient of the weight.

    python benchmarks/hybrid.py [--density 0.1] [--batch 128] [--rounds 30] [--json FILE]

A 4096x4096 layer. First the layer alone, forward and backward of dense, row-major activations, with a support that
stays and with one that is new each time, so that its index is built again. Then whole training steps (SGD with
momentum) under `rewire`: one twin never rewires, the other in every step. Rows "r = N" charge one rewiring to N steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, agree, measure, options  # noqa: E402
from torch import nn  # noqa: E402

import gossamer  # noqa: E402
from gossamer import methods  # noqa: E402
from gossamer.nn.hybrid import HybridLinear  # noqa: E402

WIDTH, PERIODS = 4096, (1, 10, 100)
FLOORS = {100: 1.8}


class Alone:
    """Forward and backward of one layer whose weight is the sparse view of random supports."""

    def __init__(self, kind: type[nn.Linear], density: float, batch: int) -> None:
        torch.manual_seed(0)
        self.layer = kind(WIDTH, WIDTH)
        self.masks = [torch.rand(WIDTH, WIDTH) < density for _ in range(2)]
        with torch.no_grad():
            self.layer.weight *= self.masks[0] & self.masks[1]  # zero off both, so that either is its support
        self.x = torch.randn(batch, WIDTH).requires_grad_()
        self.slope = torch.randn(batch, WIDTH)

    def once(self) -> None:
        self.layer.zero_grad()
        self.x.grad = None
        self.layer(self.x).backward(self.slope)

    def with_new_support(self) -> None:
        assert isinstance(self.layer, HybridLinear)
        self.masks.reverse()
        self.layer.set_support(self.masks[0])
        self.layer.confirm()
        self.once()


class Training:
    """One layer with its optimizer, and its controller if it is sparse, on the same batch over and over."""

    def __init__(self, kind: type[nn.Linear], method: gossamer.Method | None, batch: int) -> None:
        torch.manual_seed(0)
        self.layer = kind(WIDTH, WIDTH)
        self.x, self.y = torch.randn(batch, WIDTH).requires_grad_(), torch.randn(batch, WIDTH)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=1e-3, momentum=0.9)
        if method is not None:
            gossamer.sparsify(self.layer, method, self.optimizer, total_steps=10**6)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.x.grad = None
        nn.functional.mse_loss(self.layer(self.x), self.y).backward()
        self.optimizer.step()


def periods(timings: Mapping[str, Timing], dense: str, plain: str, rewiring: str, floors: Mapping[int, float]) -> list:
    """Rows for `Report.ratios`: one rewiring charged to r steps."""
    still, always = timings[plain].seconds, timings[rewiring].seconds
    rows = []
    for r in PERIODS:
        seconds = still + (always - still) / r
        rows.append((f"{plain}, r = {r}", timings[dense], Timing(seconds, seconds, seconds), floors.get(r)))
    return rows


def layer_alone(report: Report, density: float, batch: int, rounds: int) -> None:
    dense, hybrid = Alone(nn.Linear, density, batch), Alone(HybridLinear, density, batch)
    fresh = Alone(HybridLinear, density, batch)
    hybrid.layer.set_support(hybrid.masks[0])
    hybrid.layer.confirm()
    for side in (dense, hybrid):
        side.once()
    agree(hybrid.layer.weight.grad, dense.layer.weight.grad)
    agree(hybrid.x.grad, dense.x.grad)
    runs: dict[str, Callable[[], None]] = {
        "dense fp32": dense.once,
        "hybrid": hybrid.once,
        "hybrid, new support": fresh.with_new_support,
    }
    timings = measure(runs, rounds)
    report.timings(f"{WIDTH}x{WIDTH}, batch {batch}, density {density:g}: the layer, forward and backward", timings)
    floors = FLOORS if (density, batch) == (0.1, 128) else {}
    report.ratios(periods(timings, "dense fp32", "hybrid", "hybrid, new support", floors))


def whole_steps(report: Report, density: float, batch: int, rounds: int) -> None:
    still, always = methods.rewire(density, every=math.inf), methods.rewire(density, every=1)
    trainings = {
        "dense fp32": Training(nn.Linear, None, batch),
        "masked": Training(nn.Linear, still, batch),
        "masked, rewires": Training(nn.Linear, always, batch),
        "hybrid": Training(HybridLinear, still, batch),
        "hybrid, rewires": Training(HybridLinear, always, batch),
    }
    timings = measure({name: training.step for name, training in trainings.items()}, rounds)
    report.timings(f"{WIDTH}x{WIDTH}, batch {batch}, density {density:g}: training steps under rewire", timings)
    rows = [
        row for kind in ("masked", "hybrid") for row in periods(timings, "dense fp32", kind, f"{kind}, rewires", {})
    ]
    report.ratios(rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    report = Report("The hybrid layer of live methods", arguments)
    layer_alone(report, arguments.density, arguments.batch, arguments.rounds)
    whole_steps(report, arguments.density, arguments.batch, arguments.rounds)
    report.write()


if __name__ == "__main__":
    main()
