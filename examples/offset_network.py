"""DCTpS: a hundredth of the weights trained on top of fixed cosine transforms; the same without them; files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import gossamer
from gossamer import checkpoint
from gossamer.experiments import data
from gossamer.offsets import DCT, Offset

STEPS, BATCH = 300, 64
DIGITS = data.load("digits")
METHOD = gossamer.methods.static(density=0.01, allocation="equal_per_layer")


def trained(offset: Offset | None) -> tuple[nn.Module, gossamer.Sparsifier]:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10)
    )
    model = gossamer.convert(model, METHOD, offset=offset)  # with one: y = alpha D x + S x + b, and S = 0
    print(gossamer.nn.conversion_report(model))
    named = dict(model.named_parameters())
    alphas = [named.pop(name) for name in list(named) if name.endswith("alpha")]
    groups = [{"params": list(named.values())}, {"params": alphas, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.01)
    sparsifier = gossamer.sparsify(model, METHOD, optimizer)
    for step in range(STEPS):
        x, y = DIGITS.train.batch(step, BATCH, seed=0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), sparsifier


@torch.no_grad()
def accuracy(model: nn.Module) -> Tensor:
    x, y = DIGITS.test.whole()
    return (model(x).argmax(1) == y).float().mean()


def main() -> None:
    for offset in (None, DCT()):
        model, sparsifier = trained(offset)
        numbers = sum(p.numel() for p in model.parameters())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "digits.safetensors"
            checkpoint.save_model(path, model, sparsifier)
            print(f"{accuracy(model):.1%} with {numbers} trained numbers, file {path.stat().st_size:,} bytes\n")
    sparsifier.detach()
    print(f"as plain layers of weight alpha D + S: {accuracy(gossamer.convert(model, layout='dense')):.1%}")


if __name__ == "__main__":
    main()
