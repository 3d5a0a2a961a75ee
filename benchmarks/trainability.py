"""When is training possible: signals at the start of random sparse networks, and of sparse weights on an offset.

    python benchmarks/trainability.py                                    # the small conv net of Fashion-MNIST
    python benchmarks/trainability.py --data mnist1d --model mlp --layers

For P = 1 ... 0.0001 of the initial weights kept at random positions, equally many in every layer (EPL), and for weights
added to offsets (D + S, which is D at first, whatever P is): at one batch of 64 training examples (batch norm, if there
is one, with the statistics of this batch; --plain leaves it out) the root mean square of what comes out of a layer and
of the gradient of the loss there, the least of all layers; and singular values of the Jacobian from input to logits.
Where a signal is zero, nothing can train.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gossamer.analysis import end_to_end
from gossamer.errors import ConfigError
from gossamer.experiments import data
from gossamer.experiments.config import RunConfig
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.targets import choose

DENSITIES = (1.0, 0.5, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 0.0005, 0.0002, 0.0001)


def fresh(config: RunConfig, dataset: data.Dataset, plain: bool) -> nn.Module:
    """The model of a run before its first step, in training mode."""
    model = build_parts(make_plan(config, dataset)).model
    for module in list(model.modules()) if plain else ():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


@contextlib.contextmanager
def watched(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[float]]]:
    """Name -> root mean square of the output and, after a backward pass, of its gradient."""
    seen: dict[str, list[float]] = {}

    def note(name: str, y: Tensor) -> None:
        seen[name] = [float(y.detach().square().mean().sqrt()), 0.0]
        y.register_hook(lambda g: seen[name].__setitem__(1, float(g.square().mean().sqrt())))

    handles = [m.register_forward_hook(lambda _, x, y, name=name: note(name, y)) for name, m in layers.items()]
    yield seen
    for handle in handles:
        handle.remove()


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold the sparse weights, or their offsets."""
    paths = [row.name.removesuffix(".weight").removesuffix(".sparse") for row in choose(model, None) if row.sparse]
    return {path: model.get_submodule(path) for path in paths}


def measure(model: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, list[float]], tuple[float, ...]]:
    """Signals by layer; mean square, mean, standard deviation and maximum of the singular values, and dead ones."""
    with watched(layers_of(model)) as seen:
        nn.functional.cross_entropy(model(x), y).backward()
    spectrum = end_to_end(model, x, statistics="batch")
    dead = math.nan if spectrum.dead is None else spectrum.dead
    return seen, (spectrum.mean_square, spectrum.mean, spectrum.std, spectrum.max, dead)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--offsets", default="dct,signed-dct,delta-dct,identity")
    parser.add_argument("--densities", default=",".join(map(str, DENSITIES)))
    parser.add_argument("--plain", action="store_true", help="leave batch norm out")
    parser.add_argument("--layers", action="store_true", help="print the signal of every layer, not only the first")
    options = parser.parse_args()
    loaded = {"pool": 2, "train_subset": 10_000} if options.data == "fashion-mnist" else {}
    dataset = data.load(options.data, **loaded)
    x, y = dataset.train.batch(0, 64, seed=0)
    print(f"{options.data}, {options.model}{', no norm' * options.plain}, batch of 64, torch {torch.__version__}")
    print("weights          P   least forward  least backward    mean sq       mean        std        max   dead")
    rows: list[tuple[str, float]] = [("EPL", density) for density in map(float, options.densities.split(","))]
    rows += [(offset, 0.1) for offset in options.offsets.split(",")]  # S is zero at first, whatever its density
    for label, density in rows:
        about = {"data": options.data, "model": options.model, "data_options": loaded, "density": density}
        about |= {} if label == "EPL" else {"offset": label}
        config = RunConfig.from_dict({**about, "method": "static", "args": {"allocation": "equal_per_layer"}})
        shown = f"{density:g}" if label == "EPL" else "any"
        try:
            seen, spectrum = measure(fresh(config, dataset, options.plain), x, y)
        except ConfigError as error:
            print(f"{label:<10} {shown:>7}  {error}")
            continue
        forward, backward = (min(values[i] for values in seen.values()) for i in (0, 1))
        *figures, dead = spectrum
        told = " ".join(f"{figure:10.2e}" for figure in figures)
        print(f"{label:<10} {shown:>7}       {forward:9.2e}       {backward:9.2e} {told} {dead:6.1%}")
        for name, (out, back) in seen.items() if options.layers else ():
            print(f"  {name:<16}       {out:9.2e}       {back:9.2e}")


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
