"""Studies: the grid, running it here and in workers, what is written, bad files, and the shipped files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from gossamer import cli
from gossamer.errors import ConfigError
from gossamer.experiments.data.cifar import CIFAR10
from gossamer.experiments.runs import read_config
from gossamer.experiments.study import Agenda, Job, Row, Study, run_in_workers, run_study, write_outcome
from gossamer.foresight import search

from .studies import BASE, contents, damage, states, tiny

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "studies").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "name": "s",
    "base": BASE,
    "rows": [{"label": "a", "method": "set"}],
    "densities": [0.1],
    "seeds": [0],
}
SWEEP = {"label": "a", "method": "set", "sweep": {"fraction": [0.1, 0.3], "lr": [0.1, 0.2]}}
TUNE = {"seeds": [9], "budget": 4, "settings": {"valid_fraction": 0.2}}


def test_grid_is_rows_by_densities_by_seeds_with_dense_once(tmp_path: Path) -> None:
    jobs = Agenda(tiny(), tmp_path).first
    assert len(jobs) == tiny().size == 2 + 4 + 4
    assert {job.density for job in jobs if job.label == "dense"} == {1.0}
    config = next(job.config for job in jobs if str(job) == "RigL d=0.4 seed=1")
    assert (config.method, config.density, config.seed, config.lr, config.args) == ("rigl", 0.4, 1, 0.05, {"every": 2})
    assert config.out == str(tmp_path / "RigL-d0.4-s1")
    assert len({job.run for job in jobs}) == len(jobs)


@pytest.mark.slow
def test_workers_and_one_process_agree_and_finished_runs_are_skipped(tmp_path: Path) -> None:
    study = tiny(densities=(0.2,), seeds=(0,))
    here = run_study(study, tmp_path / "here")
    there = run_in_workers(study, tmp_path / "there", workers=2)
    assert list(here.results) == list(there.results)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    steps: list[int] = []
    assert run_study(study, tmp_path / "here", progress=lambda job, update: steps.append(update.step)) == here
    assert steps == []
    started: list[Job] = []
    assert run_in_workers(study, tmp_path / "there", running=started.extend) == there
    assert started == []
    assert set(states(tmp_path / "there").values()) == {1}


def test_a_failed_run_does_not_stop_the_rest(tmp_path: Path) -> None:
    study = tiny(rows=(Row("bad", "static"), Row("good", "static")), densities=(0.2,), seeds=(0,))
    damage(study, tmp_path, "bad")
    outcome = run_study(study, tmp_path)
    assert [key[0] for key in outcome.results] == ["good"]
    why = outcome.failures["bad d=0.2 seed=0"]
    assert re.search(r"result\.json is no result of a run: .*; delete the folder .*bad-d0\.2-s0 to run it again$", why)
    write_outcome(outcome, tmp_path, "command")
    text = (tmp_path / "results.md").read_text()
    assert "Failed: bad d=0.2 seed=0: " in text
    raw = json.loads((tmp_path / "results.json").read_text())
    assert [run["label"] for run in raw["runs"]] == ["good"]
    assert list(raw["failures"]) == ["bad d=0.2 seed=0"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_diverged_runs_are_recorded_once_and_others_tried_again(tmp_path: Path) -> None:
    rows = (Row("bad", "static"), Row("wild", "static", {}, {"lr": 9999, "steps": 400}))
    study, seen = tiny(rows=rows, densities=(0.2,), seeds=(0,)), list[tuple[str, bool]]()
    damage(study, tmp_path, "bad")

    def done(job: Job, outcome: Any) -> None:
        seen.append((job.label, outcome.lasting))

    first = run_in_workers(study, tmp_path, workers=2, done=done)
    assert sorted(seen) == [("bad", False), ("wild", True)]
    assert "the training loss became" in first.failures["wild d=0.2 seed=0"]
    assert run_in_workers(study, tmp_path, workers=2).failures == first.failures
    assert states(tmp_path) == {("bad-d0.2-s0", "FAIL"): 2, ("wild-d0.2-s0", "FAIL"): 1}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_changed_studies_keep_what_fits_and_refuse_what_does_not(tmp_path: Path) -> None:
    def study(*rows: Row, **changes: Any) -> Study:
        return tiny(rows=rows, densities=(0.2,), seeds=(0,), **changes)

    static = Row("static", "static")
    run_in_workers(study(static), tmp_path)
    more = run_in_workers(study(static, Row("SMALL", "small")), tmp_path)
    assert [key[0] for key in more.results] == ["static", "SMALL"]
    assert set(states(tmp_path).values()) == {1}
    before = contents(tmp_path)
    for run in (run_study, run_in_workers):
        with pytest.raises(ConfigError, match=r"static d=0.2 seed=0: cannot resume .* another config \(lr .* -> 0.05"):
            run(study(Row("static", "static", {}, {"lr": 0.05}), Row("new", "set")), tmp_path)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new-d0.2-s0").exists()
    assert [key[0] for key in run_in_workers(study(Row("SMALL", "small")), tmp_path).results] == ["SMALL"]


def _file(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(GOOD | changes))
    return file


@pytest.mark.slow
@pytest.mark.curves
def test_the_command_prints_and_writes_the_tables(tmp_path: Path) -> None:
    rows = [{"label": "dense", "method": "dense"}, {"label": "SMALL", "method": "small"}]
    file, tables, out = (
        _file(tmp_path, rows=rows, densities=[0.3], seeds=[0, 1, 2]),
        tmp_path / "tables",
        tmp_path / "o",
    )
    asked = ["study", str(file), "--out", str(out), "--tables", str(tables), "--seeds", "0,1"]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert "SMALL" in done.stdout
    assert "4/4 SMALL d=0.3 seed=1" in done.stderr
    text = (out / "s" / "results.md").read_text()
    raw = json.loads((out / "s" / "results.json").read_text())
    achieved = raw["runs"][-1]["result"]["density"]
    assert achieved["asked"] == 0.3 != achieved["achieved"]
    assert f"| SMALL | {achieved['achieved']:.3g} |" in text
    assert f"`gossamer study {file} --workers 1 --seeds 0,1`" in text
    assert (tables / "s.md").read_text() == text
    assert "data:image/png" in (out / "s" / "report.html").read_text()
    quiet = CliRunner().invoke(cli.app, [*asked, "--json"])
    assert json.loads(quiet.stdout) == raw
    assert quiet.stderr == ""


def test_a_failure_is_exit_status_1(tmp_path: Path) -> None:
    file = _file(tmp_path)
    damage(Study.from_file(file), tmp_path / "o" / "s", "a")
    done = CliRunner().invoke(cli.app, ["study", str(file), "--out", str(tmp_path / "o"), "-q"])
    assert done.exit_code == 1
    assert done.stderr.startswith("gossamer: error: a d=0.1 seed=0: ")
    assert "no result of a run" in done.stderr


def test_without_optuna_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.experiments.study.running.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"optuna is not installed.*pip install 'gossamer\[study\]'"):
        run_in_workers(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": []}, "unknown key 'row' in the study; did you mean 'rows'"),
        ({"seeds": []}, "the study has no seeds"),
        ({"seeds": 3}, "seeds is 3: expected a list that is not empty"),
        ({"seeds": [0.5]}, "seeds = 0.5: expected a whole number"),
        ({"seeds": [1, 1]}, "seeds of a study; 1 occur more than once"),
        ({"densities": [0.1, 0.1]}, "densities of a study; 0.1 occur more than once"),
        ({"densities": [0.1, 2]}, "row 'a': density = 2.0: expected a fraction"),
        ({"name": "a/b"}, "name = 'a/b': a study's name is the name of its folder"),
        ({"name": "a\0b"}, r"name = 'a\\x00b': a study's name is the name of its folder"),
        ({"base": [1]}, "base is .* expected a mapping"),
        ({"base": {**BASE, "seed": 3}}, "base sets 'seed', which the study itself sets"),
        ({"base": {**BASE, "stepps": 3}}, "row 'a': unknown key 'stepps' in the config; did you mean 'steps'"),
        ({"base": {**BASE, "data": "digitz"}}, "unknown data set 'digitz'; did you mean 'digits'"),
        ({"base": {**BASE, "model_options": {"hiden": 3}}}, "unknown option 'hiden' of model mlp"),
        ({"rows": [{"label": "a"}]}, "row 1 of the study has no method"),
        ({"rows": ["a"]}, "row 1 of the study is 'a': expected a mapping with label, method"),
        ({"rows": [{"label": "a", "method": "set", "arg": {}}]}, "unknown key 'arg' in row 1 of the study"),
        ({"rows": [{"label": "a", "method": "set", "args": 1}]}, "args of row 'a' is 1: expected a mapping"),
        ({"rows": [{"label": "a", "method": "sett"}]}, "unknown method 'sett'; did you mean 'set'"),
        ({"rows": [{"label": "a", "method": "set"}] * 2}, "a occur more than once"),
        ({"rows": [{"label": x, "method": "set"} for x in ("a b", "A_b")]}, "'A_b-d0.1-s0' would hold two|'a_b-d0.1"),
        ({"compare": ["b"]}, "compare names the row 'b'"),
        ({"rows": [SWEEP]}, "row 'a' has a sweep, but the study has no tune section"),
        ({"tune": TUNE}, "row 'a' has no sweep; give one, or write sweep: {}"),
        ({"tune": TUNE | {"budget": 3}, "rows": [SWEEP]}, "row 'a' has 4 points, but the budget of every row is 3"),
        ({"tune": TUNE | {"budgets": 3}}, "unknown key 'budgets' in tune; did you mean 'budget'"),
        ({"tune": TUNE | {"seeds": [1, 1]}, "rows": [SWEEP]}, "seeds of tune; 1 occur more than once"),
        ({"tune": TUNE | {"seeds": [0, 9]}, "rows": [SWEEP]}, r"seeds \[0\] are of the study and of tune: .*\[100\]"),
        ({"tune": [1]}, r"tune is \[1\]: expected a mapping with seeds, budget"),
        ({"tune": TUNE | {"settings": {}}, "rows": [SWEEP]}, "tuning needs a validation split"),
        ({"tune": TUNE, "rows": [SWEEP | {"sweep": {"seed": [1, 2, 3, 4]}}]}, "row 'a' sweeps 'seed'"),
        ({"tune": TUNE, "rows": [SWEEP | {"sweep": {"data.valid_fraction": [0.1]}}]}, "sweeps 'data.valid_fraction'"),
        (
            {"base": BASE | {"data_options": {"valid_fraction": 0.1}}},
            "unknown option 'valid_fraction' of data set digits",
        ),
        (
            {"tune": TUNE, "rows": [SWEEP | {"sweep": {str(key): [1, 2, 3] for key in range(40)}}]},
            f"has {3**40} points, but the budget of every row is 4",
        ),
        ({"tune": TUNE, "rows": [SWEEP | {"sweep": {"lr": [1, 2, 3, 3]}}]}, "lr=3 occur more than once"),
        ({"tune": TUNE, "rows": [SWEEP | {"sweep": {"lr": []}}]}, r"lr in the sweep of row 'a' is \[\]"),
        ({"tune": TUNE, "rows": [SWEEP | {"sweep": {"frac": [1, 2, 3, 4]}}]}, "unknown key 'frac' for set"),
    ],
)
def test_bad_studies_are_named_before_any_training(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Agenda(Study.from_dict(GOOD | change), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--workers", "0"], "workers = 0: expected at least 1"),
        (["--seeds", "0,x"], "seeds = 'x': expected a whole number"),
        (["--seeds", ""], "expected a list that is not empty"),
        (["--seeds", "2,2"], "2 occur more than once"),
        (["--seeds", "-1"], "seed = -1: expected 0 or more"),
    ],
)
def test_bad_flags_are_one_line(asked: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "o"
    done = CliRunner().invoke(cli.app, ["study", str(_file(tmp_path)), "--out", str(out), *asked])
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(rf"gossamer: error: .*{re.escape(message)}.*\n", done.stderr)
    assert not out.exists()


def test_missing_and_unusable_files_are_one_line(tmp_path: Path) -> None:
    for file in (tmp_path / "missing.yaml", tmp_path):
        done = CliRunner().invoke(cli.app, ["study", str(file)])
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert "cannot read the config" in done.stderr
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot use .*file"):
        run_in_workers(tiny(), tmp_path / "file")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "trials.db").write_text("no database, whatever its name says; long enough to be looked into")
    done = CliRunner().invoke(cli.app, ["study", str(_file(tmp_path, name="db")), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "trials.db: file is not a database; move it away" in " ".join(done.stderr.split()), done.stderr


@pytest.mark.slow  # a large grid is hundreds of models to build
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_studies_are_valid(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(saliency: object, probe: Any, task: object, number: int) -> dict[str, torch.Tensor]:
        """Instead of thousands of gradients: what a study can be does not depend on them."""
        return {n: torch.rand_like(w).where(probe.masks[n], -torch.inf) for n, w in probe.weights.items()}

    def write_images(folder: Path) -> None:
        """Of noise, in a published layout, for the study whose data do not come with any package."""
        (folder / CIFAR10.binary[0]).mkdir(parents=True)
        for name in CIFAR10.binary[1]:
            rows = np.random.default_rng(0).integers(0, 10, (200, 3073), np.uint8)
            (folder / CIFAR10.binary[0] / name).write_bytes(rows.tobytes())

    if "cifar10" in file.stem:
        write_images(tmp_path / "data")
        monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(search, "_scores", drawn)
    monkeypatch.setattr(search, "_whole", lambda saliency, probe: True)
    study = Study.from_file(file)
    assert study.name == file.stem
    assert len(study.seeds) >= 3
    tune = study.tune and replace(study.tune, seeds=study.tune.seeds[:1])
    jobs = Agenda(replace(study, seeds=study.seeds[:1], tune=tune), tmp_path).first  # others differ in a number
    assert all(job.config.valid_fraction == (0 if not job.tuning else job.config.valid_fraction) for job in jobs)
    methods = {row.method for row in study.rows}
    assert methods >= {"dense", "small"} or methods == {"dense"}  # the latter trains subspaces, of no density


def test_studies_are_shipped() -> None:
    assert {"m1d-baselines", "m1d-sweeps", "lm-baselines"} <= {file.stem for file in SHIPPED}


def test_the_study_of_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S)
    study = Study.from_dict(yaml.safe_load(block))
    assert study.tune is not None
    assert len(Agenda(study, tmp_path).first) < study.size


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


@pytest.mark.usefixtures("forked_workers")
def test_sanity_checks_run_in_workers_beside_what_they_check(tmp_path: Path) -> None:
    rows = (
        Row("SNIP", "snip"),
        Row("shuffled", "snip", {}, {"control": "shuffle"}, variant_of="SNIP"),
        Row("reinit", "snip", {}, {"control": "reinit"}, variant_of="SNIP"),
    )
    study = tiny(rows=rows, densities=(0.2,), seeds=(0,))
    outcome = run_in_workers(study, tmp_path / "there", workers=2)
    assert not outcome.failures
    titles = {label: result.title for (label, *_), result in outcome.results.items()}
    assert titles == {"SNIP": "snip", "shuffled": "snip (shuffle)", "reinit": "snip (reinit)"}
    for result in outcome.results.values():
        assert result.first_support is not None
        assert result.first_support["kept"] == result.counts["active"]
    assert run_in_workers(study, tmp_path / "there") == outcome
    assert run_study(study, tmp_path / "here").results.keys() == outcome.results.keys()
