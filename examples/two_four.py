"""Train 2:4 weights, look at them, and hand them to a script that has torch alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import gossamer
from gossamer.experiments import data
from gossamer.topology import NM

STEPS, BATCH = 100, 64
DIGITS = data.load("digits")


def build() -> nn.Sequential:
    """A model whose last layer, of ten outputs, stays dense: 2:4 along outputs needs multiples of four."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def train(model: nn.Sequential) -> None:
    method = gossamer.methods.rewire(0.5, allocation="uniform", structure=NM(2, 4, transposable=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sparsifier = gossamer.sparsify(model, method, optimizer, targets=["!3.weight"], total_steps=STEPS)
    for step in range(STEPS):
        x, y = DIGITS.train.batch(step, BATCH, seed=0)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.detach()  # the weights keep their zeros


def main() -> None:
    torch.manual_seed(0)
    train(model := build())
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder) / "model.pt")
        other = build()  # from here on torch alone
        other.load_state_dict(torch.load(Path(folder) / "model.pt"))
    on_gpu = torch.cuda.is_available()
    place = {"device": "cuda", "dtype": torch.bfloat16} if on_gpu else {}
    other.to(**place)
    for name, layer in other.named_modules():
        if isinstance(layer, nn.Linear) and bool(((layer.weight.view(-1, 4) != 0).sum(-1) <= 2).all()):
            print(f"{name}: 2:4")
            if on_gpu:  # sizes must be multiples of 16
                packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
                layer.weight = nn.Parameter(packed, requires_grad=False)
    x, y = DIGITS.test.whole()
    print(f"test accuracy {100 * float((other(x.to(**place)).argmax(1).cpu() == y).float().mean()):.1f}")


if __name__ == "__main__":
    main()
