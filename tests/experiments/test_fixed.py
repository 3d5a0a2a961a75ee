"""Runs with an offset under their sparse weights, and with parameters that do not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.errors import ConfigError
from gossamer.experiments import setup
from gossamer.experiments.config import RunConfig
from gossamer.experiments.fixed import NORMS
from gossamer.experiments.recipes import default_folder
from gossamer.experiments.runs import RunFolder
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.experiments.study import Row, Study, lines, run_study
from gossamer.experiments.train import train
from gossamer.nn import OffsetConv2d, OffsetLinear
from gossamer.offsets import BlockDCT

from .tiny import Make, assert_continues_exactly

STATIC = {"method": "static", "args": {"allocation": "equal_per_layer"}}


def offsets_of(model: torch.nn.Module) -> dict[str, OffsetLinear | OffsetConv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, OffsetLinear | OffsetConv2d)}


# -- laws --------------------------------------------------------------------------------------------------------------


def test_a_config_says_what_is_fixed_and_reads_it_back() -> None:
    config = RunConfig(
        data="digits", model="mlp", method="static", density=0.1, offset="block-dct:8", alpha=0.5, freeze="norm,alpha"
    )  # type: ignore[arg-type]
    assert config.offset == BlockDCT(8)
    assert config.freeze == ("norm", "alpha")
    plain = config.to_dict()
    assert (plain["offset"], plain["alpha"], plain["freeze"]) == ("block-dct:block=8", 0.5, ["norm", "alpha"])
    assert RunConfig.from_dict(plain) == config
    assert config.with_settings(["offset=dct", "alpha=1"]).to_dict()["offset"] == "dct"
    name = "digits-mlp-static-0.1-block-dct:block=8-frozen-norm-frozen-alpha-0"
    assert default_folder(config) == Path("runs") / name


def test_weights_start_at_zero_on_their_offset(make: Make) -> None:
    parts = build_parts(make_plan(make(**STATIC, offset="signed-dct", alpha=0.5)))
    layers = offsets_of(parts.model)
    assert sorted(layers) == ["head", "linear1"]
    assert parts.sparsifier is not None
    assert list(parts.sparsifier.supports) == ["linear1.sparse.weight", "head.sparse.weight"]
    assert all(not bool(layer.sparse.weight.any()) for layer in layers.values())
    assert all(layer.alpha.item() == 0.5 for layer in layers.values())
    seeds = [int(layer.offset_seed) for layer in layers.values()]
    again = offsets_of(build_parts(make_plan(make(**STATIC, offset="signed-dct", seed=1))).model)
    assert len({*seeds, *(int(layer.offset_seed) for layer in again.values())}) == 4


def test_entries_off_the_support_stay_zero_and_the_others_train(make: Make) -> None:
    config = make(**STATIC, offset="dct", optimizer="adamw", weight_decay=0.01)
    parts = setup.build_parts(make_plan(config))
    result = train(config)
    assert parts.sparsifier is not None
    assert result.counts["active"] == sum(support.count for support in parts.sparsifier.supports.values())
    assert result.trained == {
        "weights": result.counts["active"],
        "other weights": 0,
        "alpha": 2,
        "norm": 32,
        "bias": 10,
        "other": 0,
    }
    assert result.title == "static (offset dct)"


def test_nothing_is_added_to_the_offset_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[setup.Parts] = []
    monkeypatch.setattr(
        "gossamer.experiments.train.build_parts", lambda plan: kept.append(build_parts(plan)) or kept[-1]
    )
    config = make(method="offset-only", density=None, offset="dct", weight_decay=0.1)
    result = train(config)
    model = kept[-1].model
    assert all(not bool(layer.sparse.weight.any()) for layer in offsets_of(model).values())
    assert all(layer.alpha.item() != 1 for layer in offsets_of(model).values())
    assert result.density == {"asked": 0.0, "achieved": 0.0}
    assert (result.counts["active"], result.counts["eligible"]) == (0, 1184)
    assert result.trained == {"weights": 0, "other weights": 0, "alpha": 2, "norm": 32, "bias": 10, "other": 0}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_frozen_does_not_train(make: Make, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    kept: list[setup.Parts] = []
    monkeypatch.setattr(
        "gossamer.experiments.train.build_parts", lambda plan: kept.append(build_parts(plan)) or kept[-1]
    )
    config = make(**STATIC, offset="dct", freeze="norm,alpha", optimizer=optimizer)
    result = train(config)
    model = kept[-1].model
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    assert norms
    assert all(bool((m.weight == 1).all()) and not bool(m.bias.any()) for m in norms)
    assert all(layer.alpha.item() == 1 for layer in offsets_of(model).values())
    assert (result.trained["norm"], result.trained["alpha"]) == (0, 0)
    assert result.title == "static (offset dct, frozen norm, frozen alpha)"


@pytest.mark.parametrize(
    "values",
    [
        {"method": "rigl", "args": {"every": 3}, "offset": "dct"},
        {"method": "snip", "offset": "signed-dct", "args": {"batches": 2}},
        {"method": "offset-only", "density": None, "offset": "dct"},
        {"method": "rigl", "args": {"every": 3}, "offset": "dct", "execution": "sparse"},
        {"method": "lottery", "args": {"levels": 1, "rewind": 2}, "offset": "dct"},
    ],
    ids=["rigl", "snip", "offset-only", "sparse", "lottery"],
)
def test_interrupted_runs_continue_exactly(make: Make, values: dict[str, Any]) -> None:
    assert_continues_exactly(make, {**values, "optimizer": "adamw"}, 8)


@pytest.mark.parametrize("execution", ["sparse", "hybrid"])
def test_masked_and_executed_runs_train_alike(make: Make, execution: str) -> None:
    values: dict[str, Any] = {"method": "rigl", "args": {"every": 3}, "offset": "dct", "steps": 12}
    masked, other = train(make("masked", **values)), train(make("other", **values, execution=execution))
    assert {choice["layout"] for choice in other.execution} == {execution}
    assert other.trained == masked.trained
    assert other.final_loss == pytest.approx(masked.final_loss, rel=1e-3)


def test_equal_per_filter_gives_every_filter_as_many(make: Make) -> None:
    parts = build_parts(make_plan(make(method="static", args={"allocation": "equal_per_filter"}, offset="dct")))
    assert parts.sparsifier is not None
    for support in parts.sparsifier.supports.values():
        per_filter = support.mask.sum(1)
        assert int(per_filter.max() - per_filter.min()) <= 1


def test_convolutions_and_chosen_targets(make: Make) -> None:
    config = make(model="cnn", method="static", args={}, offset="dct", targets="layer*")
    parts = build_parts(make_plan(config))
    assert len(offsets_of(parts.model)) == 5
    assert isinstance(parts.model.get_submodule("head.linear"), torch.nn.Linear)
    assert parts.sparsifier is not None
    assert all(name.endswith(".sparse.weight") for name in parts.sparsifier.supports)


def test_a_fixup_net_has_the_alphas_of_its_initialisation(make: Make) -> None:
    values: dict[str, Any] = {"model": "fixup8", "method": "static", "args": {}, "offset": "dct"}
    once, twice = (offsets_of(build_parts(make_plan(make(**values, alpha=alpha))).model) for alpha in (1, 2))
    assert {name for name, layer in once.items() if not layer.alpha.item()} == {
        *(f"stage{number}_1.conv2" for number in (1, 2, 3)),
        "head.linear",
    }
    assert once["stem"].alpha.item() == 1
    assert 0 < once["stage1_1.conv1"].alpha.item() < 1
    assert {name: 2 * layer.alpha.item() for name, layer in once.items()} == {
        name: layer.alpha.item() for name, layer in twice.items()
    }


def test_weights_of_too_few_entries_to_rewire_are_told(make: Make) -> None:
    values: dict[str, Any] = {"method": "rigl", "offset": "dct", "density": 6 / 1184, "steps": 10}
    args = {"every": 3, "allocation": "equal_per_layer"}
    with pytest.warns(UserWarning, match=r"rigl drops at most 0\.\d+ of .*linear1\.sparse\.weight \(3\), head\.sparse"):
        result = train(make(**values, args=args))
    assert ["never rewired" in note for note in result.notes] == [True]
    assert not train(make("other", **values, args={**args, "fraction": 0.9})).notes


def test_weights_of_too_few_units_to_rewire_are_told(make: Make) -> None:
    """Of 16 x 64 at density .25, phi = .2 drops 51 entries: no channel of 64, and blocks of 16."""
    values: dict[str, Any] = {"method": "rigl", "density": 0.25, "steps": 10, "targets": "linear*"}
    args = {"every": 3, "allocation": "uniform"}
    few = r"rounded down to whole units \(output channels.*linear1\.weight \(256\)"
    with pytest.warns(UserWarning, match=few) as told:
        build_parts(make_plan(make(**values, args={**args, "structure": "channels", "fraction": 0.2})))
    assert len(told) == 1
    assert str(told[0].message).endswith("use a larger fraction")
    build_parts(make_plan(make(**values, args={**args, "structure": "block:4", "fraction": 0.2})))


# -- in a study --------------------------------------------------------------------------------------------------------


def test_a_study_runs_what_has_no_density_once_per_seed(tmp_path: Path) -> None:
    base = {"data": "digits", "model": "mlp", "model_options": {"hidden": [8]}, "steps": 4, "threads": 1}
    rows = (
        Row("dense", "dense"),
        Row("dense, frozen norm", "dense", settings={"freeze": ["norm"]}),
        Row("SMALL", "small"),
        Row("P=0", "offset-only", settings={"offset": "dct"}),
        Row("DCTpS", "static", settings={"offset": "dct"}),
    )
    study = Study("offsets", base, rows, (0.2, 0.5), (0,))
    outcome = run_study(study, tmp_path)
    assert not outcome.failures
    assert [key[:2] for key in outcome.results] == [
        *(("dense", 1.0), ("dense, frozen norm", 1.0), ("SMALL", 0.2), ("SMALL", 0.5)),
        *(("P=0", 0.0), ("DCTpS", 0.2), ("DCTpS", 0.5)),
    ]
    shown = {(line.label, line.density): line for line in lines(outcome)}
    assert shown["dense", 1.0].f == 1.0
    assert shown["dense, frozen norm", 1.0].f is None
    assert (shown["P=0", 0.0].f, shown["P=0", 0.0].against["SMALL"]) == (None, None)
    others = [line.cells()[-2] for line in lines(outcome)]
    assert others == ["26", "10", "14", "18", "28", "28", "28"]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"offset": "dtc"}, "offset = 'dtc': unknown 'dtc'; did you mean 'dct'"),
        ({"offset": "block-dct:8,9"}, "block-dct takes 1 arguments at most"),
        ({"alpha": 0.5}, "alpha = 0.5 is of an offset, and the run has none; add e.g. --offset dct"),
        ({"alpha": "inf", "offset": "dct"}, "alpha = inf: expected a finite number"),
        ({"alpha": 1e60, "offset": "dct"}, "alpha = 1e.60: expected a finite number, at most 1e30 in size"),
        ({"freeze": "alpha"}, "freeze = 'alpha' is of an offset"),
        ({"freeze": "bias"}, "freeze = 'bias': expected 'norm', 'alpha'"),
        ({"method": "offset-only", "density": None}, "method 'offset-only' is of an offset, and the run has none"),
        (
            {"method": "offset-only", "density": 0.1, "offset": "dct"},
            "density = 0.1: expected none: offset-only trains",
        ),
        ({"method": "small", "offset": "dct"}, "the control 'small' is a plain narrower network"),
        ({"method": "str", "offset": "dct"}, "start at zero, so 'str' has nothing to work on"),
        ({"method": "static", "offset": "dct", "control": "reinit"}, "so 'reinit' has nothing to work on"),
        ({"method": "static", "offset": "dct", "kept_weights": "isometry"}, "so 'isometry' has nothing"),
        (
            {"method": "rewire", "offset": "dct", "args": {"every": 2}},
            "magnitude tells none of them apart; start method",
        ),
    ],
)
def test_refusals(make: Make, values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match="^" + why if why.startswith(("offset", "alpha", "freeze")) else why):
        train(make(**values))
    assert not (Path(make().out or "")).exists()


def test_layers_that_cannot_have_an_offset_are_named(make: Make) -> None:
    config = make(model="vit-tiny", method="static", args={}, offset="dct", targets="pos*")
    with pytest.raises(ConfigError, match=r"is the weight of a .*, and offsets are for linear layers and 2-D conv"):
        build_parts(make_plan(config))


def test_runs_of_earlier_versions_resume(make: Make) -> None:
    config = make(method="static", args={}, steps=2)
    train(config)
    folder = RunFolder(Path(str(config.out)))
    lines_ = folder.config_file.read_text().splitlines()
    old = [line for line in lines_ if line.split(":")[0] not in ("offset", "alpha", "freeze")]
    assert len(old) == len(lines_) - 3
    folder.config_file.write_text("\n".join(old) + "\n")
    train(config, resume=True)
