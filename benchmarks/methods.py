"""Every method's cost on top of the same dense training, masked execution: 20 steps with one rewiring among them.

    python benchmarks/methods.py [--rounds 15]

All methods train in turns in one process, on a 784-1024-1024-10 MLP with batch 256 and SGD with momentum (1.9 M
weights, density 0.1). Methods that rewire at every step do so here, too. Tickets are whole trainings: not in the list.
"""

from __future__ import annotations

import argparse
import inspect

from timing import interleave, restart_pinned, spread

restart_pinned()

import torch  # noqa: E402
from torch import nn  # noqa: E402

import gossamer  # noqa: E402
from gossamer import methods  # noqa: E402
from gossamer.experiments import models  # noqa: E402

DENSITY, PERIOD = 0.1, 20
EVERY_STEP = ("rewire", "ste", "sr-ste", "topkast", "deepr")  # their own period is one step
ARGUMENTS: dict[str, dict[str, object]] = {"sr-ste": {"group": None}, "one-shot": {"at": 5}, "str": {"s_init": -8.0}}


class Training:
    """One model with its optimizer, stepping on the same batch over and over."""

    def __init__(self, method: object | None) -> None:
        torch.manual_seed(0)
        self.model = models.build("mlp", ((784,), 10), hidden=(1024, 1024), batch_norm=False)
        self.x, self.y = torch.randn(256, 784), torch.randint(10, (256,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.sparsifier = None
        if method is not None:
            self.sparsifier = gossamer.sparsify(self.model, method, self.optimizer, total_steps=10**6)

    def steps(self) -> None:
        """As many as lie between two rewirings."""
        for _ in range(PERIOD):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()


def variants() -> dict[str, Training]:
    """Dense, then every registered method that trains once."""
    made = {"dense": Training(None)}
    for name, info in sorted(methods.REGISTRY.items()):
        known = inspect.signature(info.build).parameters
        given = dict(ARGUMENTS.get(name, {}))
        if "every" in known and name not in EVERY_STEP:
            given["every"] = PERIOD
        method = info.build(DENSITY, **given)
        if isinstance(method, gossamer.Method | gossamer.Learned):
            made[name] = Training(method)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    runs = {name: training.steps for name, training in variants().items()}
    interleave(runs, 2)  # warm up
    seconds = interleave(runs, arguments.rounds)
    dense = spread(seconds["dense"])[0]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds of {PERIOD} steps")
    print(f"{'':12}{'ms/step':>9}{'quartiles':>18}{'ratio':>8}")
    for name, values in seconds.items():
        median, low, high = (1e3 * value / PERIOD for value in spread(values))
        print(f"{name:12}{median:9.2f}{low:9.2f}{high:9.2f}{median / (1e3 * dense / PERIOD):8.3f}")


if __name__ == "__main__":
    main()
