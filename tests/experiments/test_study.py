"""Studies: the grid, its summary (hand-worked), resuming, and the shipped files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gossamer.errors import ConfigError
from gossamer.experiments import demo
from gossamer.experiments.config import build_method
from gossamer.experiments.runs import Result, read_config
from gossamer.experiments.study import Row, Study, main, print_lines, run_study, write_outcome
from gossamer.experiments.summary import markdown, spread, summarise

SHIPPED = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
BASE = {
    "data": "digits",
    "model": "mlp",
    "model_options": {"hidden": [16]},
    "steps": 4,
    "threads": 1,
    "valid_fraction": 0,
}


def _result(method: str, seed: int, value: float, *, higher: bool = True) -> Result:
    return Result(
        task="classification",
        data="digits",
        model="mlp",
        method=method,
        seed=seed,
        density={"asked": 0.1, "achieved": 0.1},
        counts={"active": 10, "eligible": 100, "total": 120},
        metric={"name": "accuracy" if higher else "bits/byte", "value": value, "higher_is_better": higher},
        final_loss=0.0,
        steps=4,
        seconds=2.0,
        checkpoint_bytes=1000,
        config={},
    )


def _grid(dense: list[float], small: list[float], rewire: list[float], *, higher: bool = True) -> dict[Any, Any]:
    rows = {("dense", 1.0): ("dense", dense), ("SMALL", 0.1): ("small", small), ("re", 0.1): ("rewire", rewire)}
    return {
        key: [_result(method, seed, value, higher=higher) for seed, value in enumerate(values)]
        for key, (method, values) in rows.items()
    }


def test_hand_worked_summary() -> None:
    dense, small, rewire = summarise(_grid([90, 92], [70, 74], [85, 91]))
    assert (dense.mean, dense.f, dense.vs_small) == (91, 1.0, None)
    assert (small.mean, small.f, small.vs_small) == (72, 0.0, None)
    assert rewire.mean == 88
    assert rewire.deviation == pytest.approx(18**0.5)
    assert rewire.vs_small == (16, pytest.approx(2**0.5))  # 15 and 17 at equal seeds
    assert rewire.f == pytest.approx(16 / 19)


def test_f_does_not_mind_the_sign_of_the_metric() -> None:
    up = summarise(_grid([90, 92], [70, 74], [85, 91]))[-1].f
    down = summarise(_grid([-90, -92], [-70, -74], [-85, -91], higher=False))[-1].f
    assert up == pytest.approx(down)


def test_only_seeds_that_all_have_count_for_f() -> None:
    line = summarise(_grid([90], [70, 74], [85, 91]))[-1]
    assert line.mean == 88
    assert line.f == pytest.approx(15 / 20)


def test_without_controls_there_is_no_f() -> None:
    grid = {("re", 0.1): _grid([], [], [85])[("re", 0.1)]}
    (line,) = summarise(grid)
    assert (line.f, line.vs_small, line.deviation) == (None, None, None)
    assert "| re | 0.1 | 85.00 |  |  | 10 | 1,000 |" in markdown([line])


@pytest.mark.parametrize("width", [40, 80])
def test_tables_fit_80_columns_and_are_never_cut(width: int) -> None:
    sizes = {"counts": {"active": 266_200, "eligible": 266_200, "total": 266_710}, "checkpoint_bytes": 1_234_567}
    density = {"asked": 0.05, "achieved": 0.04932}
    groups = {
        (label, 0.05): [replace(_result(method, s, v + s), density=density, **sizes) for s in (0, 2)]
        for label, method, v in (("SMALL", "small", 60.0), ("rewire Reset(1000)", "rewire", 70.52))
    }
    lines = summarise(groups)
    stream = io.StringIO()
    print_lines(Console(file=stream, width=width), "title", lines)
    shown = stream.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    for line in lines:
        (row,) = (text for text in shown if text.startswith(line.label))
        assert all(cell in row for cell in line.cells())
    assert lines[0].cells()[1] == "0.0493"


def test_spread_is_as_documented() -> None:
    assert (spread(1.005, 0.1), spread(-1.0, None, sign=True)) == ("1.00 ± 0.10", "-1.00")


def _tiny(**changes: Any) -> Study:
    rows = (Row("dense", "dense"), Row("SMALL", "small"), Row("RigL", "rigl", {"every": 2}, {"lr": 0.05}))
    return replace(Study("tiny", BASE, rows, (0.2, 0.4), (0, 1)), **changes)


def test_grid_is_rows_by_densities_by_seeds_with_dense_once(tmp_path: Path) -> None:
    runs = _tiny().runs(tmp_path)
    assert len(runs) == 2 + 4 + 4
    assert {key[1] for key in runs if key[0] == "dense"} == {1.0}
    config = runs["RigL", 0.4, 1]
    assert (config.method, config.density, config.seed, config.lr, config.args) == ("rigl", 0.4, 1, 0.05, {"every": 2})
    assert len({run.out for run in runs.values()}) == len(runs)


@pytest.mark.slow
def test_workers_and_one_process_agree_and_finished_runs_are_skipped(tmp_path: Path) -> None:
    study = _tiny(densities=(0.2,), seeds=(0,))
    here = run_study(study, tmp_path / "here")
    there = run_study(study, tmp_path / "there", workers=2)
    values = [[result.metric["value"] for result in out.results.values()] for out in (here, there)]
    losses = [[result.final_loss for result in out.results.values()] for out in (here, there)]
    assert values[0] == values[1]
    assert losses[0] == losses[1]
    steps: list[int] = []
    again = run_study(study, tmp_path / "here", progress=lambda key, update: steps.append(update.step))
    assert again == here
    assert steps == []


def test_a_failed_run_does_not_stop_the_rest(tmp_path: Path) -> None:
    bad = Row("bad", "rigl", {}, {"targets": "nothing.*"})
    outcome = run_study(_tiny(rows=(bad, Row("good", "static")), densities=(0.2,), seeds=(0,)), tmp_path)
    assert [key[0] for key in outcome.results] == ["good"]
    assert "matches no parameter" in outcome.failures["bad", 0.2, 0]
    write_outcome(_tiny(), outcome, tmp_path, "command")
    text = (tmp_path / "results.md").read_text()
    assert "Failed: bad, density 0.2, seed 0: target 'nothing.*'" in text
    raw = json.loads((tmp_path / "results.json").read_text())
    assert [run["label"] for run in raw["runs"]] == ["good"]


def test_main_runs_a_file_and_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.yaml"
    rows = [{"label": "dense", "method": "dense"}, {"label": "SMALL", "method": "small"}]
    file.write_text(json.dumps({"name": "s", "base": BASE, "rows": rows, "densities": [0.3], "seeds": [0, 1]}))
    tables = tmp_path / "tables"
    assert main([str(file), "--out", str(tmp_path / "out"), "--tables", str(tables)]) == 0
    shown = capsys.readouterr()
    assert "SMALL" in shown.out
    assert "4/4 SMALL d=0.3 seed=1" in shown.err
    achieved = json.loads((tmp_path / "out" / "s" / "results.json").read_text())["runs"][-1]["result"]["density"]
    assert achieved["asked"] == 0.3 != achieved["achieved"]
    assert f"| SMALL | {achieved['achieved']:.3g} |" in (tmp_path / "out" / "s" / "results.md").read_text()
    assert (tables / "s.md").read_text() == (tmp_path / "out" / "s" / "results.md").read_text()
    assert main([str(tmp_path / "missing.yaml")]) == 1
    assert "cannot read the config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": []}, "unknown key 'row' in the study; did you mean 'rows'"),
        ({"seeds": []}, "the study has no seeds"),
        ({"rows": [{"label": "a"}]}, "a row of the study needs label and method"),
        ({"rows": [{"label": "a", "method": "set"}] * 2}, "a occur more than once"),
    ],
)
def test_bad_studies_are_named(change: dict[str, Any], message: str) -> None:
    good = {"name": "s", "base": BASE, "rows": [{"label": "a", "method": "set"}], "densities": [0.1], "seeds": [0]}
    with pytest.raises(ConfigError, match=message):
        Study.from_dict(good | change)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_studies_are_valid(file: Path, tmp_path: Path) -> None:
    study = Study.from_file(file)
    assert study.name == file.stem
    assert study.seeds == (0, 1, 2)
    runs = study.runs(tmp_path)
    for config in runs.values():
        build_method(config)
        assert config.valid_fraction == 0
    assert {config.method for config in runs.values()} >= {"dense", "small", "rewire"}


def test_studies_are_shipped() -> None:
    assert {"m1d-baselines", "m1d-sweeps", "lm-baselines"} <= {file.stem for file in SHIPPED}


# -- the demo --------------------------------------------------------------------------------------------------


def test_demo_compares_six_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "available", lambda name: False)
    study = demo.demo_study(steps=40, seeds=(0,))
    assert study.base["data"] == "mnist5k"
    folder = demo.demo_folder(study, tmp_path / "demo")
    assert demo.demo_folder(study, tmp_path / "demo") == folder  # unfinished: resumed
    outcome = demo.run_demo(study, folder)
    assert [line.label for line in outcome.lines()] == ["dense", "SMALL", "static", "SET", "RigL", "rewire"]
    counts = {line.label: line.results[0].counts["active"] for line in outcome.lines()}
    assert counts["static"] == counts["SET"] == counts["RigL"] == counts["rewire"] == round(0.05 * counts["dense"])
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert all(line.label in text for line in outcome.lines())
    assert demo.demo_folder(study, tmp_path / "demo").name == "demo-2"  # finished: kept


def test_demo_prefers_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "available", lambda name: name == "fashion-mnist")
    assert demo.demo_study().base["data"] == "fashion-mnist"


def test_demo_keeps_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    assert demo.demo_folder(demo.demo_study(), tmp_path / "demo").name == "demo-2"


def test_read_config_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml holds no mapping"):
        read_config(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    "content", [b"data: \xff\xfe", b"args: &a {x: *a}", b"args: &a [*a]", b"? [1]\n: 2", b"[" * 9999]
)
def test_unreadable_configs_are_config_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the config .*bad\.yaml"):
        read_config(tmp_path / "bad.yaml")
