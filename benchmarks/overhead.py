"""What a method adds to the step of the same dense training, masked execution.

    python benchmarks/overhead.py [--rounds 30] [--only mlp]

All variants train in turns in one process. A step that rewires is measured apart from one that does not; "every N" rows
charge a rewiring to every N-th step. `GOSSAMER_CPU=reference` shows `rewire` without its native pass.
"""

from __future__ import annotations

import argparse
import math

from timing import interleave, restart_pinned, spread

restart_pinned()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import gossamer  # noqa: E402
from gossamer import methods  # noqa: E402
from gossamer.experiments import models  # noqa: E402
from gossamer.kernels.cpu.library import native  # noqa: E402

DENSITY, PERIOD = 0.1, 100
TARGETS = {"rewire r=1": 1.10, f"rigl every {PERIOD}": 1.05, f"set every {PERIOD}": 1.05}


class Training:
    """One model with its optimizer, stepping on the same batch over and over."""

    def __init__(self, build: str, method: gossamer.Method | None) -> None:
        torch.manual_seed(0)
        self.model, self.batch, optimizer = SETTINGS[build]()
        self.optimizer = optimizer(self.model.parameters())
        self.sparsifier = None
        if method is not None:
            self.sparsifier = gossamer.sparsify(self.model, method, self.optimizer, total_steps=10**6)

    def two_steps(self) -> None:
        """A "rewires" twin rewires in one of the two."""
        self._step()
        self._step()

    def _step(self) -> None:
        self.optimizer.zero_grad()
        inputs, labels = self.batch
        loss = nn.functional.cross_entropy(self.model(inputs).flatten(0, -2), labels.flatten())
        loss.backward()
        self.optimizer.step()


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


def mlp() -> tuple[nn.Module, tuple[Tensor, Tensor], object]:
    """784-2048-2048-10, batch 512, SGD with momentum: 5.8 M weights."""
    model = models.build("mlp", ((784,), 10), hidden=(2048, 2048), batch_norm=False)
    return model, (torch.randn(512, 784), torch.randint(10, (512,))), sgd


def resnet20() -> tuple[nn.Module, tuple[Tensor, Tensor], object]:
    """ResNet-20 for 32x32, batch 128, SGD with momentum: 0.27 M weights."""
    model = models.build("resnet20", ((3, 32, 32), 10))
    return model, (torch.randn(128, 3, 32, 32), torch.randint(10, (128,))), sgd


def gpt() -> tuple[nn.Module, tuple[Tensor, Tensor], object]:
    """GPT-small: 6 layers of width 384, context 128, batch 8, AdamW: 10.6 M weights."""
    model = models.build("gpt", ((128,), 256), depth=6, dim=384, heads=6, hidden=1536)
    tokens = torch.randint(256, (8, 129))
    return model, (tokens[:, :-1], tokens[:, 1:]), adamw


SETTINGS = {"mlp": mlp, "resnet20": resnet20, "gpt": gpt}


def variants() -> dict[str, gossamer.Method | None]:
    """Name -> method; a "rewires" twin rewires at every second step, to be charged by period."""
    never = math.inf
    return {
        "dense": None,
        "static": methods.static(DENSITY),
        "rewire r=1": methods.rewire(DENSITY, every=1),
        "rigl plain": methods.rigl(DENSITY, every=never, stop=10**6),
        "rigl rewires": methods.rigl(DENSITY, every=2, stop=10**6),
        "set plain": methods.set_(DENSITY, every=never),
        "set rewires": methods.set_(DENSITY, every=2),
    }


def measure(build: str, rounds: int) -> None:
    trainings = {name: Training(build, method) for name, method in variants().items()}
    pairs = {name: training.two_steps for name, training in trainings.items()}
    interleave(pairs, 3)  # warm up
    seconds = interleave(pairs, rounds)
    step = {name: tuple(value / 2 for value in spread(values)) for name, values in seconds.items()}
    dense = step["dense"][0]
    print(f"\n{build}: {SETTINGS[build].__doc__}")
    print(f"{'':16}{'ms/step':>9}{'quartiles':>18}{'ratio':>8}{'target':>8}")
    for name, (median, low, high) in step.items():
        target = f"{TARGETS[name]:8.2f}" if name in TARGETS else ""
        print(f"{name:16}{1e3 * median:9.2f}{1e3 * low:9.2f}{1e3 * high:9.2f}{median / dense:8.3f}{target}")
    for name in ("rigl", "set"):
        plain = step[f"{name} plain"][0]
        rewiring = 2 * step[f"{name} rewires"][0] - plain
        row, ratio = f"{name} every {PERIOD}", ((PERIOD - 1) * plain + rewiring) / PERIOD / dense
        print(f"{row:16}{'':27}{ratio:8.3f}{TARGETS[row]:8.2f}   one rewiring step {1e3 * rewiring:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=SETTINGS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, density {DENSITY}, {arguments.rounds} rounds")
    library = native()
    print(f"rewire chooses {f'in one native pass ({library.isa})' if library else 'in torch and numpy, not natively'}")
    for build in [arguments.only] if arguments.only else SETTINGS:
        measure(build, arguments.rounds)


if __name__ == "__main__":
    main()
