"""Structures in training: valid, exact counts after every step, with every kind of method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import Fix, Method, Regularize, Reset, foresight, methods
from gossamer.errors import ConfigError
from gossamer.experiments.values import parse, spell
from gossamer.topology import (
    NM,
    Block,
    Channels,
    Complementary,
    DropGrow,
    FanIn,
    Piecewise,
    Structure,
    Unstructured,
    scores,
)

from ..test_bad_input import composed, fails
from .settings import assert_same, batches, make_optimizer, train_step, weights

TWO_D = NM(2, 4, transposable=True)
ONE_D: list[Structure] = [NM(2, 4), NM(2, 4, axis="outputs"), TWO_D, NM(4, 8, transposable=True)]
UNITS: list[Structure] = [Block(3), Block(1, 4, p=1.0), Channels(), Channels("inputs")]
INPUTS = (8, 6, 6)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 8))


def run(method: Method, steps: int = 8) -> tuple[nn.Module, gossamer.Sparsifier]:
    """Train, and look at every support after every step."""
    model = net()
    optimizers = make_optimizer("adamw", model)
    sparsifier = gossamer.sparsify(model, method, optimizers, total_steps=steps)
    for step, batch in enumerate(batches(INPUTS, n=steps), start=1):
        train_step(model, optimizers, batch)
        for name, support in sparsifier.supports.items():
            if method.starts_dense and step <= steps // 2 and support.density == 1:
                continue  # not pruned yet
            assert method.structure.is_valid(support.mask), f"{name} after step {step}"
            assert support.count == method.structure.round(support.count, support.shape)
            assert bool((dict(model.named_parameters())[name].detach()[~support.mask] == 0).all())
    return model, sparsifier


def live(structure: Structure) -> dict[str, Method]:
    fixed: dict[str, Any] = {"allocation": "uniform", "structure": structure}
    return {
        "rewire reset": methods.rewire(0.5, exploit=Reset(3), **fixed),
        "rewire fix": methods.rewire(0.5, exploit=Fix(0.5), **fixed),
        "rewire regularize": methods.rewire(0.5, exploit=Regularize(1e-3), **fixed),
        "ste": methods.ste(0.5, every=2, **fixed),
        "sr-ste": methods.sr_ste(0.5, **fixed),
        "static": methods.static(0.5, **fixed),
        "one-shot": methods.one_shot(0.5, scope="layer", **fixed),
        "synflow": methods.static(0.5, init=foresight.synflow(INPUTS, rounds=3, scope="layer"), **fixed),
    }


@pytest.mark.parametrize("structure", ONE_D + UNITS, ids=lambda structure: structure.name)
def test_live_and_fixed_methods_keep_the_structure(structure: Structure) -> None:
    for method in live(structure).values():
        run(method)


@pytest.mark.parametrize("structure", UNITS, ids=lambda structure: structure.name)
def test_drop_and_grow_moves_whole_units(structure: Structure) -> None:
    """Counts stay as they were, and something moves."""
    fixed: dict[str, Any] = {"fraction": 0.5, "every": 2, "structure": structure}
    for method in (
        methods.rigl(0.4, stop=1.0, **fixed),
        methods.set_(0.4, split_signs=False, **fixed),
        methods.rigl(0.4, init=foresight.synflow(INPUTS, rounds=3), **fixed),
    ):
        first = gossamer.sparsify(net(), method, total_steps=8).supports
        _, sparsifier = run(method)
        assert {n: s.count for n, s in first.items()} == {n: s.count for n, s in sparsifier.supports.items()}
        assert any(not torch.equal(s.mask, first[n].mask) for n, s in sparsifier.supports.items())
    run(methods.gmp(0.3, every=2, scope="layer", structure=structure))


@pytest.mark.parametrize("structure", [*UNITS, FanIn()], ids=lambda structure: structure.name)
def test_states_of_topkast_are_taken_back(structure: Structure) -> None:
    """What is trained there, with what is active, may be more than its count: units at the edges are smaller."""
    method = methods.topkast(0.5, backward=0.75, allocation="uniform", structure=structure)
    model, sparsifier = run(method, steps=4)
    other = net()
    other.load_state_dict(model.state_dict())
    taken = gossamer.sparsify(other, method, total_steps=4)
    taken.load_state_dict(sparsifier.state_dict())
    assert all(torch.equal(support.mask, taken.supports[name].mask) for name, support in sparsifier.supports.items())


@pytest.mark.parametrize("make", [methods.rewire, methods.rigl])
def test_blocks_of_one_train_as_unstructured(make: Any) -> None:
    with_blocks, _ = run(make(0.3, every=2, structure=Block(1)))
    without, _ = run(make(0.3, every=2))
    assert_same(weights(with_blocks), weights(without))


@pytest.mark.parametrize("structure", [NM(2, 4), TWO_D, NM(1, 4, axis="outputs")], ids=lambda structure: structure.name)
def test_with_and_without_the_native_pass(structure: NM, monkeypatch: pytest.MonkeyPatch) -> None:
    method = methods.rewire(structure.n / 4, allocation="uniform", structure=structure)
    native, _ = run(method)
    monkeypatch.setattr("gossamer.kernels.n_m.best_patterns", lambda *args, **options: None)
    reference, _ = run(method)
    assert_same(weights(native), weights(reference))


@pytest.mark.parametrize("change", [{"dtype": torch.bfloat16}, {"memory_format": torch.channels_last}])
def test_the_native_pass_takes_other_types_and_layouts(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in bfloat16, or a convolution in channels-last order, train bit for bit as by the reference."""
    found = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr("gossamer.kernels.n_m.best_patterns", lambda *args, **options: None)
        model = net().to(**change)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gossamer.sparsify(model, methods.rewire(0.5, allocation="uniform", structure=TWO_D), optimizer)
        for x, y in batches(INPUTS, n=4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(model[0].weight.dtype)).float(), y).backward()
            optimizer.step()
        found.append(weights(model))
    assert_same(*found)


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("nm:2,4", NM(2, 4)),
        ("nm:2,4,true", TWO_D),
        ("nm:1,4,axis=outputs", NM(1, 4, axis="outputs")),
        ("block:16", Block(16)),
        ("block:8,1", Block(8, 1)),
        ("block:4,p=2", Block(4, p=2.0)),
        ("channels", Channels()),
        ("channels:inputs,inf", Channels("inputs", float("inf"))),
        ("fanin:true", FanIn(exact=True)),
        ("complementary", Complementary()),
        ("unstructured", Unstructured()),
    ],
)
def test_in_text(text: str, structure: Structure) -> None:
    read = parse(text, Structure | None, "structure")
    assert read == structure
    assert parse(spell(read), Structure | None, "structure") == structure


