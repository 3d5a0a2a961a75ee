"""Law 8: named methods equal the literal transcription of their pseudocode, bit for bit, for 50 steps and more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gossamer
from gossamer import Fix, Regularize, Reset, methods
from gossamer.testing import oracles
from gossamer.topology import Cosine, Linear

from .following import SEED, STEPS, beside, cosine, data_for, draws, follow, maker
from .settings import convnet, loss_of, mlp, train_step

EXPLOITS: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "fix": (Fix(0.5), ("fix", 0.5)),
    "reset": (Reset(7), ("reset", 7)),
    "regularize": (Regularize(0.02), ("regularize", 0.02)),
}
KINDS = ["sgd-momentum", "adamw", "adam-amsgrad-foreach", "rmsprop", "adagrad"]


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


@pytest.mark.parametrize("density", [0.2, 0.02])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_rewire_global(build: Any, density: float) -> None:
    run = beside(build, "adamw", methods.rewire(density, exploit=Regularize(1e-3), scope="global"))
    exploit = ("regularize", 1e-3)
    run.compare(oracles.rewire_oracle, list(run.counts), run.counts, exploit=exploit, total_steps=STEPS, scope="global")


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "rprop", "adadelta", "asgd"])
def test_set(kind: str, split: bool, newborn: str) -> None:
    model, initial = mlp(), mlp()
    optimizer = maker(kind)(model.parameters())
    method = methods.set_(0.3, fraction=0.4, every=5, split_signs=split, newborn=newborn)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS, seed=SEED)

    trace = oracles.set_oracle(
        initial,
        {n: s.mask for n, s in sparsifier.supports.items()},
        maker(kind),
        data_for(model),
        loss_of,
        every=5,
        stop=STEPS,
        fraction=Linear(0.4).resolve(STEPS),
        draw=draws("rewire"),
        split_signs=split,
        newborn=newborn,
    )
    follow(model, sparsifier, optimizer, trace)


@pytest.mark.parametrize(("std", "grace", "split"), [(0.1, 0, True), (0.0, 8, True), (0.1, 12, False)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_set_with_drawn_values_or_grace(build: Any, kind: str, std: float, grace: int, split: bool) -> None:
    method = methods.set_(0.3, fraction=0.6, every=5, split_signs=split, newborn_std=std, grace=grace)
    run = beside(build, kind, method)
    normal = draws("newborn", torch.randn)
    run.compare(
        oracles.set_oracle, run.masks, every=5, stop=STEPS, fraction=lambda t: 0.6 * (1 - t / STEPS),
        draw=draws("rewire"), split_signs=split, grace=grace,
        newborn_value=(lambda *of: std * normal(*of)) if std else None,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_set_itop(build: Any, kind: str) -> None:
    run = beside(build, kind, methods.set_itop(0.2, every=7))
    arguments = {"every": 7, "stop": STEPS, "fraction": cosine(0.5, 0.005, STEPS), "draw": draws("rewire")}
    run.compare(oracles.set_oracle, run.masks, split_signs=False, **arguments)


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


@pytest.mark.parametrize(
    ("density", "fraction", "grace"), [(0.3, 0.4, 0), (0.02, 0.5, 0), (0.3, 0.8, 12), (0.01, 0.9, 0)]
)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_rigl_scopes_and_grace(build: Any, kind: str, scope: str, density: float, fraction: float, grace: int) -> None:
    run = beside(build, kind, methods.rigl(density, fraction=fraction, every=5, scope=scope, grace=grace))
    stop = round(0.75 * STEPS)
    arguments = {"every": 5, "stop": stop, "fraction": cosine(fraction, 0.0, stop)}
    run.compare(oracles.rigl_oracle, run.masks, scope=scope, grace=grace, **arguments)


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_rigl_itop(build: Any, kind: str, newborn: str) -> None:
    run = beside(build, kind, methods.rigl_itop(0.2, every=7, newborn=newborn))
    fraction = cosine(0.5, 0.005, STEPS)
    run.compare(oracles.rigl_itop_oracle, run.masks, every=7, stop=STEPS, fraction=fraction, newborn=newborn)


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
