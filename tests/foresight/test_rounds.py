"""Rounds: masks equal those of the procedures written out, supports are nested or revive, counts are exact."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer import foresight
from gossamer.errors import ConfigError
from gossamer.foresight import Saliency, search
from gossamer.topology import NM, FanIn, resolve_allocation

from . import oracles
from .measure import counts, masks, names, same, scores, weights
from .nets import NETS, Residual, images, mlp, seeded, vectors

EVERY = pytest.mark.parametrize("net", NETS)
ROUNDS = pytest.mark.parametrize("rounds", [1, 2, 7])
DENSITY = 0.125
pytestmark = pytest.mark.filterwarnings("ignore:.*(without any|every layer some) weight:UserWarning")


def whole(model: nn.Module) -> float:
    """A density that makes a whole number of entries: those of rounds follow from it."""
    total = sum(w.numel() for w in weights(model).values())
    return round(DENSITY * total) / total


# -- against the procedures written out --------------------------------------------------------------------------------


@EVERY
@ROUNDS
@pytest.mark.parametrize("revive", [False, True], ids=["iter-snip", "force"])
def test_sensitivity_rounds_equal_the_procedure(net: str, rounds: int, revive: bool) -> None:
    make, data, _ = NETS[net]
    model, maker = seeded(make), foresight.force if revive else foresight.iter_snip
    density = whole(model)
    found = masks(model, maker(data, rounds, allow_collapse=True), density)
    assert same(found, oracles.sensitivity_rounds(model, names(model), data, density, rounds, revive=revive))


@EVERY
@pytest.mark.parametrize("batches", [1, 3])
def test_grasp_equals_the_procedure(net: str, batches: int) -> None:
    make, data, _ = NETS[net]
    model = seeded(make)
    found = masks(model, foresight.grasp(data, batches, temperature=3.0, allow_collapse=True), DENSITY)
    assert same(found, oracles.grasp(model, names(model), data[:batches], DENSITY, 3.0))


@ROUNDS
@pytest.mark.filterwarnings("ignore:synflow at density")  # one round may cut the network
@pytest.mark.parametrize("net", ["residual", "mlp"])
def test_synflow_equals_the_procedure(net: str, rounds: int) -> None:
    make, _, ones = NETS[net]
    model = seeded(make)
    found = masks(model, foresight.synflow(ones.shape, rounds, allow_collapse=True), whole(model))
    assert same(found, oracles.synflow(model, names(model), ones.shape, whole(model), rounds))


@EVERY
def test_magnitude_keeps_the_largest(net: str) -> None:
    model = seeded(NETS[net][0])
    w = {name: value.detach() for name, value in weights(model).items()}
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in w.items()}
    total = sum(value.numel() for value in w.values())
    wanted = oracles.keep({n: v.abs() for n, v in w.items()}, everything, round(DENSITY * total))
    assert same(masks(model, foresight.magnitude(allow_collapse=True), DENSITY), wanted)


# -- round by round ----------------------------------------------------------------------------------------------------


@EVERY
def test_the_first_round_of_force_is_snip(net: str) -> None:
    make, data, _ = NETS[net]
    model = seeded(make)
    assert same(scores(model, foresight.force(data)), scores(model, foresight.snip(data)))
    one = masks(model, foresight.force(data, 1, allow_collapse=True), DENSITY)
    assert same(one, masks(model, foresight.snip(data, allow_collapse=True), DENSITY))
    assert same(one, masks(model, foresight.iter_snip(data, 1, allow_collapse=True), DENSITY))


@pytest.mark.parametrize(
    ("saliency", "some"),
    [
        (foresight.force(images(), 8, allow_collapse=True), True),
        (foresight.iter_snip(images(), 8, allow_collapse=True), False),
        (foresight.synflow((3, 8, 8), 8), False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_only_force_takes_back_what_a_round_left_out(
    saliency: Saliency, some: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, after, agreed = seeded(Residual), [], search._agreed
    monkeypatch.setattr(search, "_agreed", lambda found: after.append(found) or agreed(found))
    masks(model, saliency, 0.05)
    kept, total = [sum(counts(found).values()) for found in after], sum(mask.numel() for mask in after[0].values())
    assert kept == [round((kept[-1] / total) ** (t / 8) * total) for t in range(1, 9)]
    back = sum(int((new[n] & ~old[n]).sum()) for old, new in itertools.pairwise(after) for n in old)
    assert back > 10 if some else back == 0


def test_each_round_takes_new_examples_and_the_loader_is_iterated_again() -> None:
    seen: list[int] = []

    def forward(model: Any, batch: Any) -> Any:
        seen.append(batch[2])
        return model(batch[0]), batch[1]

    data = [(x, y, number) for number, (x, y) in enumerate(vectors(6, 3))]
    masks(NETS["mlp"][0]().double(), foresight.iter_snip(data, 2, 2, forward=forward), 0.5)
    assert seen == [0, 1, 2, 0]


def test_a_generator_of_batches_loses_none() -> None:
    data = vectors(6, 3)
    model = seeded(NETS["mlp"][0])
    assert same(masks(model, foresight.snip(iter(data), 3), 0.3), masks(model, foresight.snip(data, 3), 0.3))


@pytest.mark.parametrize(
    ("schedule", "kept"), [("exponential", [1 / 2, 1 / 4, 1 / 8]), ("linear", [17 / 24, 10 / 24, 1 / 8])]
)
def test_densities_of_rounds(schedule: Any, kept: list[float]) -> None:
    saliency = Saliency(foresight.SynapticFlow(), rounds=3, schedule=schedule)
    found = [saliency.kept(number, {"": 30}, {"": 240})[""] / 240 for number in (1, 2, 3)]
    assert found == pytest.approx(kept, abs=0.5 / 240)


# -- exact counts, whatever the scores ---------------------------------------------------------------------------------

TIED = {
    "synflow": lambda data: Saliency(foresight.SynapticFlow(), ones=foresight.Ones((5,))),
    "magnitude": lambda data: foresight.magnitude((5,)),
    "snip": foresight.snip,
    "grasp": foresight.grasp,
}


def tied(objective: str, widths: list[int], seed: int) -> nn.Module:
    """Weights of -1, 0 and 1; of -1 and 1 for SynFlow, so that there is a flow at first."""
    model, g = seeded(lambda: mlp(5, *widths, 2, act=nn.ReLU)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            drawn = torch.randint(0, 2, p.shape, generator=g) * 2.0 - 1
            p.copy_(drawn if objective == "synflow" else drawn * torch.randint(0, 2, p.shape, generator=g))
    return model


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(TIED)),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(0, 9),
    st.floats(0.02, 1),
    st.integers(1, 4),
    st.sampled_from(["exponential", "linear"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["global", "layer"]),
    st.sampled_from(["scores", "random"]),
)
def test_counts_are_exact_under_ties(
    objective: str,
    widths: list[int],
    seed: int,
    density: float,
    rounds: int,
    schedule: Any,
    revive: bool,
    invert: bool,
    scope: Any,
    positions: Any,
) -> None:
    model = tied(objective, widths, seed)
    base = TIED[objective](vectors(5, 2))
    saliency = Saliency(
        base.objective,
        rounds,
        1,
        schedule,
        revive,
        scope,
        positions,
        invert,
        allow_collapse=True,
        examples=base.examples,
        ones=base.ones,
    )
    shapes = {name: w.shape for name, w in weights(model).items()}
    total = round(density * sum(shape.numel() for shape in shapes.values()))
    assume(scope == "global" or total >= len(shapes))
    allocated = resolve_allocation("uniform")(shapes, density) if scope == "layer" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = counts(masks(model, saliency, density, allocation="uniform", seed=seed))
        except ConfigError as error:
            assume("all scores are zero in round 1 of" not in str(error))  # on every path there is a zero
            raise
    assert sum(found.values()) == total
    assert allocated is None or found == allocated


@pytest.mark.parametrize("structure", [FanIn(), FanIn(exact=True), NM(1, 4)])
@pytest.mark.parametrize("positions", ["scores", "random"])
def test_structures_hold_within_layers(structure: Any, positions: Any) -> None:
    model, data = seeded(lambda: mlp(8, 12, 16, 4)), vectors(8, 4)
    wanted = {name: structure.round(w.numel() // 4, w.shape) for name, w in weights(model).items()}
    saliency = foresight.iter_snip(data, 3, scope="layer", positions=positions)
    task = search.Task(model, weights(model), sum(wanted.values()), wanted, structure)
    found = search.first_masks(saliency, task)
    assert counts(found) == wanted
    assert all(structure.is_valid(mask) for mask in found.values())


# -- positions and inversion -------------------------------------------------------------------------------------------


def test_random_positions_keep_counts_only() -> None:
    model = seeded(Residual)
    scored = masks(model, foresight.synflow((3, 8, 8), 10), DENSITY)
    drawn = masks(model, foresight.synflow((3, 8, 8), 10, "random"), DENSITY, seed=3)
    assert counts(scored) == counts(drawn)
    assert not any(torch.equal(scored[name], drawn[name]) for name in scored)
    assert same(drawn, masks(model, foresight.synflow((3, 8, 8), 10, "random"), DENSITY, seed=3))
    assert not same(drawn, masks(model, foresight.synflow((3, 8, 8), 10, "random"), DENSITY, seed=4))


def test_random_positions_are_another_draw_than_the_random_first_support() -> None:
    model, even = seeded(lambda: mlp(20, 20, 20)), {"*": DENSITY}
    drawn = masks(model, foresight.magnitude(scope="layer", positions="random"), DENSITY, allocation=even)
    usual = masks(model, foresight.random(), DENSITY, allocation=even)
    assert counts(drawn) == counts(usual)
    assert not any(torch.equal(drawn[name], usual[name]) for name in drawn)


@EVERY
def test_inversion_keeps_exactly_the_rest(net: str) -> None:
    """Of distinct scores the lowest half is what the highest half is not."""
    make, data, _ = NETS[net]
    model = seeded(make)
    high = masks(model, foresight.grasp(data, allow_collapse=True), 0.5)
    low = masks(model, replace(foresight.grasp(data, allow_collapse=True), invert=True), 0.5)
    assert sum(int((high[name] & low[name]).sum()) for name in high) <= 1  # one, of an odd number
