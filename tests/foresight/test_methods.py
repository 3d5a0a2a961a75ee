"""As init= of methods: the first supports are what `find` finds, their counts stand, and a resume goes on exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer
from gossamer import Given, Method, foresight, methods
from gossamer.errors import CheckpointError, ConfigError
from gossamer.foresight import Saliency
from gossamer.topology import NM, Held

from .measure import counts, same
from .nets import Residual, images, mlp, seeded, vectors

STEPS, DENSITY = 12, 0.25
DATA = images(4, dtype=torch.float32)

METHODS: dict[str, Callable[[Any], Method]] = {
    "static": lambda init: methods.static(DENSITY, init=init),
    "rigl": lambda init: methods.rigl(DENSITY, every=3, fraction=0.5, init=init),
    "set": lambda init: methods.set_(DENSITY, every=3, init=init),
    "rewire": lambda init: methods.rewire(DENSITY, every=3, init=init),
    "topkast": lambda init: methods.topkast(DENSITY, every=3, init=init),
    "deepr": lambda init: methods.deepr(DENSITY, every=3, temperature=1e-3, init=init),
    "snfs": lambda init: methods.snfs(DENSITY, every=3, init=init),
    "granet": lambda init: methods.granet(0.15, initial=DENSITY, every=3, init=init),
    "dsr": lambda init: methods.dsr(DENSITY, every=3, threshold=0.03, double_at=(), init=init),
    "rigl-global": lambda init: methods.rigl(DENSITY, every=3, fraction=0.5, scope="global", init=init),
    "rewire-global": lambda init: methods.rewire(DENSITY, every=3, scope="global", init=init),
}
MOVING = {"granet", "dsr", "snfs", "rigl-global", "rewire-global"}  # counts of layers may change
INITS: dict[str, Callable[[], Saliency]] = {
    "snip": lambda: foresight.snip(DATA),
    "synflow": lambda: foresight.synflow((3, 8, 8), 10),
    "grasp-layer": lambda: foresight.grasp(DATA, scope="layer"),
}
EVERY = pytest.mark.parametrize("method", METHODS)


class Run:
    """A small training that can be stopped and gone on with."""

    def __init__(self, method: Method, seed: int = 0, make: Any = Residual, lr: float = 0.05):
        self.model = seeded(make, seed, torch.float32)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.sparsifier = gossamer.sparsify(self.model, method, self.optimizer, total_steps=STEPS, seed=7)

    def go(self, steps: int, data: Any = DATA) -> Run:
        for _ in range(steps):
            x, y = data[self.sparsifier.step % len(data)]
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        return self

    @property
    def masks(self) -> dict[str, Tensor]:
        return {name: support.mask for name, support in self.sparsifier.supports.items()}


@EVERY
@pytest.mark.parametrize("init", INITS)
def test_first_supports_are_what_find_finds(method: str, init: str) -> None:
    composed = METHODS[method](INITS[init]())
    allocation = composed.allocation
    wanted = foresight.find(seeded(Residual, 0, torch.float32), INITS[init](), DENSITY, allocation=allocation, seed=7)
    assert Run(composed).sparsifier.supports == wanted


@EVERY
@pytest.mark.parametrize("init", INITS)
def test_counts_of_layers_are_kept_while_supports_change(method: str, init: str) -> None:
    run = Run(METHODS[method](INITS[init]()))
    first = run.masks
    last = run.go(STEPS).masks
    assert same(first, last) == (method == "static")
    if method not in MOVING:
        assert counts(first) == counts(last)
    elif method != "granet":
        assert sum(counts(first).values()) == sum(counts(last).values())
    else:
        total = sum(mask.numel() for mask in last.values())
        assert sum(counts(last).values()) == round(0.15 * total)


@EVERY
@pytest.mark.parametrize("init", ["snip", "synflow"])
def test_a_resumed_run_ends_with_the_same_bits_whatever_it_would_start_from(method: str, init: str) -> None:
    """The init of the resumed run sees other batches and another model, so it finds other counts."""
    whole = Run(METHODS[method](INITS[init]())).go(STEPS)
    stopped = Run(METHODS[method](INITS[init]())).go(5)
    saved = copy.deepcopy((stopped.model.state_dict(), stopped.optimizer.state_dict(), stopped.sparsifier.state_dict()))
    other = foresight.snip([(5 * x + 1, 3 - y) for x, y in DATA]) if init == "snip" else INITS[init]()
    resumed = Run(METHODS[method](other), seed=3)
    assert counts(resumed.masks) != counts(stopped.masks)
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.sparsifier.load_state_dict(saved[2])
    resumed.go(STEPS - 5)
    assert same(resumed.masks, whole.masks)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


def test_found_supports_can_be_given() -> None:
    found = foresight.find(seeded(Residual, 0, torch.float32), INITS["synflow"](), DENSITY)
    given_run, own = Run(METHODS["rigl"](Given(found))), Run(METHODS["rigl"](INITS["synflow"]()))
    assert same(given_run.go(STEPS).masks, own.go(STEPS).masks)


def test_a_layer_without_weights_stays_so() -> None:
    """The shortcut of a residual net may be emptied; rewiring within layers leaves it empty and trains the rest."""

    def make() -> nn.Module:
        model = Residual()
        nn.init.constant_(model.shortcut.weight, 1e-6)
        return model

    for method in ("rigl", "set", "rewire", "deepr", "topkast"):
        with pytest.warns(
            UserWarning, match=r"leaves shortcut\.weight without any weight \(shortcuts lead around them"
        ):
            run = Run(METHODS[method](INITS["synflow"]()), make=make)
        assert counts(run.go(STEPS).masks)["shortcut.weight"] == 0, method


def test_structures_take_a_saliency_within_layers() -> None:
    saliency = foresight.snip(vectors(8, 4, dtype=torch.float32), scope="layer")
    method = Method(name="nm", density=0.25, init=saliency, allocation="uniform", structure=NM(1, 4))
    run = Run(method, make=lambda: mlp(8, 16, 4))
    assert all(NM(1, 4).is_valid(mask) for mask in run.masks.values())
    with pytest.raises(
        ConfigError, match=r"fixes the count of every weight, so scores rank within each; use scope='lay"
    ):
        Method(name="nm", density=0.25, init=foresight.snip([]), structure=NM(1, 4))


def test_the_seed_of_other_draws_stays() -> None:
    """What SET grows does not depend on how many numbers the init drew."""
    random_first = methods.set_(DENSITY, every=3, allocation="uniform")
    runs = [Run(method).go(1) for method in (random_first, methods.set_(DENSITY, every=3, allocation="uniform"))]
    drawn = foresight.Saliency(foresight.Plain(gossamer.topology.scores.random), scope="layer", label="random")
    also = Run(methods.set_(DENSITY, every=3, allocation="uniform", init=drawn)).go(1)
    assert same(runs[0].masks, also.masks)
    assert same(runs[0].go(STEPS - 1).masks, also.go(STEPS - 1).masks)


# -- the saved counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda held: None,
        lambda held: list(held.values()),
        lambda held: {**held, "other.weight": 3},
        lambda held: dict(list(held.items())[1:]),
        lambda held: {**held, "stem.weight": -1},
        lambda held: {**held, "stem.weight": 10**6},
        lambda held: {**held, "stem.weight": 3.0},
        lambda held: {**held, "stem.weight": True},
        lambda held: {**held, "stem.weight": held["stem.weight"] - 9, "head.weight": held["head.weight"] + 9},
    ],
)
def test_damaged_counts_are_refused_and_nothing_changes(damage: Callable[[Mapping[str, int]], Any]) -> None:
    run = Run(METHODS["rigl"](INITS["synflow"]())).go(4)
    state = run.sparsifier.state_dict()
    before = run.masks
    with pytest.raises(CheckpointError):
        run.sparsifier.load_state_dict({**state, "held": damage(state["held"])})
    assert same(before, run.masks)
    run.sparsifier.load_state_dict(state)
    assert state["held"] == counts(before)


sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)).map(lambda pair: (pair[0], min(pair))), min_size=1)


@settings(deadline=None)
@given(sizes, st.floats(0.01, 1))
def test_held_counts_at_any_density(layers: list[tuple[int, int]], density: float) -> None:
    """Themselves at their own density; at another they add up, fit, and nothing comes to a weight that has none."""
    shapes = {str(i): (size,) for i, (size, _) in enumerate(layers)}
    held = {str(i): count for i, (_, count) in enumerate(layers)}
    total = sum(size for size, _ in layers)
    allocation = Held(held, sum(held.values()) / total)
    if sum(held.values()):
        assert allocation(shapes, sum(held.values()) / total) == held
    wanted, room = round(density * total), sum(size for size, count in layers if count)
    if wanted <= room and density != allocation.density:
        found = allocation(shapes, density)
        assert sum(found.values()) == wanted
        assert all(found[name] <= shapes[name][0] and (held[name] or not found[name]) for name in held)


# -- it trains ---------------------------------------------------------------------------------------------------------


def test_rigl_from_synflow_learns() -> None:
    """Four blobs; chance is 0.25."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=g)
    labels = torch.randint(0, 4, (400,), generator=g)
    x = centres[labels] + 0.5 * torch.randn(400, 16, generator=g)
    model = seeded(lambda: mlp(16, 32, 32, 4, act=nn.ReLU), dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    method = methods.rigl(0.1, every=10, init=foresight.synflow(16))
    gossamer.sparsify(model, method, optimizer, total_steps=100)
    for step in range(100):
        rows = slice(step * 3, step * 3 + 32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:300][rows]), labels[:300][rows]).backward()
        optimizer.step()
    assert float((model(x[300:]).argmax(1) == labels[300:]).float().mean()) > 0.7