def test_what_is_refused() -> None:
    by_sign = DropGrow(scores.signed_magnitude, scores.random, 0.3)
    fails("block 4 come and go as a whole; use magnitude", composed, rule=by_sign, structure=Block(4))
    fails("block 4 is a structure of one weight", composed, rule=DropGrow(scores.magnitude, scores.random, 0.3),
          structure=Block(4), scope="global")  # fmt: skip
    fails("2:4 has one density, which cannot change gradually", methods.gmp, 0.5, scope="layer", structure=NM(2, 4))
    model = nn.Sequential(nn.Linear(6, 8))
    for method in (methods.rewire(0.5, structure=NM(2, 4)), methods.one_shot(0.5, scope="layer", structure=NM(2, 4))):
        with pytest.raises(ConfigError, match="4 does not divide its input dimension 6"):
            gossamer.sparsify(model, method, total_steps=8)
    with pytest.raises(ConfigError, match=r"use density=0.5 and allocation='uniform'"):
        gossamer.sparsify(net(), methods.rewire(0.5, structure=NM(2, 4)))


def test_no_structure_holds_while_everything_is_active() -> None:
    falls = Piecewise(((0, 1.0), (4, 0.5)))
    method = replace(methods.rewire(0.5, allocation="uniform", structure=TWO_D), density=falls)
    model = net()
    optimizers = make_optimizer("adamw", model)
    sparsifier = gossamer.sparsify(model, method, optimizers, total_steps=8)
    for step, batch in enumerate(batches(INPUTS, n=8), start=1):
        train_step(model, optimizers, batch)
        for name, support in sparsifier.supports.items():
            assert support.density == falls(step), f"{name} after step {step}"
            assert step < 4 or TWO_D.is_valid(support.mask), f"{name} after step {step}"
