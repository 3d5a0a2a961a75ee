"""First supports of runs: scored on training data, checked by controls, kept in the folder, resumed exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import foresight
from gossamer.analysis import sanity
from gossamer.checkpoint import load, save
from gossamer.errors import CheckpointError, ConfigError
from gossamer.experiments import data, first_support, setup
from gossamer.experiments.config import RunConfig, build_method, method_parameters
from gossamer.experiments.recipes import default_folder
from gossamer.experiments.runs import Result
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.experiments.train import Interrupted, train
from gossamer.experiments.values import parse, spell
from gossamer.method import Init, Method
from gossamer.methods import REGISTRY
from gossamer.rewinding import unpack_supports
from gossamer.tickets import Tickets
from gossamer.topology import Support

from .tiny import Make, assert_continues_exactly, interrupt, model_of, signal_at

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

    def forbid() -> None:
        monkeypatch.setattr(foresight.search, "first_masks", lambda *arguments: pytest.fail("scored again"))

    assert_continues_exactly(make, {"method": method, "args": args}, 11, meantime=forbid)


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


def damage_name(state: dict[str, Any]) -> None:
    state["supports"]["nothing.weight"] = state["supports"].pop("linear1.weight")


def damage_extra(state: dict[str, Any]) -> None:
    state["supports"]["nothing.weight"] = state["supports"]["linear1.weight"]


def damage_shape(state: dict[str, Any]) -> None:
    state["supports"]["linear1.weight"] = Support.full((3, 5)).state()


def damage_count(state: dict[str, Any]) -> None:
    state["supports"]["linear1.weight"] = Support.full((16, 64)).state()


def damage_structure(state: dict[str, Any]) -> None:
    state["supports"] = [1, 2]


@pytest.mark.parametrize("damage", [damage_name, damage_extra, damage_shape, damage_count, damage_structure])
def test_a_damaged_first_support_is_refused_and_can_be_deleted(
    make: Make, damage: Callable[[dict[str, Any]], None]
) -> None:
    config = make(method="snip")
    interrupt(config, 11)
    path = Path(str(config.out)) / "first-support.safetensors"
    contents = load(path)
    state = {"supports": dict(contents.state["supports"]), "state": None}
    damage(state)
    save(path, state, kind="first-support", metadata=contents.metadata)
    with pytest.raises(CheckpointError, match=rf"{path}.* delete it to find the first support again") as caught:
        train(config, resume=True)
    assert "\n" not in str(caught.value)
    path.unlink()
    train(config, resume=True)


def test_a_first_support_of_another_run_kind_or_length_is_refused(make: Make) -> None:
    one, other = make("one", method="snip"), make("other", method="snip", seed=1)
    interrupt(one, 11)
    interrupt(other, 11)
    path, theirs = (Path(str(config.out)) / "first-support.safetensors" for config in (one, other))
    whole = path.read_bytes()
    for content, message in (
        (theirs.read_bytes(), "is of a run with another config"),
        ((path.parent / "training.safetensors").read_bytes(), "is a training file"),
        (whole[:-9], "no whole safetensors file"),
        (b"", "no whole safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{path}.*{message}.* delete it to find the first support again"):
            train(one, resume=True)
    path.write_bytes(whole)
    train(one, resume=True)


def test_figures_that_cannot_be_told_lose_no_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise ConfigError("no flow")

    monkeypatch.setattr(first_support, "effective_counts", fails)
    result = train(make(method="snip"))
    assert result.first_support == {"kept": result.counts["active"], "on_paths": None, "empty": []}


def test_the_result_tells_of_the_first_support_and_old_results_still_load(make: Make) -> None:
    config = make(method="snip", control="shuffle", kept_weights="fan-in")
    result = train(config)
    assert result.first_support is not None
    assert 0 < result.first_support["on_paths"] <= result.first_support["kept"] == result.counts["active"]
    assert result.title == "snip (shuffle, kept weights fan-in)"
    assert result.title in (Path(str(config.out)) / "report.html").read_text()
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    old = {key: value for key, value in result.to_dict().items() if key not in ("first_support", "notes")}
    assert Result.from_dict(old).first_support is None
    plain = train(make("plain"))
    assert (plain.first_support, plain.notes, plain.title) == (None, [], "set")


def test_weights_are_not_moved_again_when_they_come_from_a_checkpoint(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid() -> None:
        monkeypatch.setattr(first_support, "approximate_isometry", lambda *arguments: pytest.fail("moved again"))

    assert_continues_exactly(make, {"method": "snip", "kept_weights": "isometry"}, 11, meantime=forbid)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_network_that_is_cut_is_told_of_once_and_in_the_result(make: Make, *, resumed: bool) -> None:
    config = make(method="magnitude", density=0.004, args={"allow_collapse": True})
    with pytest.warns(UserWarning, match="no path") as told, contextlib.suppress(Interrupted):
        train(config, progress=signal_at(11) if resumed else None)
    assert len(told) == 1
    result = train(config, resume=True)  # tells no more: warnings are errors here
    assert len(result.notes) == 1
    assert "\n" not in result.notes[0]
    assert result.first_support is not None
    assert result.first_support["on_paths"] == 0


def with_args(name: str) -> dict[str, Any]:
    """Arguments with which a method runs 20 steps."""
    known = method_parameters(name)
    return {key: value for key, value in {"every": 5, "rounds": 2, "grace": 0}.items() if key in known}


STARTS = [
    (name, values)
    for name in REGISTRY
    for values in ({"control": "shuffle"}, {"control": "reinit"}, {"args": {"init": "magnitude:scope=layer"}})
    if "args" not in values or "init" in method_parameters(name)
]


@pytest.mark.parametrize(("name", "values"), STARTS, ids=str)
def test_every_method_starts_from_every_first_support_or_says_why_not(
    make: Make, name: str, values: dict[str, Any]
) -> None:
    density = 0.25 if name in ("ste", "sr-ste") else 0.3
    config = make(method=name, density=density, **values | {"args": with_args(name) | values.get("args", {})})
    method = build_method(config)
    if isinstance(method, Tickets):
        return  # trains before it has a ticket: see above
    if not isinstance(method, Method) or method.starts_dense:
        with pytest.raises(ConfigError, match=r"no first support|without a first support"):
            make_plan(config)
        return
    parts = built(config)
    plan = make_plan(config)
    assert parts.sparsifier is not None
    supports = parts.sparsifier.supports
    Path(str(config.out)).mkdir()
    kept = first_support.keep(plan.config, plan.method, supports, [])
    again = build_parts(plan).sparsifier
    assert again is not None
    assert again.supports == supports
    assert kept.supports in ({}, supports)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_weights_are_scored_ends_the_run_at_once_and_leaves_nothing(
    make: Make, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, real = list[int](), foresight.search._select

    def select(*arguments: Any, **options: Any) -> Any:
        rounds.append(1)
        if len(rounds) == 3:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    monkeypatch.setattr(foresight.search, "_select", select)
    before = signal.getsignal(number)
    config = make(method="synflow", args={"rounds": 10_000})
    with pytest.raises(KeyboardInterrupt, match="stopped before training") as caught:
        train(config)
    assert not isinstance(caught.value, Interrupted)
    assert len(rounds) == 3
    assert signal.getsignal(number) == before
    assert not Path(str(config.out)).exists()


def test_folders_of_checked_runs_differ_by_default(make: Make) -> None:
    plain = make(method="snip", out=None)
    checks = {"control": "reinit", "kept_weights": "isometry", "mask_data": "digits"}
    assert str(default_folder(plain)) == "runs/digits-mlp-snip-0.2-0"
    assert str(default_folder(dataclasses.replace(plain, **checks))) == (
        "runs/digits-mlp-snip-0.2-reinit-isometry-on-digits-0"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synflow:2,rounds=3", "synflow is given 'rounds' twice"),
        ("synflow:rounds=2,rounds=3", "synflow is given 'rounds' twice"),
        ("random:scope=layer", "random has no argument 'scope'; it takes none"),
        ("", "expected 'random', 'magnitude', 'snip'"),
        (3, "expected 'random', 'magnitude', 'snip'"),
        ([1], "expected 'random', 'magnitude', 'snip'"),
    ],
)
def test_what_names_no_init_is_refused(text: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text, Init, "init")
    assert "Score" not in str(caught.value)
    assert "Given" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mask_data.train_subset=300", "mask_data.train_subset is given without a data set .* --mask-data digits"),
        ("mask_data_options.pool=2", "write mask_data.pool"),
        ("model_options.hidden=2", "write model.hidden"),
        ("mask_dat.pool=2", "mask_data.<option>"),
    ],
)
def test_settings_of_mask_data_are_explained(make: Make, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(make(method="snip").with_settings([setting]))


def test_pooling_is_proposed_to_data_that_has_it(make: Make) -> None:
    for name, proposed in (("mnist5k", True), ("mnist1d", False)):
        assert ("pool" in data.data_options(name)) is proposed
        with pytest.raises(ConfigError) as caught:
            built(make(method="snip", mask_data=name))
        assert ("mask_data.pool=2" in str(caught.value)) is proposed


@pytest.mark.parametrize(("name", "hint"), [("iter_snip", "did you mean 'iter-snip'?"), ("random", "static")])
def test_names_that_are_nearly_methods_are_told(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        method_parameters(name)
    assert hint in str(caught.value)
