"""Whole training steps, really sparse against dense: forward, backward and SGD with momentum.

    python benchmarks/sparse_training.py [--only mlp vgg11-small] [--allocation uniform] [--rounds 30] [--json FILE]

Every weight of a converted model is sparse, the head's too, and has the density of the row ("uniform") or what the
allocation gives it. "converted" keeps activations packed between layers, "row-major" stacks public layers as they are,
"auto" swaps only layers that win on this machine. "masked" is the same method on dense kernels.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, Timing, agree, best, measure, options  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import gossamer  # noqa: E402
from gossamer import methods  # noqa: E402
from gossamer.experiments import models  # noqa: E402
from gossamer.nn import SparseLinear  # noqa: E402
from gossamer.nn.convert import conversion_report  # noqa: E402

BATCH, WIDTH = 128, 4096
FLAT, IMAGE = (784,), (3, 32, 32)


class Setting(NamedTuple):
    """A dense model, what it takes, and density -> how many times faster the converted one has to be."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    floors: dict[float, float | None]


def mlp() -> nn.Module:
    return models.build("mlp", (FLAT, 10), hidden=(WIDTH, WIDTH), batch_norm=False, bias=True)


SETTINGS = {
    "mlp": Setting(mlp, FLAT, {0.1: 3.5, 0.05: 6, 0.01: 12}),
    "vgg11-small": Setting(lambda: models.build("vgg11", (IMAGE, 10), small=True), IMAGE, {0.05: 1.5}),
    "vgg11": Setting(lambda: models.build("vgg11", (IMAGE, 10)), IMAGE, {0.05: None}),
    "resnet20": Setting(lambda: models.build("resnet20", (IMAGE, 10)), IMAGE, {0.05: None}),
}


class Training:
    """One model stepping on the same batch over and over."""

    def __init__(self, model: nn.Module, x: Tensor, *, autocast: bool = False) -> None:
        self.model, self.x, self.autocast = model, x, autocast
        self.y = torch.randint(10, (len(x),))
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()


def dense_sides(setting: Setting, x: Tensor) -> dict[str, Training]:
    """fp32 and bf16 autocast; images in both memory formats."""
    layouts = {"contiguous": torch.contiguous_format}
    if x.dim() == 4:
        layouts["channels_last"] = torch.channels_last
    sides = {}
    for label, autocast in (("dense fp32", False), ("dense bf16 autocast", True)):
        for name, layout in layouts.items():
            model = setting.build().to(memory_format=layout)
            sides[f"{label} {name}"] = Training(model, x.contiguous(memory_format=layout), autocast=autocast)
    return sides


def stacked(density: float) -> nn.Module:
    """The MLP of public layers, as a user writes it."""
    first, second, head = (SparseLinear(*sizes, density) for sizes in ((FLAT[0], WIDTH), (WIDTH, WIDTH), (WIDTH, 10)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head)


def sparse_sides(name: str, setting: Setting, x: Tensor, density: float, allocation: str) -> dict[str, Training]:
    method, dense = methods.static(density, allocation), setting.build()
    masked = Training(copy.deepcopy(dense), x)
    gossamer.sparsify(masked.model, method, masked.optimizer, total_steps=10**6)
    converted = Training(gossamer.convert(copy.deepcopy(dense), method), x)
    with torch.no_grad():
        agree(converted.model(x), masked.model(x), 1e-3)
    sides = {f"masked {density:g}": masked, f"converted {density:g}": converted}
    if name == "mlp":
        sides[f"row-major {density:g}"] = Training(stacked(density), x)
    return {**sides, f"auto {density:g}": Training(gossamer.convert(dense, method, layout="auto", batch=x), x)}


def chosen(side: str, model: nn.Module) -> str:
    """Which layers "auto" left dense."""
    made = conversion_report(model)
    dense = [choice for choice in made.choices if choice.layout == "dense"] if made else []
    kept = "; ".join(f"{choice.name}: {choice.why}" for choice in dense)
    return f"{side} left {len(dense)} layers dense{': ' + kept if kept else ''}"


def compare(name: str, setting: Setting, report: Report, rounds: int, allocation: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, *setting.shape)
    sides = dense_sides(setting, x)
    dense_names = tuple(sides)
    for density in setting.floors:
        sides |= sparse_sides(name, setting, x, density, allocation)
    timings = measure({side: training.step for side, training in sides.items()}, rounds)
    report.timings(f"{name}, batch {BATCH}, {allocation} densities, one step", timings)
    rows: list[tuple[str, Timing, Timing, float | None]] = []
    for label in ("dense fp32", "dense bf16 autocast"):
        against = best(timings, *(side for side in dense_names if side.startswith(label)))
        for side in timings:
            if side in dense_names:
                continue
            kind, density = side.split()
            floor = setting.floors[float(density)] if (kind, label) == ("converted", "dense fp32") else None
            rows.append((f"{side} against {against}", timings[against], timings[side], floor))
    report.ratios(rows)
    for side, training in sides.items():
        if side.startswith("auto"):
            report.note(chosen(side, training.model))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--allocation", default="uniform")
    arguments = parser.parse_args()
    report = Report("Whole training steps", arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # "auto" measures anew
        for name in arguments.only:
            compare(name, SETTINGS[name], report, arguments.rounds, arguments.allocation)
    report.write()


if __name__ == "__main__":
    main()
