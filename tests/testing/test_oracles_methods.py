"""Hand traces of the oracles of the dynamic, straight-through and pruning methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.testing import oracles
from gossamer.testing.oracles._shares import share
from gossamer.testing.oracles.pruning import cubic
from gossamer.topology import spread

SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
Values = dict[str, Any]


class Prescribed(nn.Module):
    """Weights whose gradients are the batch itself."""

    def __init__(self, **weights: Any) -> None:
        super().__init__()
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return sum((getattr(self, name) * g).sum() for name, g in batch.items())  # type: ignore[return-value]


def call(model: Callable[..., Tensor], batch: Any) -> Tensor:
    return model(batch)


def gradients(*steps: Values) -> list[dict[str, Tensor]]:
    return [{name: torch.tensor(g, dtype=torch.float64) for name, g in step.items()} for step in steps]


def bits(masks: dict[str, Tensor], name: str = "w") -> list[int]:
    return masks[name].int().flatten().tolist()


def mask(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def prefer(*order: float) -> Callable[..., Tensor]:
    return lambda *_: torch.tensor(order)


def heads(*up: int) -> Callable[..., Tensor]:
    return lambda *_: mask(*up)


# -- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "room", "total", "expected"),
    [
        ((60, 20), (999, 999), 20, [15, 5]),  # DSR
        ((0.75, 0.25), (999, 999), 40, [30, 10]),  # SNFS
        ((0.75, 0.25), (20, 999), 40, [20, 20]),
        ((1, 1, 1), (9, 9, 9), 4, [2, 1, 1]),
        ((1, 0, 0), (3, 4, 8), 9, [3, 2, 4]),
    ],
)
def test_share_golden(parts: Any, room: Any, total: int, expected: list[int]) -> None:
    named = share(dict(enumerate(parts)), dict(enumerate(room)), total)  # type: ignore[arg-type]
    assert [named[i] for i in range(len(parts))] == expected  # type: ignore[index]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=6), st.integers(0, 1), st.data())
def test_share_agrees_with_the_library(rows: list[tuple[int, int]], least: int, more: Any) -> None:
    parts, room = ([row[i] for row in rows] for i in (0, 1))
    total = more.draw(st.integers(least * len(rows), sum(room)))
    named = share(dict(enumerate(parts)), dict(enumerate(room)), total, least)  # type: ignore[arg-type]
    assert [named[i] for i in range(len(rows))] == spread(parts, room, total, least)  # type: ignore[index]


# -- live ----------------------------------------------------------------------------------------------------------


def test_ste_updates_every_weight_by_the_dense_gradient() -> None:
    steps = gradients({"w": [0.5, 2.0, -3.0]})
    trace = oracles.ste_oracle(Prescribed(w=[1.0, 0.5, 0.4]), ["w"], {"w": 2}, SGD, steps, call)
    assert trace.steps[0].loss == 1.0 * 0.5 + 0.5 * 2.0
    assert trace.steps[0].trainable["w"].tolist() == pytest.approx([0.95, 0.3, 0.7])
    assert bits(trace.masks) == [1, 1, 0]
    assert bits(trace.steps[0].masks) == [1, 0, 1]


def test_sr_ste_keeps_two_of_four_and_decays_the_rest_through_the_learning_rate() -> None:
    model = Prescribed(w=[[3.0, -1.0, 0.5, 2.0, 1.0, 1.0, 1.0, 1.0]])
    steps = gradients({"w": [[0.0] * 8]})
    trace = oracles.sr_ste_oracle(model, ["w"], (2, 4), SGD, steps, call, decay=0.5)
    assert bits(trace.masks) == [1, 0, 0, 1, 1, 1, 0, 0]
    assert trace.steps[0].trainable["w"][0].tolist() == pytest.approx([3, -0.95, 0.475, 2, 1, 1, 0.95, 0.95])


def test_sr_ste_groups_inputs_at_one_kernel_position() -> None:
    w = torch.zeros(1, 4, 1, 2)
    w[0, :, 0, 0] = torch.tensor([4.0, 3, 2, 1])
    w[0, :, 0, 1] = torch.tensor([1.0, 2, 3, 4])
    model, steps = Prescribed(w=w.tolist()), gradients({"w": torch.zeros(1, 4, 1, 2).tolist()})
    trace = oracles.sr_ste_oracle(model, ["w"], (1, 4), SGD, steps, call, decay=0.0)
    assert trace.masks["w"][0, :, 0].int().tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]


def test_topkast_trains_the_reserve_harder_decayed_and_nothing_beyond() -> None:
    """D = 1/4, D + M = 1/2 of [4, 3, 2, 1], decay .1, lr .1: 4 - .1 (1 + .4), 3 - .1 (1 + .1 / .25 * 3)."""
    model, steps = Prescribed(w=[4.0, 3.0, 2.0, 1.0]), gradients({"w": [1.0] * 4})
    knobs: Values = {"density": 0.25, "decay": 0.1, "stop": 9}
    make = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    trace = oracles.topkast_oracle(model, ["w"], {"w": 1}, lambda t: {"w": 2}, make, steps, call, **knobs)
    assert trace.steps[0].trainable["w"].tolist() == pytest.approx([3.86, 2.78, 2, 1])
    assert trace.steps[0].weights["w"].tolist() == pytest.approx([3.86, 0, 0, 0])


# -- drop and grow -------------------------------------------------------------------------------------------------


def test_set_draws_first_values_for_newborns_only() -> None:
    model, steps = Prescribed(w=[1.0, 0.1, 0.0, 0.0]), gradients({"w": [0.0] * 4})
    knobs: Values = {"every": 1, "stop": 9, "fraction": lambda t: 0.5, "draw": prefer(0, 0, 0.2, 0.9)}
    values: Values = {"split_signs": False, "newborn_value": prefer(7, 7, 7, 0.25)}
    trace = oracles.set_oracle(model, {"w": mask(1, 1, 0, 0)}, SGD, steps, call, **knobs, **values)
    assert trace.steps[0].weights["w"].tolist() == [1, 0, 0, 0.25]


def test_grace_protects_a_newborn_until_its_age() -> None:
    """The newborn of step 1 is the smallest at step 2; without grace it goes, with it the other one does."""
    for grace, expected in ((0, [1, 1, 0]), (2, [0, 1, 1])):
        model, steps = Prescribed(w=[1.0, 0.1, 0.0]), gradients({"w": [0.0] * 3}, {"w": [0.0] * 3})
        draws = {1: torch.tensor([0, 0, 0.9]), 2: torch.tensor([0.0, 0.9, 0.5])}
        knobs: Values = {"every": 1, "stop": 9, "fraction": lambda t: 0.5, "draw": lambda n, t, s, d=draws: d[t]}
        trace = oracles.set_oracle(
            model, {"w": mask(1, 1, 0)}, SGD, steps, call, split_signs=False, grace=grace, **knobs
        )
        assert bits(trace.steps[0].masks) == [1, 0, 1]
        assert bits(trace.steps[1].masks) == expected


def test_rigl_itop_drops_by_the_updated_weight() -> None:
    """Before the update .3 is the smallest, after it .5 - .1 * 4 is."""
    model, steps = Prescribed(w=[0.5, 0.3, 0.0, 0.0]), gradients({"w": [4.0, 0.0, -5.0, 1.0]})
    knobs: Values = {"every": 1, "stop": 9, "fraction": lambda t: 0.5}
    trace = oracles.rigl_itop_oracle(model, {"w": mask(1, 1, 0, 0)}, SGD, steps, call, **knobs)
    assert trace.steps[0].weights["w"].tolist() == [0, 0.3, 0, 0]
    assert bits(trace.steps[0].masks) == [0, 1, 1, 0]


def test_global_rigl_keeps_an_entry_of_every_weight() -> None:
    model = Prescribed(a=[5.0, 4.0], b=[0.1, 0.0])
    steps = gradients({"a": [0.0, 0.0], "b": [0.0, 0.0]}, {"a": [0.0, 0.0], "b": [0.0, 3.0]})
    knobs: Values = {"every": 1, "stop": 9, "fraction": lambda t: 0.34, "scope": "global"}
    masks = {"a": mask(1, 1), "b": mask(1, 0)}
    trace = oracles.rigl_oracle(model, masks, SGD, steps, call, **knobs)
    assert bits(trace.steps[1].masks, "a") == [1, 0]
    assert bits(trace.steps[1].masks, "b") == [1, 1]


DEEPR: Values = {"l1": 0.5, "temperature": 0.0, "stop": 9, "coin": heads(0, 0, 0, 0), "noise": prefer(0, 0, 0, 0)}


def test_deepr_replaces_what_crosses_zero() -> None:
    """lr .1, alpha .5: .5 - .6 - .05 crossed; -.2 - .1 + .05 stays; positions that are 0 at first have sign -1."""
    model, steps = Prescribed(w=[0.5, -0.2, 0.0, 0.0]), gradients({"w": [6.0, 1.0, 0, 0]}, {"w": [0, 0, 0, -1.0]})
    masks, knobs = {"w": mask(1, 1, 0, 0)}, {**DEEPR, "draw": prefer(0.9, 0.9, 0.1, 0.5)}
    trace = oracles.deepr_oracle(model, masks, SGD, steps, call, **knobs)
    assert trace.steps[0].weights["w"].tolist() == pytest.approx([0, -0.25, 0, 0])
    assert bits(trace.steps[0].masks) == [0, 1, 0, 1]
    # The newborn moves to 0 + .1 + .05 > 0, against its sign, and is replaced in turn.
    assert bits(trace.steps[1].masks) == [1, 1, 0, 0]


def test_deepr_at_full_density_has_nothing_else_to_grow() -> None:
    model, steps = Prescribed(w=[0.5, -0.2]), gradients({"w": [6.0, 1.0]})
    knobs: Values = {**DEEPR, "coin": heads(0, 0), "draw": prefer(0.1, 0.2)}
    trace = oracles.deepr_oracle(model, {"w": mask(1, 1)}, SGD, steps, call, **knobs)
    assert trace.steps[0].weights["w"].tolist() == pytest.approx([-0.15, -0.25])


def test_deepr_noise_has_the_stated_size() -> None:
    model, steps = Prescribed(w=[0.5, 0.5]), gradients({"w": [0.0, 0.0]})
    knobs: Values = {**DEEPR, "l1": 0.0, "temperature": 0.2, "coin": heads(0, 0), "draw": prefer(0, 0)}
    trace = oracles.deepr_oracle(model, {"w": mask(1, 1)}, SGD, steps, call, **{**knobs, "noise": prefer(1, -2)})
    assert trace.steps[0].weights["w"].tolist() == pytest.approx([0.5 + 0.2, 0.5 - 0.4])  # sqrt(2 * .1 * .2) = .2


def test_dsr_golden_reallocation() -> None:
    """Dropped (5, 15), left (60, 20): growth (15, 5); with N = 16 the threshold halves.

    Then one weight falls to 7e-4, which is below the first threshold and above the second.
    """
    a, b = [1e-4] * 5 + [1.0] * 60 + [0.0] * 135, [1e-4] * 15 + [1.0] * 20 + [0.0] * 165
    masks = {"a": torch.tensor(a) > 0, "b": torch.tensor(b) > 0}
    still, moved = [0.0] * 200, [0.0] * 10 + [1 - 7e-4] + [0.0] * 189
    steps = gradients({"a": still, "b": still}, {"a": moved, "b": still})
    knobs: Values = {"target": 16, "threshold": 1e-3, "tolerance": 0.1, "every": 1, "stop": 9}
    make, draw = partial(torch.optim.SGD, lr=1.0), prefer(*(i / 200 for i in range(200)))
    trace = oracles.dsr_oracle(Prescribed(a=a, b=b), masks, make, steps, call, draw=draw, **knobs)
    first, second = (step.masks for step in trace.steps)
    assert (int(first["a"].sum()), int(first["b"].sum())) == (75, 25)
    assert not first["a"][:5].any()
    assert not first["b"][:15].any()
    assert second["a"][10]
    assert int(second["a"].sum() + second["b"].sum()) == 100


def test_dsr_without_reallocation_keeps_the_counts_of_layers() -> None:
    masks = {"a": mask(1, 1, 1, 0), "b": mask(1, 0, 0, 0)}
    model, steps = Prescribed(a=[1.0, 1e-4, 1e-4, 0], b=[1e-4, 0, 0, 0]), gradients({"a": [0.0] * 4, "b": [0.0] * 4})
    knobs: Values = {"target": 2, "threshold": 1e-3, "tolerance": 0.1, "every": 1, "stop": 9, "reallocate": False}
    trace = oracles.dsr_oracle(model, masks, SGD, steps, call, draw=prefer(0, 0.1, 0.2, 0.3), **knobs)
    assert bits(trace.steps[0].masks, "b") == [1, 0, 0, 0]  # the last one stays
    # Two are dropped, one position is free: it and, as there is no room elsewhere, the first of the dropped.
    assert bits(trace.steps[0].masks, "a") == [1, 1, 0, 1]


def test_snfs_moves_parameters_to_the_layer_with_more_momentum() -> None:
    """Means of |M| 3 and 1, two dropped: shares 1.5 and .5, the earlier weight takes the tie."""
    model = Prescribed(a=[1.0, 0.9, 0, 0], b=[1.0, 0.9, 0, 0])
    steps = gradients({"a": [1.0, 5.0, 2.0, -3.0], "b": [1.0, -1.0, 9.0, 9.0]}, {"a": [0.0] * 4, "b": [0.0] * 4})
    masks = {"a": mask(1, 1, 0, 0), "b": mask(1, 1, 0, 0)}
    knobs: Values = {"every": 1, "stop": 2, "fraction": lambda t: 0.5, "draw": prefer(0, 0, 0, 0)}
    trace = oracles.snfs_oracle(model, masks, MOMENTUM, steps, call, **knobs)
    assert bits(trace.steps[0].masks, "a") == [1, 1, 0, 1]  # the dropped .4 has the largest |M| and grows again
    assert bits(trace.steps[0].masks, "b") == [0, 1, 0, 0]  # .9 + .1 = 1 > .9
    assert trace.steps[0].weights["a"].tolist() == pytest.approx([0.9, 0.4, 0, 0])
    # The newborn starts at 0 with its momentum: 0 - .1 * .9 * (-3).
    assert trace.steps[1].weights["a"].tolist() == pytest.approx([0.9 - 0.09, 0.4 - 0.45, 0, 0.27])


# -- pruning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "density"), [(0, 1), (25, 0.47969), (50, 0.2125), (75, 0.11406), (100, 0.1), (150, 0.1)])
def test_cubic_golden(t: int, density: float) -> None:
    assert cubic(1.0, 0.1, 0, 100, t) == pytest.approx(density, abs=5e-6)


@pytest.mark.parametrize(("scope", "a", "b"), [("layer", [1, 1, 0, 0], [0, 1]), ("global", [1, 1, 0, 0], [0, 1])])
def test_one_shot_prunes_once_and_keeps_a_weight_alive(scope: Any, a: list[int], b: list[int]) -> None:
    model, still = Prescribed(a=[4.0, -3.0, 2.0, 1.0], b=[0.1, 0.2]), {"a": [0.0] * 4, "b": [0.0] * 2}
    knobs: Values = {"density": 0.5, "at": 2, "scope": scope}
    trace = oracles.one_shot_oracle(model, {"a": 4, "b": 2}, SGD, gradients(still, still, still), call, **knobs)
    assert [sum(bits(s.masks, "a")) for s in trace.steps] == [4, 2, 2]
    assert (bits(trace.steps[-1].masks, "a"), bits(trace.steps[-1].masks, "b")) == (a, b)


def test_gmp_is_nested_and_ends_exactly() -> None:
    model, still = Prescribed(w=[float(i) for i in range(20)]), {"w": [0.0] * 20}
    knobs: Values = {"density": 0.1, "every": 3, "start": 0, "stop": 8}
    trace = oracles.gmp_oracle(model, {"w": 20}, SGD, gradients(*[still] * 10), call, **knobs)
    counts = [sum(bits(step.masks)) for step in trace.steps]
    assert counts == [20, 20, 6, 6, 6, 2, 2, 2, 2, 2]  # after 3: 20 (.1 + .9 (5/8)^3) = 6.39; after 6: 2.28
    assert trace.steps[-1].weights["w"].nonzero().flatten().tolist() == [18, 19]


def test_granet_prunes_over_all_layers_then_regenerates_in_each() -> None:
    """Six of seven stay, b loses its .1; then half of each goes by |w| and as many come by |g|."""
    model = Prescribed(a=[4.0, 3.0, 2.0, 1.0, 0.0], b=[0.1, 0.2, 0.3, 0.0, 0.0])
    masks = {"a": mask(1, 1, 1, 1, 0), "b": mask(1, 1, 1, 0, 0)}
    still = {"a": [0.0, 0, 0, 0.01, 5.0], "b": [0.5, 0.0, 0.0, 0.0, 0.1]}
    knobs: Values = {"density": 0.6, "initial": 0.7, "fraction": lambda t: 0.5, "every": 9, "prune_until": 1, "stop": 9}
    make = partial(torch.optim.SGD, lr=1e-9)
    trace = oracles.granet_oracle(model, masks, make, gradients(still), call, **knobs)
    assert bits(trace.steps[0].masks, "a") == [1, 1, 0, 1, 1]
    assert bits(trace.steps[0].masks, "b") == [1, 0, 1, 0, 0]  # the pruned one has the largest gradient
    assert trace.steps[0].weights["b"].tolist() == pytest.approx([0.1, 0, 0.3, 0, 0], abs=1e-8)


# -- constant fan-in -----------------------------------------------------------------------------------------------


def test_srigl_ablates_and_keeps_the_fan_in_constant() -> None:
    """Three neurons of four inputs, two active each: n = K = 6, k = 2. Salient by |w| are 5, 4, 3, 2, by |g| 9 and 8.

    Neurons 0 and 1 have two and four salient entries, neuron 2 has none: with 6 / 2 = 3 inputs each, neuron 0 takes
    its best remaining gradient, neuron 1 (which holds two) its best one.
    """
    w = [[5.0, 4.0, 0, 0], [3.0, 2.0, 0, 0], [1.0, 0.5, 0, 0]]
    active = torch.tensor(w) != 0
    g = [[0.0, 0, 0.1, 0.2], [0.0, 0, 9.0, 8.0], [0.0, 0, 0.3, 0.3]]
    steps = gradients({"w": torch.zeros(3, 4).tolist()}, {"w": g})
    knobs: Values = {"every": 1, "stop": 9, "fraction": lambda t: 0.34, "min_salient": 0.5}
    trace = oracles.srigl_oracle(Prescribed(w=w), {"w": active}, {"w": 6}, SGD, steps, call, **knobs)
    assert trace.steps[1].masks["w"].int().tolist() == [[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert trace.steps[1].weights["w"].tolist() == [[5, 4, 0, 0], [3, 2, 0, 0], [0, 0, 0, 0]]
