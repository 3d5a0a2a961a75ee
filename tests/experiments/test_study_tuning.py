"""Tuning: every point of every sweep on the tuning seeds, chosen on the validation split, the test split unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import ConfigError
from gossamer.experiments import train as training
from gossamer.experiments.config import RunConfig
from gossamer.experiments.runs import RunFolder
from gossamer.experiments.study import Failure, Job, Row, Study, Tune, run_in_workers, run_study, write_outcome
from gossamer.experiments.study.tuning import tuned
from gossamer.experiments.train import train

from .studies import contents, damage, result, states, tiny
from .tiny import Make, rows_of

DIVERGED = Failure("the loss became nan", lasting=True)
GRID = Row("a", "set", sweep={"fraction": [0.1, 0.3, 0.5], "every": [10, 20]})


def _study(**changes: Any) -> Study:
    rows = (
        Row("dense", "dense", sweep={}),
        Row("SMALL", "small", sweep={"lr": [0.05, 0.1, 0.2, 0.3]}),
        Row("RigL", "rigl", sweep={"fraction": [0.1, 0.3], "every": [2, 4]}),
    )
    tune = Tune((7, 8), 4, {"valid_fraction": 0.2})
    return tiny(**{"rows": rows, "densities": (0.2, 0.4), "tune": tune} | changes)


def _scores(*values: float, higher: bool = True) -> dict[Any, Any]:
    """The outcome of every point of `GRID` at one seed; NaN stands for diverged."""
    return {
        (point, 0): result("set", 0, value, higher=higher) if value == value else DIVERGED
        for point, value in zip(GRID.points, values, strict=True)
    }


def test_points_are_the_product_in_order() -> None:
    assert GRID.points[:3] == (
        ("fraction=0.1", "every=10"),
        ("fraction=0.1", "every=20"),
        ("fraction=0.3", "every=10"),
    )
    assert len(GRID.points) == 6
    assert Row("a", "set", sweep={}).points == ()
    row = Row("a", "set", sweep={"x": [None, True, float("inf"), [3, 4], "reset:10", "Block.*"]})
    assert row.points == (("x=none",), ("x=true",), ("x=inf",), ("x=3,4",), ("x=reset:10",), ("x=Block.*",))


def test_the_best_mean_is_chosen_and_the_first_of_equals() -> None:
    assert tuned(GRID, 0.1, _scores(1, 2, 9, 9, 3, 4)).best.point == GRID.points[2]  # type: ignore[union-attr]
    assert tuned(GRID, 0.1, _scores(5, 2, 9, 1, 3, 4, higher=False)).best.point == GRID.points[3]  # type: ignore[union-attr]
    row = Row("a", "set", sweep={"every": [1, 2]})
    values = {(("every=1",), 0): 5.0, (("every=1",), 1): 5.0, (("every=2",), 0): 9.0, (("every=2",), 1): 2.0}
    chosen = tuned(row, 0.1, {key: result("set", key[1], value) for key, value in values.items()})
    assert [score.mean for score in chosen.scores] == [5.0, 5.5]
    assert str(chosen) == "every=2 (edge)"


def test_a_choice_at_the_edge_is_marked() -> None:
    assert tuned(GRID, 0.1, _scores(0, 0, 0, 1, 0, 0)).edges == ("every",)
    assert str(tuned(GRID, 0.1, _scores(0, 0, 0, 0, 1, 0))) == "fraction=0.5 (edge), every=10 (edge)"
    words = Row("a", "rewire", sweep={"exploit": ["none", "fix:0.5", "reset:10"]})
    outcomes = {(point, 0): result("rewire", 0, value) for point, value in zip(words.points, (9, 1, 2), strict=True)}
    assert tuned(words, 0.1, outcomes).edges == ()
    single = Row("a", "set", sweep={"every": [3]})
    assert tuned(single, 0.1, {(("every=3",), 0): result("set", 0, 1.0)}).edges == ()


def test_a_diverged_point_is_a_bad_score() -> None:
    nan = float("nan")
    for higher in (True, False):
        chosen = tuned(GRID, 0.1, _scores(nan, nan, nan, nan, 7, nan, higher=higher))
        assert chosen.best is not None
        assert chosen.best.point == GRID.points[4]
        assert chosen.scores[0].mean is None
    assert tuned(GRID, 0.1, _scores(*[nan] * 6)).best is None


@pytest.mark.slow
def test_tuning_then_final_runs(tmp_path: Path) -> None:
    study, ended = _study(), list[Job]()
    outcome = run_study(study, tmp_path, done=lambda job, _: ended.append(job))
    assert not outcome.failures
    assert len(ended) == study.size == 2 * 5 + 2 * 2 * 4 * 2
    assert list(outcome.tunings) == [("SMALL", 0.2), ("SMALL", 0.4), ("RigL", 0.2), ("RigL", 0.4)]
    for (label, density), tuning in outcome.tunings.items():
        best = tuning.best
        assert best is not None
        for score in tuning.scores:
            rows = [
                RunFolder(tmp_path / job.run).metrics()[-1]["valid_metric"]
                for job in ended
                if (job.label, job.density, job.point, job.tuning) == (label, density, score.point, True)
            ]
            assert score.values == tuple(rows)
            assert (score.mean or 0) <= (best.mean or 0)
        finals = [job for job in ended if not job.tuning and (job.label, job.density) == (label, density)]
        assert [(job.point, job.seed) for job in finals] == [(best.point, 0), (best.point, 1)]
        config = outcome.results[label, density, 0].config
        for setting in best.point:
            key, _, value = setting.partition("=")
            assert str((config["args"] if key in config["args"] else config)[key]) == value
        assert config["valid_fraction"] == 0
    write_outcome(outcome, tmp_path, "command")
    raw = json.loads((tmp_path / "results.json").read_text())
    assert raw["tuning"] == [tuning.to_dict() for tuning in outcome.tunings.values()]
    text = (tmp_path / "results.md").read_text()
    assert "| untuned |" in next(line for line in text.splitlines() if line.startswith("| dense"))
    assert f"| {outcome.tunings['RigL', 0.2]} |" in text
    assert text.count("| * |") == 4


@pytest.mark.slow
def test_tuning_never_looks_at_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = training.make_plan, list[str]()

    class Watched:
        def __init__(self, split: Any, run: str):
            self._split, self._run = split, run

        def whole(self) -> Any:
            seen.append(self._run)
            return self._split.whole()

    def make_plan(config: RunConfig) -> Any:
        plan = real(config)
        object.__setattr__(plan.dataset, "test", Watched(plan.dataset.test, Path(str(config.out)).name))
        return plan

    monkeypatch.setattr(training, "make_plan", make_plan)
    outcome = run_study(_study(densities=(0.2,)), tmp_path)
    assert sorted(seen) == sorted(folder.name for folder in outcome.folders.values())
    for file in (tmp_path / "tuning").glob("*/result.json"):
        assert json.loads(file.read_text())["metric"]["split"] == "valid"
        assert not (file.parent / "report.html").exists()


def test_a_run_without_test_split_is_marked_and_kept_apart(make: Make) -> None:
    config = make(valid_fraction=0.2)
    made = train(config, test=False)
    assert made.metric["value"] == rows_of(config)[-1]["valid_metric"]
    assert train(config, resume=True, test=False) == made
    with pytest.raises(ConfigError, match="was not measured on the test split"):
        train(config, resume=True)
    with pytest.raises(ConfigError, match="valid_fraction = 0"):
        train(make("other", valid_fraction=0), test=False)


def test_failed_and_diverged_tuning(tmp_path: Path) -> None:
    wild = {"lr": [9999.0, 9998.0]}
    rows = (
        Row("bad", "set", sweep={"lr": [0.1, 0.2]}),
        Row("wild", "static", {}, {"steps": 400}, wild),
        Row("good", "static", {}, {"steps": 400}, {"lr": [9999.0, 0.1]}),
    )
    study = tiny(rows=rows, densities=(0.2,), seeds=(0,), tune=Tune((7,), 2, {"valid_fraction": 0.2}))
    damage(study, tmp_path, "bad")
    outcome = run_study(study, tmp_path)
    assert [key[0] for key in outcome.results] == ["good"]
    assert str(outcome.tunings["good", 0.2]) == "lr=0.1 (edge)"
    assert outcome.tunings["good", 0.2].scores[0].mean is None
    assert str(outcome.tunings["wild", 0.2]) == "none"
    assert outcome.failures["bad d=0.2 seed=0"] == "not run, since runs of its tuning failed"
    assert outcome.failures["wild d=0.2 seed=0"] == "not run, since training diverged at every point of its sweep"
    assert "no result of a run" in outcome.failures["bad d=0.2 lr=0.1 tuning seed=7"]
    assert len(outcome.failures) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_workers_tune_alike_and_more_points_reuse_the_old_ones(tmp_path: Path) -> None:
    study = _study(densities=(0.2,), seeds=(0,))
    run_study(study, tmp_path / "here")
    outcome = run_in_workers(study, tmp_path / "there", workers=2)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert run_in_workers(study, tmp_path / "there") == outcome
    rows = (study.rows[0], Row("RigL", "rigl", sweep={"fraction": [0.1, 0.3, 0.5], "every": [2, 4]}))
    more = run_in_workers(_study(densities=(0.2,), seeds=(0,), rows=rows, tune=Tune((7, 8), 6, study.tune.settings)),  # type: ignore[union-attr]
                          tmp_path / "there")  # fmt: skip
    assert len(more.tunings["RigL", 0.2].scores) == 6
    assert set(states(tmp_path / "there").values()) == {1}
