"""A 2:4 model of `gossamer train`, taken to inference: verified, and computed from packed weights with equal outputs.

Takes the folder of a run; without one it trains its own for a few steps.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import gossamer
from gossamer.checkpoint import load_model
from gossamer.experiments import data, models
from gossamer.experiments.config import RunConfig
from gossamer.experiments.runs import RunFolder
from gossamer.experiments.train import train
from gossamer.nn import to_torch_semi_structured

SETTINGS = ["allocation=uniform", "structure=nm:2,4,true", "model.hidden=64,64", "targets=linear*.weight", "steps=60"]


def compare(how: str, model: nn.Module, other: nn.Module, x: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        y, found = model(x).float(), other(x).float()
    torch.testing.assert_close(found, y, rtol=tolerance, atol=tolerance * float(y.abs().max()))
    print(f"{how}: equal outputs, largest difference {float((found - y).abs().max()):.1g}")


def main(folder: Path) -> None:
    config = RunConfig.from_dict(RunFolder(folder).stored_config())
    dataset = data.load(config.data, **config.data_options)
    model = models.build(config.model, dataset, **config.model_options).eval()
    load_model(RunFolder(folder).model_file, model)  # a plain model of torch, with zeros
    packed = gossamer.convert(copy.deepcopy(model), layout="semi_structured")  # finds the weights that are 2:4
    for name, layer in packed.named_modules():
        if hasattr(layer, "execution"):
            most = int((layer.weight.flatten(1).view(-1, 4) != 0).sum(-1).max())
            print(f"{name}.weight: at most {most} of four, transposable: {layer.is_transposable}")
            layer.execution = "packed"  # on the CPU the emulation, which computes from what it packed
    x, _ = dataset.test.batch(0, 64, seed=0)
    compare("emulation", model, packed, x, 1e-5)
    if not torch.cuda.is_available():
        return print("to_sparse_semi_structured: not run, there is no CUDA device")
    x, model = x.cuda().to(torch.bfloat16 if x.is_floating_point() else x.dtype), model.to("cuda", torch.bfloat16)
    compare("to_sparse_semi_structured", model, to_torch_semi_structured(copy.deepcopy(model)), x, 2e-2)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        if len(sys.argv) == 1:
            run = RunConfig(data="digits", model="mlp", method="rewire", density=0.5, out=f"{place}/run", device="cpu")
            train(run.with_settings(SETTINGS))
        main(Path(sys.argv[1] if len(sys.argv) > 1 else f"{place}/run"))
