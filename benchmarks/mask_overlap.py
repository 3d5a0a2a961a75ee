"""How much a mask depends on the data it was scored with: the share of its weights that masks of other data keep, too.

    python benchmarks/mask_overlap.py

The small conv net of the Fashion-MNIST studies, the same initial weights (seeds 0 to 2), masks made from 128 images
(per round): of Fashion-MNIST, from others of its images, from the same with random labels, from MNIST digits, from
noise. "chance" is the overlap with a random mask of the same layer counts. SynFlow looks at no data: its overlap is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import warnings
from collections.abc import Mapping

import torch

from gossamer import Support, foresight
from gossamer.analysis import sanity
from gossamer.experiments import data, models
from gossamer.foresight import Examples, Ones

Batches = list[tuple[torch.Tensor, torch.Tensor]]
ROUNDS, BATCH = 60, 128
METHODS = ("snip", "iter-snip", "force", "grasp", "synflow")


def sources(seed: int) -> dict[str, Batches]:
    """Name -> what is scored with."""
    fashion = data.load("fashion-mnist", pool=2, train_subset=10_000).train
    digits = data.load("mnist5k", pool=2).train
    generator = torch.Generator().manual_seed(seed)
    own = [fashion.batch(step, BATCH, seed=seed) for step in range(ROUNDS)]
    return {
        "reference": own,
        "other images": [fashion.batch(step, BATCH, seed=seed + 100) for step in range(ROUNDS)],
        "random labels": [(x, torch.randint(10, y.shape, generator=generator)) for x, y in own],
        "MNIST": [digits.batch(step, BATCH, seed=seed) for step in range(ROUNDS)],
        "noise": [(torch.randn(x.shape, generator=generator), y) for x, y in own],
    }


def overlap(one: Mapping[str, Support], other: Mapping[str, Support]) -> float:
    """Share of the weights of `one` that are in `other`; both have as many."""
    shared = sum(int((one[name].mask & other[name].mask).sum()) for name in one)
    return shared / sum(support.count for support in one.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", default="0.1,0.02,0.005")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # layer collapse is no matter here
    seeds, columns = list(map(int, options.seeds.split(","))), [*sources(0)][1:]
    print(f"mean over {len(seeds)} seeds, torch {torch.__version__}")
    print(f"{'method':<10} {'density':<8} " + " ".join(f"{name:>14}" for name in [*columns, "chance"]))
    for density in map(float, options.densities.split(",")):
        for name in METHODS:
            found: dict[str, list[float]] = {column: [] for column in [*columns, "chance"]}
            for seed in seeds:
                torch.manual_seed(seed)
                model = models.build("cnn", ((1, 14, 14), 10))
                saliency = dataclasses.replace(foresight.INITS[name](), allow_collapse=True)
                masks = {
                    source: foresight.find(model, saliency.bound(Examples(batches), Ones((1, 14, 14))), density)
                    for source, batches in sources(seed).items()
                }
                for column in columns:
                    found[column].append(overlap(masks["reference"], masks[column]))
                shuffled = sanity.shuffle(masks["reference"], seed)
                found["chance"].append(overlap(masks["reference"], shuffled))
            cells = " ".join(f"{statistics.mean(values):>14.3f}" for values in found.values())
            print(f"{name:<10} {density:<8g} {cells}", flush=True)


if __name__ == "__main__":
    main()
