"""Runs whose sparse weights are computed with by sparse or hybrid layers: the same training, told in the report."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.checkpoint import load_model
from gossamer.errors import CheckpointError, ConfigError
from gossamer.experiments import models
from gossamer.experiments.config import RunConfig
from gossamer.experiments.memory import PeakMemory
from gossamer.experiments.optimizers import build_optimizers
from gossamer.experiments.runs import Result, RunFolder
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.experiments.train import train
from gossamer.methods import REGISTRY
from gossamer.nn import measure
from gossamer.nn.measure import Verdict

from .tiny import Make, assert_continues_exactly, rows_of

FIGURES = ("step", "density", "counts", "rewirings", "flips")


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], bool]:
    """Weight shape -> whether a sparse layer "was measured" to be faster; others are not."""
    faster: dict[tuple[int, ...], bool] = {}

    def judge(shape: Any, count: int, *args: Any, **named: Any) -> Verdict:
        wins = faster.get(shape.weight, False)
        return Verdict(
            wins, 2.0 if wins else 0.83, "2.00x dense fp32" if wins else "no speed-up here: 0.83x dense fp32"
        )

    monkeypatch.setattr(measure, "judge", judge)
    return faster


def _layouts(result: Result) -> dict[str, str]:
    return {choice["weight"]: choice["layout"] for choice in result.execution}


# -- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "args", "execution"),
    [
        ("set", {"every": 5}, "sparse"),
        ("rigl", {"every": 5}, "sparse"),
        ("static", {}, "sparse"),
        ("snip", {}, "sparse"),
        ("rewire", {"every": 5}, "hybrid"),
    ],
)
def test_masked_and_executed_runs_train_alike(make: Make, method: str, args: dict[str, Any], execution: str) -> None:
    values: dict[str, Any] = {"method": method, "args": args, "steps": 12, "weight_decay": 0.01}
    masked = train(make("masked", **values))
    other = train(make("other", **values, execution=execution))
    assert set(_layouts(other).values()) == {execution}
    assert other.counts == masked.counts
    assert other.density == masked.density
    assert other.metric["value"] == pytest.approx(masked.metric["value"], abs=2.0)
    assert other.final_loss == pytest.approx(masked.final_loss, rel=1e-3)
    rows = [[{key: row[key] for key in FIGURES} for row in rows_of(make(name))] for name in ("masked", "other")]
    assert rows[0] == rows[1]


def test_weights_of_sparse_layers_are_decayed_like_others(make: Make) -> None:
    decays = []
    for execution in ("masked", "sparse"):
        config = make(execution, execution=execution, weight_decay=0.25)
        parts = build_parts(make_plan(config))
        decays.append(
            [[(p.numel() > 100, g["weight_decay"]) for p in g["params"]] for g in parts.optimizers[0].param_groups]
        )
        assert len(parts.optimizers) == 1
    masked, sparse = decays
    assert [len(group) for group in masked] == [len(group) for group in sparse]
    plain = build_optimizers(torch.nn.Linear(3, 3), make_plan(make(weight_decay=0.25)).config)[0]
    assert [group["weight_decay"] for group in plain.param_groups] == [0.25, 0.0]


@pytest.mark.parametrize("execution", ["sparse", "auto"])
def test_interrupted_runs_continue_exactly(make: Make, verdicts: dict[tuple[int, ...], bool], execution: str) -> None:
    verdicts[16, 64] = True
    values: dict[str, Any] = {"execution": execution, "method": "rigl", "args": {"every": 3}, "optimizer": "adamw"}
    # verdicts.clear: the machine is now a slower one, what was chosen stays
    expected, result = assert_continues_exactly(make, values, 8, meantime=verdicts.clear)
    assert result.execution == expected.execution


# -- what is chosen, and told ----------------------------------------------------------------------------------------


def test_auto_swaps_what_was_measured_to_be_faster(make: Make, verdicts: dict[tuple[int, ...], bool]) -> None:
    verdicts[16, 64] = True
    config = make(execution="auto")
    result = train(config)
    assert sorted(_layouts(result).values()) == ["masked", "sparse"]
    whys = {choice["layout"]: choice["why"] for choice in result.execution}
    assert whys == {"sparse": "2.00x dense fp32", "masked": "no speed-up here: 0.83x dense fp32"}
    report = (Path(str(config.out)) / "report.html").read_text()
    assert "no speed-up here: 0.83x dense fp32" in report
    kept = json.loads((Path(str(config.out)) / "execution.json").read_text())
    assert kept == list(result.execution)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"method": "str", "density": 0.5}, "trains dense weights"),
        ({"method": "cs", "density": 0.5}, "trains dense weights"),
        ({"method": "dense"}, "has no zeros to leave out"),
        ({"method": "static", "optimizer": "muon"}, "muon orthogonalises"),
    ],
)
def test_auto_falls_back_and_sparse_is_refused(
    make: Make, verdicts: dict[tuple[int, ...], bool], values: dict[str, Any], why: str
) -> None:
    asked = make("asked", **values, execution="sparse", steps=2)
    with pytest.raises(ConfigError, match=why):
        train(asked)
    assert not Path(str(asked.out)).exists()
    result = train(make("auto", **values, execution="auto", steps=2))
    assert set(_layouts(result).values()) == {"masked"}
    assert why in result.execution[0]["why"]


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (
            "rewire",
            "inactive weights keep a value, and a sparse layer has none; use --execution hybrid, masked, or auto",
        ),
        ("snfs", "use dsr or rigl, or --execution hybrid, masked, or auto"),
        ("deepr", "keeps a sign of every inactive weight"),
        ("srigl", "its supports have the structure"),
        ("rebalance", "or at the weight's shape"),
    ],
)
def test_what_sparse_layers_do_not_run_hybrid_ones_do(
    make: Make, verdicts: dict[tuple[int, ...], bool], method: str, why: str
) -> None:
    values: dict[str, Any] = {"method": method, "steps": 2}
    with pytest.raises(ConfigError, match=re.escape(why)) as caught:
        train(make("sparse", **values, execution="sparse"))
    assert "convert(" not in str(caught.value)
    verdicts[16, 64] = True
    assert sorted(_layouts(train(make("auto", **values, execution="auto"))).values()) == ["hybrid", "masked"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_trains(make: Make, name: str) -> None:
    parameters = inspect.signature(REGISTRY[name].build).parameters
    args: dict[str, Any] = {"levels": 2} if name == "lottery" else {"every": 4} if "every" in parameters else {}
    result = train(make(method=name, density=0.5, args=args, steps=8, eval_every=4, optimizer="adamw"))
    assert 0 < result.counts["active"] < result.counts["eligible"]


def test_methods_that_start_dense_are_judged_by_their_last_density(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def judge(shape: Any, count: int, *args: Any, **named: Any) -> Verdict:
        shares.append(count / shape.numel)
        return Verdict(True, 2.0, "2.00x dense fp32")

    monkeypatch.setattr(measure, "judge", judge)
    values: dict[str, Any] = {"method": "gmp", "args": {"every": 3}, "density": 0.1, "execution": "auto"}
    result, _ = assert_continues_exactly(make, values, 8)
    assert all(share < 0.5 for share in shares)
    assert "at its last density 0." in result.execution[0]["why"]


def test_other_devices_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.experiments.setup.check_device", lambda device: None)
    with pytest.raises(ConfigError, match="compute on the CPU, not on 'cuda'"):
        make_plan(make(execution="sparse", device="cuda"))


def test_unknown_execution_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="execution"):
        make(execution="fast")


def test_the_folder_says_how_it_is_executed() -> None:
    plan = make_plan(RunConfig(data="digits", model="mlp", method="set", density=0.1, execution="sparse"))
    assert plan.config.out == "runs/digits-mlp-set-0.1-sparse-0"


def test_a_damaged_choice_is_told(make: Make, verdicts: dict[tuple[int, ...], bool]) -> None:
    config = make(execution="auto")
    train(config)
    folder = RunFolder(Path(str(config.out)))
    folder.result_file.unlink()
    (folder.path / "execution.json").write_text("{")
    with pytest.raises(CheckpointError, match="does not say how the run was executed"):
        train(config, resume=True)
    (folder.path / "execution.json").write_text('[{"weight": "fc9.weight", "layout": "sparse", "why": ""}]')
    with pytest.raises(CheckpointError, match=r"names 'fc9\.weight'"):
        train(config, resume=True)


def test_runs_of_earlier_versions_can_be_resumed(make: Make) -> None:
    config = make()
    train(config)
    folder = RunFolder(Path(str(config.out)))
    lines = folder.config_file.read_text().splitlines()
    folder.config_file.write_text("\n".join(line for line in lines if not line.startswith("execution")) + "\n")
    train(config, resume=True)


# -- figures ---------------------------------------------------------------------------------------------------------


def test_reports_hold_costs_time_and_memory(make: Make) -> None:
    config = make(method="rigl", args={"every": 5}, execution="sparse")
    result = train(config)
    assert result.ledger is not None
    totals = result.ledger["totals"]
    assert totals["flops"] < totals["flops_dense"]
    assert totals["bytes_executed"] < 2 * totals["bytes_dense"]
    phases = next(iter(result.ledger["layers"].values()))["phases"]
    assert phases["dense-gradient step"][1] > 0
    assert result.machine["step_seconds"] > 0  # type: ignore[operator]
    assert "FLOPs of the training" in (Path(str(config.out)) / "report.html").read_text()
    assert json.loads(RunFolder(Path(str(config.out))).result_file.read_text())["ledger"] == result.ledger


def test_the_model_file_of_a_sparse_run_loads_into_a_dense_model(make: Make) -> None:
    config = make(execution="sparse")
    train(config)
    plan = make_plan(config)
    model = models.build(config.model, plan.dataset, **config.model_options)
    load_model(RunFolder(Path(str(config.out))).model_file, model)
    weights = [p for p in model.parameters() if p.ndim == 2]
    assert all(bool((weight == 0).any()) for weight in weights)


def test_peak_memory_counts_from_its_start() -> None:
    first = PeakMemory("cpu")
    if first.bytes is None:
        pytest.skip("the system does not tell a process's peak")
    held = torch.ones(64 << 20, dtype=torch.uint8)  # above what malloc ever takes from memory it has already
    assert first.bytes >= held.nbytes
    del held
    assert PeakMemory("cpu").bytes < 8 << 20  # type: ignore[operator]
