"""Time and peak memory of pruning a network at initialisation, and what is left of it.

    python benchmarks/foresight.py                       # SynFlow, ResNet-50 for 32x32, densities 1e-3 and 1e-4
    python benchmarks/foresight.py --method grasp --model resnet20 --densities 0.1

Data-driven methods see batches of random images: their time does not depend on what they see. Each density runs in a
process of its own, so that its peak resident memory is its own; "before" is that of the process with the model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
import warnings

import torch

from gossamer import foresight
from gossamer.experiments import models

SHAPE, CLASSES = (3, 32, 32), 10


def saliency(name: str, batch_size: int) -> foresight.Saliency:
    """The named way to prune, with what it looks at."""
    if name in ("synflow", "magnitude"):
        return foresight.INITS[name](inputs=SHAPE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *SHAPE, generator=generator)
    labels = torch.randint(CLASSES, (batch_size,), generator=generator)
    return foresight.INITS[name]([(images, labels)], inputs=SHAPE)


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, model_name: str, density: float, threads: int, batch_size: int, answers: object) -> None:
    """Prune once and put the figures into the queue."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = models.MODELS[model_name].build(SHAPE, CLASSES)
    before, chosen = peak_gib(), saliency(name, batch_size)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        start = time.perf_counter()
        supports = foresight.find(model, chosen, density)
        seconds = time.perf_counter() - start
    counts = {name: support.count for name, support in supports.items()}
    effective = foresight.effective_counts(model, supports, SHAPE)
    answers.put(  # type: ignore[attr-defined]
        {
            "seconds": seconds,
            "before": before,
            "peak": peak_gib(),
            "kept": sum(counts.values()),
            "total": sum(support.numel for support in supports.values()),
            "effective": sum(effective.values()),
            "empty": [name for name, count in counts.items() if not count],
            "layers": len(counts),
            "told": [str(warning.message) for warning in told],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="synflow", choices=sorted(foresight.INITS))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--densities", default="1e-3,1e-4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=100)
    options = parser.parse_args()
    print(f"{options.method}, {options.model} for 3x32x32, {options.threads} threads, torch {torch.__version__}")
    print("density  kept      of          on paths  empty layers  seconds  GiB before  GiB peak")
    for density in map(float, options.densities.split(",")):
        answers = multiprocessing.get_context("spawn").Queue()
        arguments = (options.method, options.model, density, options.threads, options.batch_size, answers)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
        process.start()
        got = answers.get()
        process.join()
        print(
            f"{density:<8g} {got['kept']:<9,} {got['total']:<11,} {got['effective']:<9,} "
            f"{len(got['empty']):>2} of {got['layers']:<7} {got['seconds']:7.1f}  {got['before']:10.2f}  "
            f"{got['peak']:8.2f}"
        )
        for line in got["told"]:
            print(f"         {line}")


if __name__ == "__main__":
    main()
