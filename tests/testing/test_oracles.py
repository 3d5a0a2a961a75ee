"""Hand traces and invariants of the literal oracles: what the library is compared with must itself be right."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.testing.oracles import Step, Trace, pick, rewire_oracle, rigl_oracle, set_oracle, static_oracle

SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
ADAMW = partial(torch.optim.AdamW, lr=0.02)


class Prescribed(nn.Module):
    """One weight vector whose gradient is the batch itself."""

    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, g: Tensor) -> Tensor:
        return (self.w * g).sum() + self.bias.sum()


def call(model: Callable[..., Tensor], batch: Tensor) -> Tensor:
    return model(batch)


def cross_entropy(model: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def gradients(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


def mask(*bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.bool)


WEIGHTS = ["0.weight", "2.weight"]
COUNTS = {"0.weight": 30, "2.weight": 12}


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def data(steps: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(16, 8, generator=generator, dtype=torch.float64),
            torch.randint(0, 4, (16,), generator=generator),
        )
        for _ in range(steps)
    ]


def rewire(steps: int = 12, make: Any = MOMENTUM, counts: dict[str, int] | None = None, **knobs: Any) -> Trace:
    knobs = {"total_steps": steps, **knobs}
    return rewire_oracle(mlp(), WEIGHTS, counts or COUNTS, make, data(steps), cross_entropy, **knobs)


def random_masks(seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (12, 8), "2.weight": (4, 12)}
    return {
        name: pick(torch.rand(shape, generator=generator), torch.zeros(shape, dtype=torch.bool), COUNTS[name])
        for name, shape in shapes.items()
    }


def draw(name: str, step: int, shape: torch.Size) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(step * 10 + int(name[0])), dtype=torch.float64)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def changes(trace: Trace) -> list[int]:
    """Completed steps after which the supports differ from before."""
    before = [trace.masks, *(s.masks for s in trace.steps)]
    return [t + 1 for t, step in enumerate(trace.steps) if not same(step.masks, before[t])]


# -- selection -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=12), st.data())
def test_pick_takes_exactly_the_first_of_the_total_order(rows: list[tuple[int, bool, bool]], more: Any) -> None:
    score, active, among = (torch.tensor(column) for column in zip(*rows, strict=True))
    count = more.draw(st.integers(0, int(among.sum())))
    chosen = pick(score.double(), active, count, among)
    assert int(chosen.sum()) == count
    assert not (chosen & ~among).any()
    better = [(-int(score[i]), not active[i], i) for i in chosen.nonzero().flatten()]
    worse = [(-int(score[i]), not active[i], i) for i in (among & ~chosen).nonzero().flatten()]
    assert not better or not worse or max(better) < min(worse)


# -- Algorithm 1 ---------------------------------------------------------------------------------------------------


def one_step(**knobs: Any) -> Step:
    """The hand trace: w = [1, .5, .4], d = 2/3, gamma = .1, g = [.5, 2, -3]."""
    batches = gradients([0.5, 2.0, -3.0])
    model = Prescribed([1.0, 0.5, 0.4])
    trace = rewire_oracle(model, ["w"], {"w": 2}, SGD, batches, call, total_steps=1, **knobs)
    assert trace.masks["w"].tolist() == [True, True, False]
    assert trace.steps[0].loss == 1.0 * 0.5 + 0.5 * 2.0  # n never enters the loss
    return trace.steps[0]


@pytest.mark.parametrize(
    ("knobs", "w", "support"),
    [
        ({}, [0.95, 0.3, 0.7], [1, 0, 1]),
        ({"exploit": ("reset", 1)}, [0.95, 0.3, 0.0], [1, 1, 0]),
        ({"exploit": ("reset", 2)}, [0.95, 0.3, 0.7], [1, 0, 1]),
        ({"exploit": ("fix", 0.0)}, [0.95, 0.3, 0.0], [1, 1, 0]),
        ({"exploit": ("fix", 0.5)}, [0.95, 0.3, 0.7], [1, 0, 1]),
        ({"exploit": ("regularize", 0.5)}, [0.95, 0.3, 0.35], [1, 0, 1]),
        ({"exploit": ("regularize", 0.6)}, [0.95, 0.3, 0.28], [1, 1, 0]),
        ({"scale": 0.5}, [0.95, 0.3, 0.55], [1, 0, 1]),
        ({"scale": 0.5, "scale_on": "update"}, [0.95, 0.3, 0.55], [1, 0, 1]),
        ({"scale": 0.0}, [0.95, 0.3, 0.4], [1, 0, 1]),
        ({"every": 2}, [0.95, 0.3, 0.7], [1, 1, 0]),
    ],
)
def test_rewire_golden_step(knobs: dict[str, Any], w: list[float], support: list[int]) -> None:
    step = one_step(**knobs)
    assert step.trainable["w"].tolist() == pytest.approx(w, abs=1e-15)
    assert step.masks["w"].int().tolist() == support
    assert step.weights["w"].tolist() == pytest.approx([a * b for a, b in zip(w, support, strict=True)], abs=1e-15)


def test_rewire_hand_trace_of_three_steps() -> None:
    """w = [3, -2, 1, 0.5], n = 2, gamma = 1, mu = .5, r = 2, z = 3, s = .5 on the gradient.

    t=0: support {0,1}; g = [1, -1, -2, 4] -> v = [1, -1, -1, 2]; w = [2, -1, 2, -1.5]; r holds the support.
    t=1: g = [0, 0, 0, 2] -> v = [.5, -.5, -.5, 2]; w = [1.5, -.5, 2.5, -3.5]; new support {2,3}.
    t=2: g = [2, 2, 1, 1] -> v = [1.25, .75, .75, 2]; w = [.25, -1.25, 1.75, -5.5]; RESET of 0 and 1.
    """
    batches = gradients([1, -1, -2, 4], [0, 0, 0, 2], [2, 2, 1, 1])
    make = partial(torch.optim.SGD, lr=1.0, momentum=0.5)
    model = Prescribed([3.0, -2.0, 1.0, 0.5])
    knobs: dict[str, Any] = {"every": 2, "scale": 0.5, "exploit": ("reset", 3), "total_steps": 3}
    trace = rewire_oracle(model, ["w"], {"w": 2}, make, batches, call, **knobs)
    assert [s.trainable["w"].tolist() for s in trace.steps] == [
        [2.0, -1.0, 2.0, -1.5],
        [1.5, -0.5, 2.5, -3.5],
        [0.0, 0.0, 1.75, -5.5],
    ]
    assert [s.masks["w"].int().tolist() for s in trace.steps] == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert [s.loss for s in trace.steps] == [3 + 2, 0 - 1, 2.5 - 3.5 - 2.5]  # p times g, plus the bias 0, -1, -2.5
    assert model.w.tolist() == [3.0, -2.0, 1.0, 0.5]  # the given model is untouched


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_hold_after_every_step(scope: str) -> None:
    trace = rewire(scope=scope)
    assert changes(trace)
    for step in trace.steps:
        held = {name: int(m.sum()) for name, m in step.masks.items()}
        assert held == COUNTS if scope == "layer" else sum(held.values()) == sum(COUNTS.values())
        assert all((step.weights[n][~m] == 0).all() for n, m in step.masks.items())


def test_global_scope_is_one_threshold() -> None:
    for step in rewire(scope="global").steps:
        active = torch.cat([step.trainable[n][m].abs() for n, m in step.masks.items()])
        inactive = torch.cat([step.trainable[n][~m].abs() for n, m in step.masks.items()])
        assert active.min() >= inactive.max()


@pytest.mark.parametrize("make", [MOMENTUM, ADAMW, partial(torch.optim.Adagrad, lr=0.1)])
def test_density_one_is_dense_training_bit_for_bit(make: Any) -> None:
    full = {"0.weight": 96, "2.weight": 48}
    trace = rewire(make=make, counts=full, exploit=("reset", 2), scale=0.25)
    model = mlp()
    optimizer = make(list(model.parameters()))
    for batch, step in zip(data(12), trace.steps, strict=True):
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
        assert step.loss == loss.item()
        assert same({**step.weights, **step.others}, {k: v.detach() for k, v in model.named_parameters()})


def test_inactive_weights_do_not_enter_the_loss() -> None:
    model = mlp()
    first = rewire(steps=1)
    with torch.no_grad():
        for name, m in first.masks.items():
            model.get_parameter(name)[~m] *= 0.5
    again = rewire_oracle(model, WEIGHTS, COUNTS, MOMENTUM, data(1), cross_entropy, total_steps=1)
    assert same(again.masks, first.masks)
    assert again.steps[0].loss == first.steps[0].loss


def test_gradient_of_inactive_weights_is_the_finite_difference_at_zero() -> None:
    model, batch = mlp(), data(1)[0]
    w = {name: model.get_parameter(name).detach().clone() for name in WEIGHTS}
    make = partial(torch.optim.SGD, lr=1.0)
    trace = rewire_oracle(model, WEIGHTS, COUNTS, make, [batch], cross_entropy, total_steps=1)
    found = []
    with torch.no_grad():
        for name, m in trace.masks.items():
            model.get_parameter(name).mul_(m)
        for name, m in trace.masks.items():
            theta, eps = model.get_parameter(name), 1e-5
            for at in [tuple(i.tolist()) for i in (~m).nonzero()[::7]]:
                losses = []
                for value in (eps, -eps):
                    theta[at] = value
                    losses.append(cross_entropy(model, batch).item())
                theta[at] = 0.0
                g = (w[name][at] - trace.steps[0].trainable[name][at]).item()
                assert g == pytest.approx((losses[0] - losses[1]) / (2 * eps), abs=1e-8)
                found.append(abs(g))
    assert sum(g > 1e-4 for g in found) > 10


@pytest.mark.parametrize("make", [MOMENTUM, ADAMW])
def test_z1_beta1_v0_and_r_infinity_are_the_same_static_run(make: Any) -> None:
    never = rewire(make=make, every=math.inf)
    assert not changes(never)
    for exploit in (("reset", 1), ("regularize", 1.0), ("fix", 0.0)):
        trace = rewire(make=make, exploit=exploit)
        assert not changes(trace)
        for a, b in zip(trace.steps, never.steps, strict=True):
            assert a.loss == b.loss
            assert same(a.weights, b.weights)
    static = static_oracle(mlp(), never.masks, make, data(12), cross_entropy)
    assert all(same(a.weights, b.weights) for a, b in zip(static.steps, never.steps, strict=True))


def test_fix_freezes_the_support_and_zeroes_the_rest() -> None:
    trace = rewire(steps=20, exploit=("fix", 0.5))
    assert changes(trace)
    assert max(changes(trace)) <= 10
    assert max(changes(rewire(steps=20))) > 11  # without FIX it goes on changing
    for t, step in enumerate(trace.steps):
        dead = all((step.trainable[n][~m] == 0).all() for n, m in step.masks.items())
        assert dead == (t >= 10)


def test_reset_at_a_step_leaves_the_next_support_as_it_is() -> None:
    trace = rewire(steps=24, exploit=("reset", 3))
    assert changes(trace)
    assert not [t for t in changes(trace) if t % 3 == 0]
    assert [t for t in changes(rewire(steps=24)) if t % 3 == 0]


def test_without_gradient_or_momentum_inactive_weights_rest() -> None:
    trace = rewire(make=partial(torch.optim.SGD, lr=0.3), scale=0.0, every=math.inf)
    first = rewire(steps=1, every=math.inf, make=partial(torch.optim.SGD, lr=0.0))
    for step in trace.steps:
        for name, m in trace.masks.items():
            assert torch.equal(step.trainable[name][~m], first.steps[0].trainable[name][~m])


def test_the_support_changes_at_multiples_of_r_only() -> None:
    trace = rewire(steps=24, every=4, make=partial(torch.optim.SGD, lr=1.0))
    assert changes(trace)
    assert all(t % 4 == 0 for t in changes(trace))


def test_decay_of_inactive_weights_over_a_thousand_steps() -> None:
    model = Prescribed([1.0, 0.5])
    batches = gradients([0.0, 0.0]) * 1000
    knobs: dict[str, Any] = {"exploit": ("regularize", 2e-4), "total_steps": 1000}
    trace = rewire_oracle(model, ["w"], {"w": 1}, SGD, batches, call, **knobs)
    assert trace.steps[-1].trainable["w"].tolist() == pytest.approx([1.0, 0.5 * 0.8187], abs=2e-5)


def test_scaling_the_gradient_cancels_under_adam_but_scaling_the_update_does_not() -> None:
    w = [1.0, 0.9, 0.5]
    moved = {}
    for scale_on in ("gradient", "update"):
        batches = gradients([0.1, 0.1, 0.1]) * 5
        make = partial(torch.optim.Adam, lr=1e-3)
        knobs: dict[str, Any] = {"scale": 0.01, "scale_on": scale_on, "total_steps": 5}
        trace = rewire_oracle(Prescribed(w), ["w"], {"w": 2}, make, batches, call, **knobs)
        moved[scale_on] = 0.5 - trace.steps[-1].trainable["w"][2].item()
    assert moved["gradient"] == pytest.approx(5e-3, rel=1e-3)
    assert moved["update"] == pytest.approx(5e-5, rel=1e-3)


def test_several_optimizers() -> None:
    def two(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
        return [MOMENTUM(parameters[:2]), ADAMW(parameters[2:])]

    trace, alone = rewire(make=two), rewire(make=MOMENTUM)
    assert not same(trace.steps[0].others, alone.steps[0].others)
    assert torch.equal(trace.steps[0].weights["0.weight"], alone.steps[0].weights["0.weight"])


# -- RigL ----------------------------------------------------------------------------------------------------------

RIGL_W = [0.5, -0.1, 0.3, 0.0, 0.0, 0.0]
RIGL_M = mask(1, 1, 1, 0, 0, 0)


def rigl_golden(g: list[float], make: Any = SGD, **knobs: Any) -> Trace:
    """A step without gradient, then the growth step at t = 1."""
    batches = gradients([0.0] * 6, g)
    knobs = {"every": 1, "stop": 10, "fraction": lambda t: 1 / 3, **knobs}
    return rigl_oracle(Prescribed(RIGL_W), {"w": RIGL_M}, make, batches, call, **knobs)


def test_rigl_golden_growth() -> None:
    step = rigl_golden([1, 2, 0.1, 0.2, -3, 0.05]).steps[1]
    assert step.masks["w"].int().tolist() == [1, 0, 1, 0, 1, 0]
    assert step.weights["w"].tolist() == [0.5, 0.0, 0.3, 0.0, 0.0, 0.0]


def test_rigl_golden_regrowth_keeps_the_value() -> None:
    step = rigl_golden([1, 2, 0.1, 0.2, -1.5, 0.05]).steps[1]
    assert step.masks["w"].int().tolist() == [1, 1, 1, 0, 0, 0]
    assert step.weights["w"].tolist() == RIGL_W


@pytest.mark.parametrize("knobs", [{"stop": 1}, {"every": 2}])
def test_rigl_stops_before_t_end_and_starts_at_its_period(knobs: dict[str, Any]) -> None:
    step = rigl_golden([1, 2, 0.1, 0.2, -3, 0.05], **knobs).steps[1]
    assert torch.equal(step.masks["w"], RIGL_M)
    assert step.weights["w"][0].item() == pytest.approx(0.5 - 0.1)  # an ordinary update


def test_rigl_growth_step_updates_no_parameter() -> None:
    make, made = capturing(partial(torch.optim.Adam, lr=0.05))
    knobs: dict[str, Any] = {"every": 3, "stop": 8, "fraction": lambda t: 0.3}
    trace = rigl_oracle(mlp(), random_masks(), make, data(10), cross_entropy, **knobs)
    assert changes(trace) == [4, 7]  # at t = 3 and t = 6, where the step is consumed
    for t in (3, 6):
        before, after = trace.steps[t - 1], trace.steps[t]
        assert same(before.others, after.others)
        for name in WEIGHTS:
            stayed = before.masks[name] & after.masks[name]
            assert torch.equal(before.weights[name][stayed], after.weights[name][stayed])
            assert (after.weights[name][after.masks[name] & ~before.masks[name]] == 0).all()
            assert int(after.masks[name].sum()) == COUNTS[name]
    assert {int(s["step"]) for s in made[0].state.values()} == {8}


def test_rigl_without_drops_is_static_but_for_the_consumed_steps() -> None:
    knobs: dict[str, Any] = {"every": 3, "stop": 8, "fraction": lambda t: 0.0}
    trace = rigl_oracle(mlp(), random_masks(), MOMENTUM, data(10), cross_entropy, **knobs)
    updated = [b for t, b in enumerate(data(10)) if t not in (3, 6)]
    static = static_oracle(mlp(), random_masks(), MOMENTUM, updated, cross_entropy)
    assert same(trace.steps[-1].weights, static.steps[-1].weights)
    assert same(trace.steps[-1].others, static.steps[-1].others)


# -- optimizer slots of newborns ------------------------------------------------------------------------------------


def capturing(make: Any) -> tuple[Any, list[torch.optim.Optimizer]]:
    made: list[torch.optim.Optimizer] = []

    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(make(parameters))
        return made[-1]

    return build, made


def slots_after_growth(make: Any, newborn: str) -> dict[str, list[float]]:
    """Gradient 1, 2, 3 on the active; then 1 is dropped and 4 born; 0 and 2 stay."""
    build, made = capturing(make)
    batches = gradients([1, 2, 3, 9, 9, 9], [1, 2, 0.1, 0.2, -3, 0.05])
    knobs: dict[str, Any] = {"every": 1, "stop": 9, "fraction": lambda t: 1 / 3, "newborn": newborn}
    model = Prescribed([5.0, -0.1, 3.0, 0.0, 0.0, 0.0])
    trace = rigl_oracle(model, {"w": RIGL_M}, build, batches, call, **knobs)
    assert trace.steps[1].masks["w"].int().tolist() == [1, 0, 1, 0, 1, 0]
    state = next(s for p, s in made[0].state.items() if p.shape == (6,))
    return {k: v.tolist() for k, v in state.items() if isinstance(v, Tensor) and v.shape == (6,)}


@pytest.mark.parametrize(
    ("make", "neutral", "zero"),
    [
        (
            partial(torch.optim.Adam, lr=0.01, betas=(0.5, 0.5), amsgrad=True),
            {"exp_avg": [0.5, 0, 1.5, 0, 0, 0], "exp_avg_sq": [0.5, 0, 4.5, 0, 2.5, 0], "max_exp_avg_sq": None},
            {"exp_avg": [0.5, 0, 1.5, 0, 0, 0], "exp_avg_sq": [0.5, 0, 4.5, 0, 0, 0], "max_exp_avg_sq": None},
        ),
        (
            partial(torch.optim.RMSprop, lr=0.01, alpha=0.5, momentum=0.5),
            {"square_avg": [0.5, 0, 4.5, 0, 2.5, 0]},
            {"square_avg": [0.5, 0, 4.5, 0, 0, 0]},
        ),
        (
            partial(torch.optim.Adagrad, lr=0.01, initial_accumulator_value=0.25),
            {"sum": [1.25, 0.25, 9.25, 0.25, 5.25, 0.25]},
            {"sum": [1.25, 0.25, 9.25, 0.25, 0.25, 0.25]},
        ),
        (
            partial(torch.optim.Adamax, lr=0.01, betas=(0.5, 0.5), eps=0.0),
            {"exp_inf": [1, 0, 3, 0, 2, 0]},
            {"exp_inf": [1, 0, 3, 0, 0, 0]},
        ),
        (
            partial(torch.optim.Rprop, lr=0.01),
            {"step_size": [0.01] * 6, "prev": [1, 0, 3, 0, 0, 0]},
            {"step_size": [0.01] * 6, "prev": [1, 0, 3, 0, 0, 0]},
        ),
        (
            partial(torch.optim.SGD, lr=0.01, momentum=0.9),
            {"momentum_buffer": [1, 0, 3, 0, 0, 0]},
            {"momentum_buffer": [1, 0, 3, 0, 0, 0]},
        ),
    ],
)
def test_slots_of_dropped_and_newborn(make: Any, neutral: dict[str, Any], zero: dict[str, Any]) -> None:
    for newborn, expected in (("neutral", neutral), ("zero", zero)):
        held = slots_after_growth(make, newborn)
        for slot, values in expected.items():
            assert held[slot] == pytest.approx(values if values else expected["exp_avg_sq"], abs=1e-12), (slot, newborn)


def test_regrown_weight_keeps_its_slots() -> None:
    build, made = capturing(partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    batches = gradients([1, 2, 3, 9, 9, 9], [1, 2, 0.1, 0.2, -1.5, 0.05])
    knobs: dict[str, Any] = {"every": 1, "stop": 9, "fraction": lambda t: 1 / 3}
    rigl_oracle(Prescribed([5.0, -0.1, 3.0, 0.0, 0.0, 0.0]), {"w": RIGL_M}, build, batches, call, **knobs)
    buffer = next(s["momentum_buffer"] for p, s in made[0].state.items() if p.shape == (6,))
    assert buffer.tolist() == [1, 2, 3, 0, 0, 0]


def test_first_adam_update_of_a_newborn_is_no_jump() -> None:
    """Zeroed slots late in training give 3.16 lr; the neutral ones stay below lr."""
    moved = {}
    for newborn in ("neutral", "zero"):
        grads = [[1.0, 1.0, 0.0, 0.0]] * 60 + [[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
        knobs: dict[str, Any] = {"every": 60, "stop": 99, "fraction": lambda t: 0.5, "newborn": newborn}
        model = Prescribed([9.0, 1.0, 0.0, 0.0])
        make = partial(torch.optim.Adam, lr=1e-3, betas=(0.9, 0.999))
        trace = rigl_oracle(model, {"w": mask(1, 1, 0, 0)}, make, gradients(*grads), call, **knobs)
        moved[newborn] = abs(trace.steps[-1].weights["w"][2].item()) / 1e-3
    assert moved["neutral"] < 1.001
    assert moved["zero"] > 0.1 / math.sqrt(0.001) * math.sqrt(1 - 0.999**61)  # m-hat / sqrt(v-hat) of the card, at t=61


# -- SET -----------------------------------------------------------------------------------------------------------

SET_W = [-0.5, -0.1, -0.02, 0.01, 0.03, 0.4, 0.6, 0.0, 0.0]
SET_M = mask(1, 1, 1, 1, 1, 1, 1, 0, 0)


def set_golden(uniforms: list[float], w: list[float] = SET_W, **knobs: Any) -> Step:
    knobs = {"every": 1, "stop": 9, "fraction": lambda t: 0.3, "draw": lambda *_: torch.tensor(uniforms), **knobs}
    trace = set_oracle(Prescribed(w), {"w": SET_M}, SGD, gradients([0.0] * 9), call, **knobs)
    return trace.steps[0]


def test_set_golden_drops_by_sign() -> None:
    step = set_golden([0, 0, 0, 0, 0, 0, 0, 0.1, 0.9])  # floor(.3 * 4) = 1 positive, floor(.3 * 3) = 0 negatives
    assert step.masks["w"].int().tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 1]
    assert step.weights["w"].tolist() == [-0.5, -0.1, -0.02, 0, 0.03, 0.4, 0.6, 0, 0]


def test_set_golden_unsigned_drops_the_two_smallest() -> None:
    step = set_golden([0, 0, 0, 0, 0, 0, 0, 0.1, 0.9], split_signs=False)
    assert step.masks["w"].int().tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1]


def test_set_drops_active_zeros_and_regrows_the_just_dropped() -> None:
    step = set_golden([0.5, 0, 0, 0.9, 0, 0.8, 0, 0.1, 0.2], w=[-0.5, -0.1, -0.02, 0.01, 0.03, 0.0, 0.6, 0.0, 0.0])
    # of P = {3, 4, 6} none is dropped, of Q none, the zero at 5 is, and 5 has the largest draw of those not kept
    assert step.masks["w"].tolist() == SET_M.tolist()
    step = set_golden([0, 0, 0, 0.9, 0, 0, 0, 0.1, 0.2])  # the dropped .01 is drawn again and keeps its value
    assert step.weights["w"].tolist() == SET_W


@pytest.mark.parametrize("split", [True, False])
def test_set_that_drops_nothing_is_static(split: bool) -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[:2] = 0.0  # active exact zeros stay, too
    knobs: dict[str, Any] = {"every": 1, "stop": 99, "fraction": lambda t: 0.0, "draw": draw, "split_signs": split}
    trace = set_oracle(model, random_masks(), MOMENTUM, data(4), cross_entropy, **knobs)
    static = static_oracle(model, random_masks(), MOMENTUM, data(4), cross_entropy)
    assert not changes(trace)
    assert all(same(a.weights, b.weights) for a, b in zip(trace.steps, static.steps, strict=True))


def test_set_follows_the_update_and_stops() -> None:
    knobs: dict[str, Any] = {"every": 3, "stop": 9, "fraction": lambda t: 0.3, "draw": draw}
    trace = set_oracle(mlp(), random_masks(), ADAMW, data(12), cross_entropy, **knobs)
    assert changes(trace) == [3, 6]
    seen = [trace.masks, *(s.masks for s in trace.steps)]
    for t, step in enumerate(trace.steps):
        assert not t or not same(step.others, trace.steps[t - 1].others)  # every step is an update
        for name in WEIGHTS:
            assert int(step.masks[name].sum()) == COUNTS[name]
            assert (step.weights[name][~step.masks[name]] == 0).all()
            assert (step.weights[name][step.masks[name] & ~seen[t][name]] == 0).all()


def test_set_before_its_first_rewiring_is_static() -> None:
    knobs: dict[str, Any] = {"every": 5, "stop": 9, "fraction": lambda t: 0.3, "draw": draw}
    trace = set_oracle(mlp(), random_masks(), ADAMW, data(6), cross_entropy, **knobs)
    static = static_oracle(mlp(), random_masks(), ADAMW, data(6), cross_entropy)
    assert [same(a.weights, b.weights) for a, b in zip(trace.steps, static.steps, strict=True)] == [True] * 4 + [
        False
    ] * 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.booleans())
def test_set_kept_weights_are_untouched_and_farther_from_zero_than_the_dropped(
    seed: int, zeta: float, split: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(40, generator=generator, dtype=torch.float64)
    active = pick(torch.rand(40, generator=generator), torch.zeros(40, dtype=torch.bool), 25)
    low = torch.zeros(40)
    low[~active] = 1.0  # grow fresh positions first
    knobs: dict[str, Any] = {"every": 1, "stop": 9, "fraction": lambda t: zeta, "draw": lambda *_: low}
    model = Prescribed(w.tolist())
    step = set_oracle(model, {"w": active}, SGD, gradients([0.0] * 40), call, split_signs=split, **knobs).steps[0]
    dropped, kept = active & ~step.masks["w"], active & step.masks["w"]
    assert torch.equal(step.weights["w"][kept], w[kept])
    for group in (w > 0, w < 0) if split else (w == w,):
        if (dropped & group).any() and (kept & group).any() and int((active & ~kept).sum()) < 15:
            assert w[dropped & group].abs().max() <= w[kept & group].abs().min()
            assert int((dropped & group).sum()) == math.floor(zeta * int((active & group).sum()))
    assert int(step.masks["w"].sum()) == 25


def test_static_keeps_weights_and_slots_clear_for_optimizers_that_mix_entries() -> None:
    """Muon's update is dense even where the gradient is zero."""
    make, made = capturing(lambda ps: torch.optim.Muon([p for p in ps if p.ndim == 2], lr=0.05))
    trace = static_oracle(mlp(), random_masks(), make, data(5), cross_entropy)
    for step in trace.steps:
        for name, m in trace.masks.items():
            assert (step.weights[name][~m] == 0).all()
            assert (step.trainable[name][~m] == 0).all()
    assert not same(trace.steps[0].weights, trace.steps[4].weights)
    for p, state in made[0].state.items():
        m = next(m for name, m in trace.masks.items() if m.shape == p.shape)
        assert (state["momentum_buffer"][~m] == 0).all()
