"""Stop in the middle, build everything anew, load, go on: bit for bit the uninterrupted run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import gossamer
from gossamer import checkpoint
from gossamer.experiments import data

STEPS, BATCH, STOP = 200, 64, 77
DIGITS = data.load("digits")


class Run:
    """What a training script builds, and what its checkpoint holds."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        method = gossamer.methods.set_(density=0.1, every=10)
        self.sparsifier = gossamer.sparsify(self.model, method, self.optimizer, total_steps=STEPS)
        self.parts = {"model": self.model, "optimizers": self.optimizer, "sparsifier": self.sparsifier}

    def train(self, until: int) -> None:
        for step in range(self.sparsifier.step, until):
            x, y = DIGITS.train.batch(step, BATCH, seed=0)  # the batch depends on the step alone
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.scheduler.step()


def main() -> None:
    straight = Run(seed=0)
    straight.train(STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        first = Run(seed=0)
        first.train(STOP)
        checkpoint.save_training(path, **first.parts, extra={"scheduler": first.scheduler.state_dict()})
        second = Run(seed=1)  # other initial weights and nothing learned: all comes from the file
        extra = checkpoint.load_training(path, **second.parts)
        second.scheduler.load_state_dict(extra["scheduler"])
        print(f"going on at step {second.sparsifier.step}; file {path.stat().st_size:,} bytes")
        second.train(STEPS)
    pairs = zip(straight.model.parameters(), second.model.parameters(), strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        raise SystemExit("the resumed run differs from the uninterrupted one")
    print("equal to the uninterrupted run, bit for bit")


if __name__ == "__main__":
    main()
