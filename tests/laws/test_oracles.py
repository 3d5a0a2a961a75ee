"""Law 8: named methods equal the literal transcription of their pseudocode, bit for bit, for 50 steps and more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import Fix, Regularize, Reset, methods
from gossamer.rewiring import generator_for
from gossamer.testing import oracles
from gossamer.topology import Cosine, Linear

from .settings import OPTIMIZERS, batches, convnet, loss_of, mlp, train_step

STEPS = 55
EXPLOITS: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "fix": (Fix(0.5), ("fix", 0.5)),
    "reset": (Reset(7), ("reset", 7)),
    "regularize": (Regularize(0.02), ("regularize", 0.02)),
}
KINDS = ["sgd-momentum", "adamw", "adam-amsgrad-foreach", "rmsprop", "adagrad"]


def maker(kind: str) -> Any:
    name, arguments = OPTIMIZERS[kind]
    return lambda params: getattr(torch.optim, name)(params, **arguments)


def data_for(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return batches((20,) if isinstance(model[0], nn.Linear) else (2, 6, 6), STEPS)


def follow(
    model: nn.Module, sparsifier: gossamer.Sparsifier, optimizer: torch.optim.Optimizer, trace: oracles.Trace
) -> None:
    """Train the library's way and compare everything after every step."""
    for name, support in sparsifier.supports.items():
        assert torch.equal(support.mask, trace.masks[name])
    changes = 0
    before = {n: s.mask for n, s in sparsifier.supports.items()}
    for step, (batch, expected) in enumerate(zip(data_for(model), trace.steps, strict=True)):
        loss = train_step(model, [optimizer], batch)
        assert loss == expected.loss, f"step {step}"
        parameters = dict(model.named_parameters())
        for name, support in sparsifier.supports.items():
            assert torch.equal(support.mask, expected.masks[name]), f"support of {name} after step {step}"
            assert torch.equal(parameters[name], expected.weights[name]), f"{name} after step {step}"
            site = sparsifier.sites[name]
            latent = parameters[name] if site.trainable is None else site.trainable
            assert torch.equal(latent, expected.trainable[name]), f"latent of {name} after step {step}"
            changes += not torch.equal(support.mask, before[name])
            before[name] = support.mask
        for name, value in expected.others.items():
            assert torch.equal(parameters[name], value), f"{name} after step {step}"
    assert changes, "a run without a rewiring shows nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exploit", EXPLOITS)
@pytest.mark.parametrize(
    ("every", "scale", "on"),
    [(1, 1.0, None), (4, 1.0, None), (2, 0.3, "gradient"), (2, 0.3, "update"), (1, 0.0, "update")],
)
def test_rewire(kind: str, exploit: str, every: int, scale: float, on: str | None) -> None:
    ours, theirs = EXPLOITS[exploit]
    model = mlp()
    optimizer = maker(kind)(model.parameters())
    initial = mlp()
    method = methods.rewire(0.3, every=every, scale=scale, scale_on=on, exploit=ours)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS)
    trace = oracles.rewire_oracle(
        initial,
        list(sparsifier.supports),
        {n: s.count for n, s in sparsifier.supports.items()},
        maker(kind),
        data_for(model),
        loss_of,
        every=every,
        scale=scale,
        scale_on=on or "gradient",
        exploit=theirs,
        total_steps=STEPS,
    )
    follow(model, sparsifier, optimizer, trace)


@pytest.mark.parametrize("build", [mlp, convnet])
def test_rewire_global(build: Any) -> None:
    model, initial = build(), build()
    optimizer = maker("adamw")(model.parameters())
    method = methods.rewire(0.2, exploit=Regularize(1e-3), scope="global")
    sparsifier = gossamer.sparsify(model, method, optimizer)
    counts = {n: s.count for n, s in sparsifier.supports.items()}
    trace = oracles.rewire_oracle(
        initial, list(counts), counts, maker("adamw"), data_for(model), loss_of,
        exploit=("regularize", 1e-3), total_steps=STEPS, scope="global",
    )  # fmt: skip
    follow(model, sparsifier, optimizer, trace)


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "rprop", "adadelta", "asgd"])
def test_set(kind: str, split: bool, newborn: str) -> None:
    model, initial = mlp(), mlp()
    optimizer = maker(kind)(model.parameters())
    method = methods.set_(0.3, fraction=0.4, every=5, split_signs=split, newborn=newborn)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS, seed=11)

    def draw(name: str, step: int, shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator_for(11, name, f"rewire {step}"))

    trace = oracles.set_oracle(
        initial,
        {n: s.mask for n, s in sparsifier.supports.items()},
        maker(kind),
        data_for(model),
        loss_of,
        every=5,
        stop=STEPS,
        fraction=Linear(0.4).resolve(STEPS),
        draw=draw,
        split_signs=split,
        newborn=newborn,
    )
    follow(model, sparsifier, optimizer, trace)


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize("allocation", ["erk", "uniform"])
@pytest.mark.parametrize("kind", [*KINDS, "rprop", "adadelta", "asgd"])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_rigl(build: Any, kind: str, allocation: str, newborn: str) -> None:
    model, initial = build(), build()
    optimizer = maker(kind)(model.parameters())
    method = methods.rigl(0.3, fraction=0.4, every=5, allocation=allocation, newborn=newborn)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS)
    trace = oracles.rigl_oracle(
        initial,
        {n: s.mask for n, s in sparsifier.supports.items()},
        maker(kind),
        data_for(model),
        loss_of,
        every=5,
        stop=0.75 * STEPS,
        fraction=Cosine(0.4, end=0.75).resolve(STEPS),
        newborn=newborn,
    )
    follow(model, sparsifier, optimizer, trace)


@pytest.mark.parametrize("kind", KINDS)
def test_static(kind: str) -> None:
    model, initial = convnet(), convnet()
    optimizer = maker(kind)(model.parameters())
    sparsifier = gossamer.sparsify(model, methods.static(0.2), optimizer)
    masks = {n: s.mask for n, s in sparsifier.supports.items()}
    trace = oracles.static_oracle(initial, masks, maker(kind), data_for(model), loss_of)
    for batch, expected in zip(data_for(model), trace.steps, strict=True):
        assert train_step(model, [optimizer], batch) == expected.loss
        for name, value in expected.weights.items():
            assert torch.equal(dict(model.named_parameters())[name], value)
