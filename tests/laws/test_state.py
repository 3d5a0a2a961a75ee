"""A saved state is refused, and nothing changed, if it is damaged or another run's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import methods
from gossamer.errors import CheckpointError

from .settings import assert_same, batches, equal_trees, mlp, small_methods, sparse_run, train_step, weights


def test_state_of_another_model_or_method_is_refused() -> None:
    sparsifier = gossamer.sparsify(mlp(), methods.set_(0.3), total_steps=10)
    other = nn.Sequential(
        nn.Linear(20, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5)
    )
    state = sparsifier.state_dict()
    with pytest.raises(CheckpointError, match=r"5\.weight has shape \(4, 12\).*another model"):
        gossamer.sparsify(other, methods.set_(0.3), total_steps=10).load_state_dict(state)
    with pytest.raises(CheckpointError, match="saved method is 'set'"):
        gossamer.sparsify(mlp(), methods.rigl(0.3), total_steps=10).load_state_dict(state)
    with pytest.raises(CheckpointError, match="saved total_steps is 10"):
        gossamer.sparsify(mlp(), methods.set_(0.3), total_steps=11).load_state_dict(state)
    with pytest.raises(CheckpointError, match="other targets"):
        gossamer.sparsify(mlp(), methods.set_(0.3), total_steps=10, targets="0.*").load_state_dict(state)


def test_state_of_another_density_or_allocation_is_refused() -> None:
    for name in ("static", "set_", "rigl", "rewire"):
        build = getattr(methods, name)
        state = gossamer.sparsify(mlp(), build(0.3), total_steps=10).state_dict()
        with pytest.raises(CheckpointError, match="saved with another density"):
            gossamer.sparsify(mlp(), build(0.5), total_steps=10).load_state_dict(state)
        with pytest.raises(CheckpointError, match="saved with another allocation"):
            gossamer.sparsify(mlp(), build(0.3, allocation="uniform"), total_steps=10).load_state_dict(state)


@pytest.mark.parametrize("name", ["gmp", "granet", "one_shot"])
def test_state_of_another_scheduled_density_is_refused(name: str) -> None:
    build, times = getattr(methods, name), {} if name == "one_shot" else {"every": 2}
    model = mlp()
    with sparse_run(model, build(0.2, **times), "sgd-momentum") as (sparsifier, optimizers):
        for batch in batches():
            train_step(model, optimizers, batch)
        state = sparsifier.state_dict()
    gossamer.sparsify(mlp(), build(0.2, **times), total_steps=12).load_state_dict(state)
    with pytest.raises(CheckpointError, match="saved with another density"):
        gossamer.sparsify(mlp(), build(0.4, **times), total_steps=12).load_state_dict(state)


@pytest.mark.parametrize("method", ["set", "rewire"])
def test_a_damaged_state_changes_nothing(method: str) -> None:
    sound = gossamer.sparsify(mlp(), small_methods()[method], total_steps=10).state_dict()
    model = mlp(seed=3)
    sparsifier = gossamer.sparsify(model, small_methods()[method], total_steps=10, seed=8)
    before = weights(model), sparsifier.supports["0.weight"], sparsifier.seed
    damages = [{key: None} for key in sound if key != "total_steps"]
    damages += [{"step": -5}, {"step": 1.5}, {"version": 99}, {"supports": {}}, {"supports": {"0.weight": 3}}]
    damages += [{"supports": {**sound["supports"], "3.weight": {"shape": [12, 16], "count": 4}}}]
    damages += [{"trainables": {**sound["trainables"], "5.weight": "x"}}]
    if method == "rewire":
        damages += [{"trainables": {k: v for k, v in sound["trainables"].items() if k != "5.weight"}}]
    for damage in damages:
        with pytest.raises(CheckpointError) as error:
            sparsifier.load_state_dict({**sound, **damage})
        assert "\n" not in str(error.value)
        assert_same(before[0], weights(model))
        assert sparsifier.supports["0.weight"] == before[1]
        assert sparsifier.seed == before[2]
    with pytest.raises(CheckpointError, match="no state of a Sparsifier"):
        sparsifier.load_state_dict({})
    sparsifier.load_state_dict(sound)


Change = Callable[[dict[str, Any]], Any]
TRAIT_DAMAGES: list[tuple[str, str, Change]] = [
    ("topkast", "does not fit its support", lambda t: t["0.weight"]["reach"].fill_(False)),
    ("topkast", "is no torch.bool tensor", lambda t: t["0.weight"].update(reach=torch.ones(3, dtype=torch.bool))),
    ("topkast", "is no torch.bool tensor", lambda t: t["0.weight"].update(reach=torch.ones(16, 20))),
    ("topkast", "another density of what is trained", lambda t: t["0.weight"]["reach"].fill_(True)),
    ("topkast", "another density of what is trained", lambda t: t["0.weight"].pop("reach")),
    ("topkast", "was saved with another method", lambda t: t["0.weight"].update(sign=torch.ones(16, 20).char())),
    ("deepr", "was saved with another method", lambda t: t["3.weight"].pop("sign")),
    ("deepr", "was saved with another method", lambda t: t.pop("3.weight")),
    ("deepr", "other than -1 and 1", lambda t: t["3.weight"]["sign"].fill_(0)),
    ("deepr", "is no torch.int8 tensor", lambda t: t["3.weight"].update(sign=torch.ones(12, 16))),
    ("deepr", "are no tensors", lambda t: t["3.weight"].update(sign=[1, -1])),
    ("deepr", "are no tensors", lambda t: t.update({"3.weight": 4})),
    ("set-grace", "was saved with another method", lambda t: t["5.weight"].clear()),
    ("set-grace", "is no torch.int32 tensor", lambda t: t["5.weight"].update(born=torch.ones(4, 12))),
    ("set", "what is trained of 0.weight does not fit", lambda t: t["0.weight"].update(reach=torch.ones(16, 20) > 0)),
    ("set", "was saved with another method", lambda t: t["0.weight"].update(born=torch.ones(16, 20).int())),
]


def refused(method: str, message: str, change: Change, key: str) -> None:
    """Damage one part of a state in mid-run; another run must refuse it, stay as it is and go on."""
    model, data = mlp(), batches()
    with sparse_run(model, small_methods()[method], "sgd-momentum") as (sparsifier, optimizers):
        for batch in data[:5]:
            train_step(model, optimizers, batch)
        state = sparsifier.state_dict()
    change(state[key])
    model = mlp(seed=4)
    with sparse_run(model, small_methods()[method], "sgd-momentum") as (sparsifier, optimizers):
        train_step(model, optimizers, data[0])
        before = weights(model), sparsifier.state_dict()
        with pytest.raises(CheckpointError, match=message) as error:
            sparsifier.load_state_dict(state)
        assert "\n" not in str(error.value)
        assert_same(before[0], weights(model))
        assert equal_trees(before[1], sparsifier.state_dict())
        train_step(model, optimizers, data[1])


@pytest.mark.parametrize(("method", "message", "change"), TRAIT_DAMAGES)
def test_damaged_traits_change_nothing(method: str, message: str, change: Change) -> None:
    refused(method, message, change, "traits")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", None, torch.ones(1)])
def test_a_damaged_memory_changes_nothing(value: object) -> None:
    refused(
        "dsr", "the rule's memory of '' are no numbers", lambda memory: memory[""].update(threshold=value), "memory"
    )


def test_traits_and_memory_are_what_the_method_needs() -> None:
    """Signs, ages, what is trained and the threshold come back; other methods keep nothing."""
    named = {
        "sign": ("deepr", "deepr-global", "deepr-synflow"),
        "born": ("set-grace", "rigl-grace", "dsr-fixed", "snfs-drop"),
        "reach": ("topkast", "topkast-global", "topkast-synflow"),
    }
    kept = {name: {trait} for trait, names in named.items() for name in names}
    for name, method in small_methods().items():
        with sparse_run(model := mlp(), method, "adamw") as (sparsifier, optimizers):
            for batch in batches(n=4):
                train_step(model, optimizers, batch)
            state = sparsifier.state_dict()
        assert set(state["traits"]["0.weight"]) == kept.get(name, set()), name
        remembered = {key for values in state["memory"].values() for key in values}
        assert remembered == ({"threshold"} if name.startswith("dsr") else set()), name
