"""The share of training time that rewiring takes: RigL every 100 steps on a really sparse MLP.

    python benchmarks/rewiring_share.py [--method set] [--rounds 30] [--json FILE]

784-4096-4096-10, batch 128, density 0.05 in every layer, SGD with momentum. Two twins take turns, two steps each: one
never rewires, the other rewires in one of the two (RigL with the dense gradient that it needs and the optimizer step
that it gives up, at its first and largest fraction). The difference is what one rewiring adds, charged every 100 steps.
"""

from __future__ import annotations

import math

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, measure, options  # noqa: E402
from torch import nn  # noqa: E402

import gossamer  # noqa: E402
from gossamer import methods  # noqa: E402
from gossamer.experiments import models  # noqa: E402
from gossamer.nn import SparseWeight  # noqa: E402

DENSITY, PERIOD, BATCH, FOREVER = 0.05, 100, 128, 10**6
LARGEST_SHARE = 3.0  # per cent


class Training:
    """One converted model with its optimizer and controller, stepping on the same batch over and over."""

    def __init__(self, name: str, every: float) -> None:
        torch.manual_seed(0)
        method = methods.REGISTRY[name].build(DENSITY, every=every, stop=FOREVER, allocation="uniform")
        dense = models.build("mlp", ((784,), 10), hidden=(4096, 4096), batch_norm=False, bias=True)
        self.model = gossamer.convert(dense, method, total_steps=FOREVER)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.sparsifier = gossamer.sparsify(self.model, method, self.optimizer, total_steps=FOREVER)
        self.x, self.y = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))

    def two_steps(self) -> None:
        for _ in range(2):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()

    def supports(self) -> list[list[int]]:
        """Active positions of every layer, ascending."""
        layers = (module for module in self.model.modules() if isinstance(module, SparseWeight))
        return [layer.positions().sort().values.tolist() for layer in layers]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--method", choices=("rigl", "set"), default="rigl")
    arguments = parser.parse_args()
    report = Report(f"Rewiring's share of training time, {arguments.method} every {PERIOD} steps", arguments)
    runs = {
        "never rewires, two steps": Training(arguments.method, math.inf),
        "rewires in one of two steps": Training(arguments.method, 2),
    }
    before = [training.supports() for training in runs.values()]
    timings = measure({name: training.two_steps for name, training in runs.items()}, arguments.rounds)
    changed = [training.supports() != old for training, old in zip(runs.values(), before, strict=True)]
    if changed != [False, True]:
        raise SystemExit("only the second twin should have rewired")
    report.timings(f"784-4096-4096-10, batch {BATCH}, density {DENSITY}", timings)
    plain, rewiring = (timing.seconds for timing in timings.values())
    extra = rewiring - plain
    share = 100 * extra / (PERIOD * plain / 2 + extra)
    report.figures(
        [("one step", 1e3 * plain / 2, None), ("what one rewiring adds", 1e3 * extra, None)],
        "ms",
    )
    report.figures([(f"share of {PERIOD} steps with one rewiring", share, LARGEST_SHARE)], "% of time")
    report.write()


if __name__ == "__main__":
    main()
