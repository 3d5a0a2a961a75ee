"""A method of your own, between SET and RigL: positions grow at random, the likelier the larger their gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gossamer
from gossamer import Method
from gossamer.experiments import data
from gossamer.topology import Clock, Cosine, DropGrow, Entries, score, scores

STEPS, BATCH = 300, 64


@score("grad", "generator")
def sampled_gradient(entries: Entries) -> Tensor:
    """|g| / e with e ~ Exp(1): its k largest are k draws without replacement, with probability proportional to |g|."""
    grad = entries.require("grad").abs()
    noise = torch.empty(grad.shape).exponential_(generator=entries.require_generator())
    return grad / noise.clamp(min=1e-12).to(grad.device)


def sampled_rigl(density: float, every: int = 20) -> Method:
    """RigL with `sampled_gradient` in place of the largest gradients."""
    return Method(
        name="sampled-rigl",
        density=density,
        init=scores.random,
        rule=DropGrow(drop=scores.magnitude, grow=sampled_gradient, fraction=Cosine(0.3, end=0.75)),
        clock=Clock(every=every, stop=0.75),
        at="replace",
    )


def main() -> None:
    digits = data.load("digits")
    for method in (gossamer.methods.rigl(0.05, every=20), sampled_rigl(0.05)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS)
        first = dict(sparsifier.supports)
        for step in range(STEPS):
            x, y = digits.train.batch(step, BATCH, seed=0)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        moved = sum((sparsifier.supports[name] - support).count for name, support in first.items())
        x, y = digits.valid.whole()
        accuracy = (model(x).argmax(1) == y).float().mean()
        print(
            f"{method.name:14}valid accuracy {accuracy:.1%}, {moved} of {sparsifier.summary().active} positions moved"
        )


if __name__ == "__main__":
    main()
