"""First supports of runs: scored on training data, checked by controls, kept in the folder, resumed exactly."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import foresight
from gossamer.analysis import sanity
from gossamer.checkpoint import load
from gossamer.errors import ConfigError
from gossamer.experiments import first_support, setup
from gossamer.experiments.config import RunConfig, build_method
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.experiments.train import Interrupted, Update, train
from gossamer.experiments.values import parse, spell
from gossamer.method import Init, Method
from gossamer.rewinding import unpack_supports

from .tiny import Make, model_of, rows_of

# How a run scores its weights: method and arguments.
SCORED: dict[str, tuple[str, dict[str, Any]]] = {
    "snip": ("snip", {"batches": 2}),
    "synflow": ("synflow", {"rounds": 5}),
    "force in rigl": ("rigl", {"init": "force:3", "every": 3}),
    "synflow in rewire": ("rewire", {"init": "synflow:5", "exploit": "reset:4"}),
    "grasp counts in set": ("set", {"init": "grasp:positions=random", "every": 3}),
}


def built(config: RunConfig) -> setup.Parts:
    """What a run starts with."""
    return build_parts(make_plan(config))


def masks_of(config: RunConfig) -> dict[str, Tensor]:
    """The supports that a run starts with."""
    sparsifier = built(config).sparsifier
    assert sparsifier is not None
    return {name: support.mask for name, support in sparsifier.supports.items()}


def weights_of(config: RunConfig) -> dict[str, Tensor]:
    """The initial weights of a run, masked."""
    return {name: p.detach().clone() for name, p in built(config).model.named_parameters()}


@pytest.mark.parametrize("kind", SCORED)
def test_interrupted_runs_continue_exactly_without_scoring_again(
    make: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, args = SCORED[kind]
    whole = make("whole", method=method, args=args)
    train(whole)

    def interrupt(update: Update) -> None:
        if update.step == 11:
            os.kill(os.getpid(), signal.SIGINT)

    cut = make("cut", method=method, args=args)
    with pytest.raises(Interrupted):
        train(cut, progress=interrupt)
    monkeypatch.setattr(foresight.search, "first_masks", lambda *arguments: pytest.fail("scored again"))
    train(cut, resume=True)
    assert model_of(cut) == model_of(whole)
    assert rows_of(cut) == rows_of(whole)


def test_a_method_starts_from_what_its_init_finds(make: Make) -> None:
    config = make(method="rigl", args={"init": "snip:2", "every": 5})
    plan = make_plan(config)
    method = build_method(config)
    assert isinstance(method, Method)
    assert isinstance(method.init, foresight.Saliency)
    bound = first_support.bound(method, plan.config, plan.dataset)
    model = setup._initial_model(plan, 0)
    assert isinstance(bound.init, foresight.Saliency)
    found = foresight.find(model, bound.init, 0.2)
    assert {name: support.mask for name, support in found.items()}.keys() == masks_of(config).keys()
    assert all(torch.equal(found[name].mask, mask) for name, mask in masks_of(config).items())


def test_the_scored_examples_are_training_examples_alone(make: Make) -> None:
    plan = make_plan(make(method="snip", valid_fraction=0.5))
    assert isinstance(plan.method, Method)
    init = first_support.bound(plan.method, plan.config, plan.dataset).init
    assert isinstance(init, foresight.Saliency)
    assert init.examples is not None
    seen = next(init.examples.endless())[0].flatten(1)
    trained = plan.dataset.train.whole()[0].flatten(1)
    assert all(bool((trained == example).all(1).any()) for example in seen)


def test_shuffle_keeps_counts_and_weights_and_moves_the_mask(make: Make) -> None:
    plain, shuffled = make(method="snip"), make(method="snip", control="shuffle")
    before, after = masks_of(plain), masks_of(shuffled)
    assert {n: int(m.sum()) for n, m in before.items()} == {n: int(m.sum()) for n, m in after.items()}
    assert not any(torch.equal(before[name], after[name]) for name in before)
    ours, theirs = weights_of(plain), weights_of(shuffled)
    for name, mask in before.items():
        both = mask & after[name]
        assert bool(both.any())
        assert torch.equal(ours[name][both], theirs[name][both])


def test_reinit_keeps_the_mask_and_draws_other_weights(make: Make) -> None:
    plain, again = make(method="snip"), make(method="snip", control="reinit")
    before, after = masks_of(plain), masks_of(again)
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours, theirs = weights_of(plain), weights_of(again)
    assert not any(bool((ours[name][mask] == theirs[name][mask]).any()) for name, mask in before.items())
    assert all(torch.equal(value, weights_of(again)[name]) for name, value in theirs.items())


def test_invert_keeps_other_weights(make: Make) -> None:
    density = 0.4
    before = masks_of(make(method="synflow", args={"rounds": 1}, density=density))
    after = masks_of(make(method="synflow", args={"rounds": 1}, density=density, control="invert"))
    assert not any(bool((before[name] & after[name]).any()) for name in before)


@pytest.mark.parametrize("control", ["shuffle", "reinit"])
def test_a_check_of_a_ticket_is_made_of_the_ticket_alone(make: Make, control: str) -> None:
    values: dict[str, Any] = {"method": "lottery", "args": {"rewind": 5, "levels": 2}}
    plain, checked = make("plain", **values), make("checked", control=control, **values)
    train(plain)
    train(checked)
    rounds = [load(Path(str(run.out)) / "round-1.safetensors").state for run in (plain, checked)]
    ticket, same = (unpack_supports(state) for state in rounds)
    assert ticket == same
    started = unpack_supports(load(first_support.file_of(checked)).state)  # type: ignore[arg-type]
    assert {n: s.count for n, s in started.items()} == {n: s.count for n, s in ticket.items()}
    assert (started == ticket) is (control == "reinit")
    assert model_of(plain) != model_of(checked)


def test_mask_data_is_what_is_scored_and_not_what_is_trained_on(make: Make) -> None:
    own, other = make(method="snip"), make(method="snip", mask_data="digits", mask_data_options={"train_subset": 300})
    assert not all(torch.equal(mask, masks_of(other)[name]) for name, mask in masks_of(own).items())
    assert make_plan(other).dataset.digest == make_plan(own).dataset.digest
    same = make(method="snip", mask_data="digits")
    assert all(torch.equal(mask, masks_of(same)[name]) for name, mask in masks_of(own).items())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "static", "control": "invert"}, "no scores to invert"),
    ({"method": "gmp", "control": "shuffle", "args": {"every": 5}}, "starts dense"),
    ({"method": "cs", "control": "shuffle"}, "no first support"),
    ({"method": "dense", "control": "shuffle"}, "no first support"),
    ({"method": "lottery", "control": "invert"}, "prunes trained weights"),
    ({"method": "synflow", "mask_data": "digits"}, "scores no weights on examples"),
    ({"method": "static", "mask_data": "digits"}, "scores no weights on examples"),
    ({"method": "snip", "mask_data": "mnist5k"}, "inputs of"),
    ({"method": "snip", "mask_data": "digit"}, "did you mean 'digits'"),
    ({"method": "snip", "control": "shufle"}, "shuffle"),
    ({"method": "rigl", "args": {"init": "synflo"}}, "did you mean 'synflow'"),
    ({"method": "rigl", "args": {"init": "snip:skope=layer"}}, "did you mean 'scope'"),
    ({"method": "rigl", "args": {"init": "force:0"}}, "rounds = 0"),
    ({"method": "gmp", "args": {"init": "snip"}}, "unknown option 'init'"),
    ({"method": "magnitude", "density": 0.004}, "no path from input to output"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(make: Make, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make(**values))
    assert not Path(str(make().out)).exists()


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("snip", "snip"),
        ("snip:2", "snip:batches=2"),
        ("grasp:temperature=1,scope=layer", "grasp:temperature=1.0,scope=layer"),
        ("force:30,2,random,allow_collapse=true", "force:rounds=30,batches=2,positions=random,allow_collapse=True"),
        ("synflow:rounds=7", "synflow:rounds=7"),
        ("magnitude", "magnitude"),
        ("random", "random"),
    ],
)
def test_text_names_an_init(text: str, again: str) -> None:
    value = parse(text, Init, "init")
    assert spell(value) == again
    assert parse(again, Init, "init") == value
    assert spell(parse(value, Init, "init")) == again


def test_what_has_no_text_is_no_config() -> None:
    with pytest.raises(ConfigError, match="no other objects"):
        spell(foresight.Saliency(foresight.SynapticFlow(), rounds=3))
    with pytest.raises(ConfigError, match="no other objects"):
        spell(foresight.snip([1]))


def test_library_and_command_line_agree_on_the_controls(make: Make) -> None:
    plan = make_plan(make(method="snip"))
    assert isinstance(plan.method, Method)
    method = first_support.bound(plan.method, plan.config, plan.dataset)
    supports = sanity.first_supports(setup._initial_model(plan, 0), method)
    shuffled = sanity.shuffle(supports, 0)
    started = masks_of(make(method="snip", control="shuffle"))
    assert all(torch.equal(shuffled[name].mask, mask) for name, mask in started.items())
