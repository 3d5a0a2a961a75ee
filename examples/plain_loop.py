"""A plain PyTorch loop with one line added: RigL at a tenth of the weights, on the digits in the package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import gossamer
from gossamer import checkpoint
from gossamer.experiments import data

STEPS, BATCH = 300, 64


def main() -> None:
    torch.manual_seed(0)
    digits = data.load("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    method = gossamer.methods.rigl(density=0.1, every=20)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS)  # the added line

    for step in range(STEPS):
        x, y = digits.train.batch(step, BATCH, seed=0)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    print(sparsifier.summary())
    x, y = digits.test.whole()
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean()
    print(f"\ntest accuracy {accuracy:.1%} after {sparsifier.step} steps")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        checkpoint.save_model(path, model, sparsifier)
        totals = checkpoint.describe(path)["totals"]
        print(f"file {totals['file_bytes']:,} bytes; dense tensors would be {totals['dense_bytes']:,}")


if __name__ == "__main__":
    main()
