"""How signals pass through a network that was pruned at initialisation, before and after repair of its kept weights.

    python benchmarks/propagation.py                                    # MNIST-1D, five hidden layers without norm
    python benchmarks/propagation.py --data fashion-mnist --model cnn   # the small conv net, with batch norm

For each first support and density, at one batch of 64 training examples (batch norm with the statistics of this batch):
singular values of the Jacobian from input to logits, and how many decades the mean square falls per layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings

import torch

from gossamer import foresight, methods
from gossamer.analysis import end_to_end, layerwise, sanity
from gossamer.experiments import data, models
from gossamer.foresight import Examples, Ones
from gossamer.method import Method

PLAIN = {"hidden": (100,) * 5, "batch_norm": False}
REPAIRS = ("none", "isometry", "fan-in")


def first_supports(dataset: data.Dataset, density: float) -> dict[str, Method]:
    """Static methods on every kind of first support, given what they look at."""
    batches = [dataset.train.batch(step, 128, seed=0) for step in range(60)]
    rows = {"random uniform": methods.static(density, "uniform"), "random ERK": methods.static(density)}
    for name in ("magnitude", "snip", "iter-snip", "force", "grasp", "synflow"):
        init = dataclasses.replace(foresight.INITS[name](), allow_collapse=True)
        rows[name] = methods.static(density, init=init.bound(Examples(batches), Ones(dataset.input_shape)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist1d")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--densities", default="0.1,0.02")
    options = parser.parse_args()
    loaded = {"pool": 2, "train_subset": 10_000} if options.data == "fashion-mnist" else {}
    dataset = data.load(options.data, **loaded)
    inputs, _ = dataset.train.batch(0, 64, seed=0)
    shape = PLAIN if options.model == "mlp" else {}

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        return models.build(options.model, dataset, **shape)

    def line(label: str, density: float, repair: str, model: torch.nn.Module) -> None:
        spectrum = end_to_end(model, inputs, statistics="batch")
        slope = layerwise(model, inputs, start="input", statistics="batch").slope
        print(
            f"{label:<16} {density:<8g} {repair:<9} {spectrum.mean_square:9.2e} {spectrum.mean:9.2e} "
            f"{spectrum.std:9.2e} {spectrum.max:9.2e} {slope:+7.2f}"
        )

    print(f"{options.data}, {options.model}, batch of 64, torch {torch.__version__}")
    print("first support    density  repair      mean sq      mean       std       max  decades per layer")
    line("dense", 1.0, "none", fresh())
    warnings.simplefilter("ignore", UserWarning)  # collapse is one of the things to see
    for density in map(float, options.densities.split(",")):
        for label, method in first_supports(dataset, density).items():
            supports = sanity.first_supports(fresh(), method)
            for repair in REPAIRS:
                model = fresh()
                for name, parameter in model.named_parameters():
                    if name in supports:
                        parameter.data[~supports[name].mask] = 0
                if repair == "isometry":
                    foresight.approximate_isometry(model, supports)
                elif repair == "fan-in":
                    foresight.rescale_fan_in(model, supports)
                line(label, density, repair, model)


if __name__ == "__main__":
    main()
