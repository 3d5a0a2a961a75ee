"""Run configs: typed reading, one-line errors with the nearest names, and recipes."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gossamer
from gossamer.errors import ConfigError
from gossamer.experiments.config import FIELDS, MAPPINGS, RunConfig, build_method, method_parameters, parse_targets
from gossamer.experiments.data import load
from gossamer.experiments.recipes import RECIPES, find_recipe, resolve
from gossamer.experiments.values import parse, spell
from gossamer.method import Exploit
from gossamer.methods import REGISTRY
from gossamer.topology import Cosine, Linear, Schedule

NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False))
NUMBER = bool | int | float | None
PARTS = st.sampled_from(
    [None, 0.5, gossamer.Reset(7), gossamer.Fix(0.25), gossamer.Regularize(0.5), Linear(0.3, 0.1, 2), Cosine(0.5)]
)
PART = float | Exploit | Schedule | None
TUPLES = st.lists(st.integers()).map(tuple)
VALUES = st.one_of(
    NUMBERS.map(lambda value: (value, NUMBER)),
    PARTS.map(lambda value: (value, PART)),
    TUPLES.map(lambda value: (value, tuple[int, ...])),
)


@given(VALUES)
def test_parse_undoes_spell(case: tuple[object, object]) -> None:
    value, kind = case
    assert parse(spell(value), kind, "x") == value
    assert type(parse(spell(value), kind, "x")) is type(value)


@given(VALUES)
def test_text_reads_like_the_value(case: tuple[object, object]) -> None:
    value, kind = case
    spelled = spell(value)
    text = ",".join(map(str, spelled)) if isinstance(spelled, list) else str(spelled)
    assert parse(text, kind, "x") == value


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("1", int | float, 1),
        ("1.0", int | float, 1.0),
        ("inf", int | float, math.inf),
        ("none", Exploit | None, None),
        ("reset:100", Exploit | None, gossamer.Reset(100)),
        ("reset", Exploit | None, gossamer.Reset()),
        ("fix:0.5", Exploit | None, gossamer.Fix(0.5)),
        ("regularize:2e-4", Exploit | None, gossamer.Regularize(2e-4)),
        ("linear:0.3,0,0,0.75", float | Schedule, Linear(0.3, 0.0, 0, 0.75)),
        ("cosine", Literal["cosine", "step"], "cosine"),
        ("yes", bool, True),
        ("none", tuple[float, ...], ()),
        ("", tuple[float, ...], ()),
    ],
)
def test_what_text_means(text: str, kind: object, expected: object) -> None:
    value = parse(text, kind, "x")
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"density": 0}, r"density = 0.0: expected a fraction kept"),
        ({"density": 1.5}, r"density = 1.5: expected a fraction kept"),
        ({"density": math.nan}, r"density = nan: expected a fraction kept"),
        ({"args": {1: 2}}, r"args has the key 1: expected names"),
        ({"density": "dense"}, r"density = 'dense': expected none or a number"),
        ({"steps": 0}, r"steps = 0: expected at least 1"),
        ({"steps": 1.5}, r"steps = 1.5: expected none or a whole number"),
        ({"lr": -1.0}, r"lr = -1.0: expected above 0"),
        ({"optimizer": "sdg"}, r"optimizer = 'sdg': expected none or 'sgd', 'adam', 'adamw', 'muon'"),
        ({"valid_fraction": 1}, r"valid_fraction = 1.0: expected in \[0, 1\)"),
        ({"steps": 5, "epochs": 1}, r"both steps and epochs are given"),
        ({"args": 3}, r"args = 3: expected a mapping"),
        ({"densty": 0.1}, r"unknown key 'densty' in the config; did you mean 'density'"),
        ({"model": None}, r"no model given: name one, e.g. --model mlp"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_dict({"data": "digits", "model": "mlp", **values})


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("rigle", {}, r"unknown method 'rigle'; did you mean 'rigl'"),
        ("rigl", {"evry": 3}, r"unknown option 'evry' of method rigl; did you mean 'every'"),
        ("dense", {"every": 3}, r"unknown option 'every' of method dense; it takes none"),
        ("rewire", {"exploit": "rest:3"}, r"exploit = 'rest:3': unknown 'rest'; did you mean 'reset'"),
        ("rewire", {"exploit": "reset:1,2"}, r"exploit = 'reset:1,2': reset takes 1 arguments at most"),
        ("rigl", {"fraction": "cosine"}, r"fraction = 'cosine': cosine needs start_value; write cosine:start_value"),
        ("rewire", {"scope": "all"}, r"scope = 'all': expected 'layer', 'global'"),
        ("rewire", {"every": "soon"}, r"every = 'soon': expected a whole number or a number"),
    ],
)
def test_bad_methods_are_named(method: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(RunConfig(data="digits", model="mlp", method=method, density=0.1, args=args))


def test_methods_need_a_density_and_dense_does_not() -> None:
    with pytest.raises(ConfigError, match="method 'set' needs the fraction kept"):
        build_method(RunConfig(data="digits", model="mlp", method="set"))
    assert build_method(RunConfig(data="digits", model="mlp")) is None


def test_settings_reach_method_then_run_then_options() -> None:
    base = RunConfig(data="digits", model="mlp", method="rewire", density=0.1)
    config = base.with_settings(
        ["every=10", "exploit=reset:5", "lr=0.2", "model.hidden=8,8", "data.train_subset=50", "scope=global"]
    )
    assert config.args == {"every": "10", "exploit": "reset:5", "scope": "global"}
    assert (config.lr, config.model_options, config.data_options) == (0.2, {"hidden": "8,8"}, {"train_subset": "50"})
    method = build_method(config)
    assert method is not None
    assert (method.clock.every, method.scope) == (10, "global")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("every", r"expected key=value"),
        ("evry=3", r"unknown key 'evry' for rewire; did you mean 'every'"),
        ("batchsize=3", r"unknown key 'batchsize' for rewire; did you mean 'batch_size'"),
        ("args=3", r"unknown key 'args'"),
        ("optimizer.x=3", r"unknown key 'optimizer.x'"),
    ],
)
def test_unknown_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(data="digits", model="mlp", method="rewire", density=0.1).with_settings([setting])


def test_every_argument_of_every_method_can_be_set_as_text() -> None:
    for name in REGISTRY:
        defaults = {key: spell(default) for key, (_, default) in method_parameters(name).items()}
        texts = [f"{key}={value}" for key, value in defaults.items()]
        config = RunConfig(data="digits", model="mlp", method=name, density=0.25).with_settings(texts)
        assert build_method(config) == REGISTRY[name].build(0.25)


def test_resolving_leaves_nothing_open_and_is_stable() -> None:
    dataset = load("digits")
    config = RunConfig(data="digits", model="mlp", method="rewire", density=0.1, args={"every": "10"}, epochs=2)
    resolved = resolve(config, dataset)
    open_fields = {name for name in FIELDS if getattr(resolved, name) is None}
    assert open_fields == {"targets", "epochs", "amp", "control", "kept_weights", "mask_data", "offset", "subspace"}
    assert resolved.args == {"every": 10}
    assert resolved.steps == round(2 * len(dataset.train) / resolved.batch_size)
    again = resolve(RunConfig.from_dict(resolved.to_dict()), dataset)
    assert again == resolved


def test_given_fields_win_over_the_recipe() -> None:
    given = {"steps": 3, "lr": 0.7, "clip": 0.0, "momentum": 0.0, "optimizer": "sgd", "threads": 2}
    resolved = resolve(RunConfig.from_dict({"data": "stdlib", "model": "gpt", **given}), load("digits"))
    assert {key: getattr(resolved, key) for key in given} == given


def test_recipes_match_the_documented_settings() -> None:
    m1d, lm = find_recipe("mnist1d", "mlp"), find_recipe("stdlib", "gpt")
    assert (m1d.steps, m1d.batch_size, m1d.optimizer, m1d.lr, m1d.weight_decay) == (2000, 100, "sgd", 0.3, 1e-4)
    assert (lm.steps, lm.batch_size, lm.optimizer, lm.lr, lm.sparse_lr, lm.beta2) == (
        800,
        8,
        "adamw",
        6e-3,
        12e-3,
        0.99,
    )
    assert find_recipe("cifar10", "resnet20") is RECIPES["*", "*"]
    dataset = load("digits")
    lr = {
        (method, density): resolve(RunConfig(data="stdlib", model="gpt", method=method, density=density), dataset).lr
        for method, density in (("dense", None), ("small", 0.1), ("rewire", 0.5), ("rewire", 0.1))
    }
    assert list(lr.values()) == [0.006, 0.012, 0.006, 0.012]


def test_another_optimizer_than_the_recipes_brings_its_own_rate() -> None:
    config = RunConfig(data="mnist1d", model="mlp", optimizer="adamw")
    assert resolve(config, load("digits")).lr == 1e-3


def test_targets_are_presets_or_globs() -> None:
    assert parse_targets(None) is None
    assert parse_targets("advances") == "advances"
    assert parse_targets("a.*, b.*") == ["a.*", "b.*"]


def test_mappings_are_no_flags() -> None:
    assert set(MAPPINGS) < set(FIELDS)
