"""Which offset keeps a network's signals apart: the fixed features of an untrained net with offsets, layer by layer.

    python benchmarks/offset_features.py                       # the small conv net of Fashion-MNIST, every offset
    python benchmarks/offset_features.py --model mlp --offsets dct,block-dct

Nothing is trained: weights are alpha D with alpha = 1, batch norm uses the statistics of the images it sees. Of the
outputs of every batch norm layer (before the ReLU) the effective rank of the covariance between channels, over images
and positions: (sum of eigenvalues)^2 / sum of their squares, in % of the channels.

Probe: the accuracy in % of a linear classifier (ridge regression on the input of the head) that is fitted to 7,000
training images, on the other 2,000; the validation split stays unused. Seeded offsets: mean over three seeds. "random"
is the usual initial weights instead of an offset.

Tangent: the same of the linearised network (ridge regression on the gradients of the logits by the parameters of batch
norm and the biases), fitted to 1,000 images, on 1,000 others: what these parameters can do near where they start.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import torch
from torch import Tensor, nn

import gossamer
from gossamer.experiments import data
from gossamer.experiments.config import RunConfig
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.nn import OffsetLinear
from gossamer.offsets._registry import REGISTRY

FITTED = 7_000
TANGENT = 2_000
RIDGE = 1e-3  # of the mean eigenvalue of the features' second moment
SETTINGS = {
    "cnn": {"data_options": {"pool": 2, "train_subset": 10_000}},
    "mlp": {"data_options": {"train_subset": 10_000}, "model_options": {"hidden": [300, 300, 300, 300]}},
}


def untrained(model: str, offset: str, seed: int, dataset: data.Dataset) -> nn.Module:
    """The model of a run before its first step: sparse weights are zero on an offset, all there without one."""
    about = {"data": "fashion-mnist", "model": model, "seed": seed, **SETTINGS[model]}
    about |= {"method": "dense"} if offset == "random" else {"method": "offset-only", "offset": offset}
    return build_parts(make_plan(RunConfig.from_dict(about), dataset)).model


def prepared(model: str, offset: str, seed: int, dataset: data.Dataset, x: Tensor) -> nn.Module:
    """The same with the offset in plain dense weights, and the statistics of `x` in batch norm, for good."""
    net = untrained(model, offset, seed, dataset)
    if offset != "random":
        net = gossamer.convert(net, layout="dense")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    return net.eval()


def effective_rank(values: Tensor) -> float:
    """Of the covariance of (samples, channels): (sum of eigenvalues)^2 / sum of their squares, 0 if there are none."""
    centred = values.double() - values.double().mean(0)
    covariance = centred.T @ centred
    squares = float(covariance.square().sum())
    return float(covariance.trace()) ** 2 / squares if squares else 0.0


@torch.no_grad()
def features(model: nn.Module, x: Tensor) -> tuple[list[float], Tensor]:
    """Share of effective rank after every batch norm, and what the head sees."""
    ranks: list[float] = []
    linear = [m for m in model.modules() if isinstance(m, OffsetLinear)] or [
        m for m in model.modules() if isinstance(m, nn.Linear)
    ]
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, y: Tensor) -> None:
        channels = y.flatten(2).transpose(1, 2).flatten(0, 1) if y.dim() == 4 else y
        ranks.append(effective_rank(channels) / channels.shape[1])

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(note) for norm in norms]
    handles.append(linear[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0])))
    model.train()(x)  # one batch: the norms use its statistics
    for handle in handles:
        handle.remove()
    return ranks, seen[0].flatten(1)


def probe(inputs: Tensor, labels: Tensor) -> float:
    """Accuracy of ridge regression to one-hot labels, fitted to the first examples, on the others."""
    inputs = torch.cat((inputs, torch.ones(len(inputs), 1)), 1).double()
    fitted, targets = inputs[:FITTED], nn.functional.one_hot(labels[:FITTED]).double()
    moment = fitted.T @ fitted
    moment.diagonal().add_(RIDGE * float(moment.diagonal().mean()))
    weights = torch.linalg.solve(moment, fitted.T @ targets)
    return float(((inputs[FITTED:] @ weights).argmax(1) == labels[FITTED:]).double().mean())


def tangent(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Accuracy of the best small change of norm parameters and biases, fitted to the first half, on the other half."""
    free = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 1 and not name.endswith("alpha")}
    fixed = {name: p.detach() for name, p in [*model.named_parameters(), *model.named_buffers()] if name not in free}

    def logits(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, (parameters, fixed), (image.unsqueeze(0),))
        return found.squeeze(0)

    slopes = torch.func.vmap(torch.func.jacrev(logits), in_dims=(None, 0), chunk_size=100)(free, x)
    inputs = torch.cat([part.flatten(2) for part in slopes.values()], 2).double()  # (images, classes, parameters)
    wanted = nn.functional.one_hot(labels).double() - 0.1
    half = len(x) // 2
    fitted = inputs[:half].flatten(0, 1)
    moment = fitted.T @ fitted
    moment.diagonal().add_(RIDGE * float(moment.diagonal().mean()))
    change = torch.linalg.solve(moment, fitted.T @ wanted[:half].flatten())
    return float(((inputs[half:] @ change).argmax(1) == labels[half:]).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnn", choices=sorted(SETTINGS))
    parser.add_argument("--offsets", default=",".join(["random", *sorted(REGISTRY)]))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    dataset = data.load("fashion-mnist", **SETTINGS[options.model]["data_options"])
    x, y = dataset.train.batch(0, len(dataset.train), seed=0)
    print(f"{options.model}, {len(x):,} training images of Fashion-MNIST, torch {torch.__version__}")
    print(f"{'offset':<20} effective rank after each batch norm, % of channels      probe      tangent")
    for offset in options.offsets.split(","):
        found = [features(untrained(options.model, offset, seed, dataset), x) for seed in range(options.seeds)]
        ranks = [statistics.mean(values) for values in zip(*(ranks for ranks, _ in found), strict=True)]
        scores = [100 * probe(inputs, y) for _, inputs in found]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        plain = [prepared(options.model, offset, seed, dataset, x) for seed in range(options.seeds)]
        slopes = statistics.mean(100 * tangent(model, x[:TANGENT], y[:TANGENT]) for model in plain)
        told = " ".join(f"{100 * rank:7.1f}" for rank in ranks)
        print(f"{offset:<20} {told}      {statistics.mean(scores):.1f} ± {spread:.1f}    {slopes:.1f}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
