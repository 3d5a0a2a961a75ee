"""Runs whose weights move in a random subspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.checkpoint import load_model
from gossamer.errors import ConfigError
from gossamer.experiments.config import RunConfig
from gossamer.experiments.models import build
from gossamer.experiments.optimizers import build_optimizers
from gossamer.experiments.recipes import default_folder
from gossamer.experiments.runs import RunFolder
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.experiments.study import Row, Study, lines, run_study
from gossamer.experiments.tasks import evaluate
from gossamer.experiments.train import train
from gossamer.subspace import Disjoint, SubspaceModel

from .tiny import Make, assert_continues_exactly, model_of

PRUNED = {"subspace": 100, "projection": "disjoint:equal_per_layer", "origin": "zero", "freeze": ["norm"]}
COUNTS = ("weights", "other weights", "alpha", "norm", "bias", "other")


def subspace_of(config: RunConfig) -> SubspaceModel:
    model = build_parts(make_plan(config)).model
    assert isinstance(model, SubspaceModel)
    return model


# -- laws --------------------------------------------------------------------------------------------------------------


def test_a_config_says_which_subspace_and_reads_it_back() -> None:
    config = RunConfig(data="digits", model="mlp").with_settings(
        ["subspace=500", "projection=disjoint:erk", "origin=zero"]
    )
    assert config.projection == Disjoint("erk")
    plain = config.to_dict()
    assert (plain["subspace"], plain["projection"], plain["origin"]) == (500, "disjoint:erk", "zero")
    assert RunConfig.from_dict(plain) == config
    assert default_folder(config) == Path("runs/digits-mlp-dense-subspace-500-disjoint:erk-from-zero-0")


def test_only_theta_trains_and_starts_at_the_initial_weights(make: Make) -> None:
    model = subspace_of(make(method="dense", subspace=50))
    plain = build_parts(make_plan(make(method="dense"))).model
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["theta"]
    assert not bool(model.theta.any())
    weights = model.weights()
    assert all(torch.equal(weights[name], p) for name, p in plain.named_parameters())


def test_the_seed_draws_the_directions(make: Make) -> None:
    theta = torch.ones(50)
    one, again, other = (
        subspace_of(make(method="dense", subspace=50, seed=seed)).embedding(theta) for seed in (3, 3, 4)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_theta_is_decayed_as_the_weights_that_it_stands_for(make: Make) -> None:
    config = make_plan(make(method="dense", subspace=50, weight_decay=0.1)).config
    (optimizer,) = build_optimizers(subspace_of(config), config)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 0.1)]


def test_the_file_of_a_run_holds_the_plain_model_as_it_was_measured(make: Make) -> None:
    config = make(method="dense", subspace=50)
    result = train(config)
    plan = make_plan(config)
    model = build(plan.config.model, plan.dataset, **plan.config.model_options)
    load_model(RunFolder(Path(str(config.out))).model_file, model)
    assert evaluate(model, *plan.dataset.test.whole()).accuracy == result.metric["value"]


def test_all_that_trains_is_counted(make: Make) -> None:
    result = train(make(method="dense", subspace=50))
    assert result.trained == dict.fromkeys(COUNTS, 0) | {"theta": 50}
    assert result.counts["active"] == result.counts["eligible"] == 1184
    assert result.ledger is None
    assert result.title == "dense (subspace 50 fastfood from init)"
    assert (Path(str(result.config["out"])) / "report.html").exists()


def test_from_zero_a_disjoint_subspace_is_a_sparse_network(make: Make) -> None:
    config = make("pruned", method="dense", model_options={"hidden": [16], "batch_norm": False}, **PRUNED)
    result = train(config)
    held = load_model(RunFolder(Path(str(config.out))).model_file)
    assert result.trained["theta"] == sum(int(tensor.count_nonzero()) for tensor in held.values()) == 100
    weights = [tensor for tensor in held.values() if tensor.ndim == 2]
    assert result.counts["active"] == sum(int(tensor.count_nonzero()) for tensor in weights)
    assert result.density["achieved"] == result.counts["active"] / 1184


@pytest.mark.parametrize(
    "values",
    [{"subspace": 50}, {"subspace": 50, "projection": "sparse", "amp": "bf16"}, PRUNED],
    ids=["fastfood", "sparse", "pruned"],
)
def test_interrupted_runs_continue_exactly(make: Make, values: dict[str, Any]) -> None:
    assert_continues_exactly(make, {**values, "method": "dense", "optimizer": "adamw"}, 8)


def test_a_run_killed_behind_its_last_step_ends_as_it_would_have(make: Make) -> None:
    config = make(method="dense", subspace=50)
    expected, written = train(config), model_of(config)
    RunFolder(Path(str(config.out))).result_file.unlink()
    assert train(config, resume=True).metric == expected.metric
    assert model_of(config) == written


def test_runs_of_earlier_versions_resume(make: Make) -> None:
    config = make(method="static", args={}, steps=2)
    train(config)
    file = RunFolder(Path(str(config.out))).config_file
    told = file.read_text().splitlines()
    old = [line for line in told if line.split(":")[0] not in ("subspace", "projection", "origin")]
    assert len(old) == len(told) - 3
    file.write_text("\n".join(old) + "\n")
    train(config, resume=True)


def test_rows_of_a_study_differ_in_it(tmp_path: Path) -> None:
    base = {"data": "digits", "model": "mlp", "model_options": {"hidden": [8]}, "steps": 4, "threads": 1}
    rows = (
        Row("dense", "dense"),
        Row("k=20", "dense", settings={"subspace": 20}),
        Row(
            "pruned", "dense", settings={"subspace": 20, "projection": "disjoint", "origin": "zero", "freeze": ["norm"]}
        ),
    )
    outcome = run_study(Study("subspaces", base, rows, (0.2,), (0,)), tmp_path)
    assert not outcome.failures
    shown = {line.label: line for line in lines(outcome)}
    assert [shown[label].others for label in ("k=20", "pruned")] == [20, 20]
    assert [shown[label].f for label in shown] == [1.0, None, None]
    assert all(line.with_others for line in lines(outcome))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"subspace": 0}, "subspace = 0: expected at least 1"),
        ({"subspace": 10**6}, "subspace = 1000000: dimension is 1000000; expected a whole number from 1 to 1226"),
        ({"projection": "dens", "subspace": 5}, "projection = 'dens': unknown 'dens'; did you mean 'dense'"),
        ({"projection": "dense"}, "projection = 'dense' is of a subspace, and the run has none; add e.g. --subspace"),
        ({"origin": "zero"}, "origin = 'zero' is of a subspace"),
        ({"subspace": 5, "origin": "zero"}, "with projection = 'fastfood' starts with all weights at zero"),
        ({**PRUNED, "freeze": []}, "scales of normalisation layers to zero, too, .* add --freeze norm"),
        ({"subspace": 5, "method": "set"}, "method 'set' has none to choose; use --method dense"),
        ({"subspace": 5, "method": "small", "density": 0.2}, "method 'small' has none to choose"),
        ({"subspace": 5, "offset": "dct", "method": "static"}, "start at zero on offset = 'dct'; leave one out"),
        ({"subspace": 5, "execution": "auto"}, "so execution = 'auto' gains nothing; use masked"),
        ({"subspace": 5, "optimizer": "muon"}, "optimizer muon acts on hidden 2-D weights and the model has none"),
    ],
)
def test_refusals(make: Make, values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        train(make(**{"method": "dense", **values}))
    assert not Path(str(make().out)).exists()


def test_no_sweep_chooses_the_dimension() -> None:
    values = {
        "name": "swept",
        "base": {"data": "digits", "model": "mlp"},
        "densities": [0.2],
        "seeds": [0],
        "tune": {"seeds": [1], "budget": 2},
        "rows": [{"label": "k", "method": "dense", "sweep": {"subspace": [5, 10]}}],
    }
    with pytest.raises(ConfigError, match="row 'k' sweeps 'subspace', which no sweep can choose"):
        Study.from_dict(values)
