"""Two optimizers at once: Muon on the hidden matrices, AdamW on the rest; one sparsifier for both."""

from __future__ import annotations

import torch
from torch import nn

import gossamer
from gossamer.experiments import data, models

STEPS, BATCH = 200, 100


def main() -> None:
    torch.manual_seed(0)
    signals = data.load("mnist1d")
    model = models.build("mlp", signals)  # 40-256-256-10 with batch norm
    hidden = ["linear1.weight", "linear2.weight"]  # Muon is meant for 2-D weights of hidden layers
    named = dict(model.named_parameters())
    muon = torch.optim.Muon([named[name] for name in hidden], lr=0.02)
    adamw = torch.optim.AdamW([p for name, p in named.items() if name not in hidden], lr=0.01)

    # rewire trains inactive weights, too; with these optimizers a scale below 1 acts on their update.
    method = gossamer.methods.rewire(density=0.1, exploit=gossamer.Fix(0.5), scale=0.5)
    sparsifier = gossamer.sparsify(
        model, method, [muon, adamw], total_steps=STEPS, targets=["linear*.weight", "head.weight"]
    )

    for step in range(STEPS):
        x, y = signals.train.batch(step, BATCH, seed=0)
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        for optimizer in (muon, adamw):
            optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {sparsifier.step}: loss {loss.item():.3f}")

    print(sparsifier)
    model.eval()
    x, y = signals.valid.whole()
    with torch.no_grad():
        print(f"valid accuracy {(model(x).argmax(1) == y).float().mean():.1%}")


if __name__ == "__main__":
    main()
