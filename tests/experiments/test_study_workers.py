"""The parts of a study's workers: the display, a worker that meets an error which is not ours, the trials file."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from gossamer.errors import CheckpointError
from gossamer.experiments.study import Agenda, Display, Failure, Row, Study, Tune, display, worker
from gossamer.experiments.study.pool import Death
from gossamer.experiments.study.trials import ATTEMPTS, FILE, Trials

from .studies import result, states, tiny

STUDY = tiny(
    rows=(Row("a", "static", sweep={"lr": [0.1, 0.2]}),),
    densities=(0.2,),
    tune=Tune((7,), 2, {"valid_fraction": 0.2}),
)


def _display(study: Study, *, terminal: bool) -> tuple[Display, io.StringIO]:
    stream = io.StringIO()
    return Display(
        Console(file=stream, force_terminal=terminal, width=100, height=40, color_system=None), study
    ), stream


def test_plain_lines_count_the_runs(tmp_path: Path) -> None:
    shown, stream = _display(STUDY, terminal=False)
    first, second = Agenda(STUDY, tmp_path).first
    with shown:
        shown.running({first: (1, 4)})
        shown.done(first, result("static", 7, 81.25))
        shown.done(second, Failure("the loss [red]became[/red] nan", lasting=True))
    assert stream.getvalue().splitlines() == [
        "1/4 a d=0.2 lr=0.1 tuning seed=7: accuracy 81.25",
        "2/4 a d=0.2 lr=0.2 tuning seed=7: the loss [red]became[/red] nan",
    ]


def test_the_live_table_shows_rows_runs_and_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    shown, stream = _display(STUDY, terminal=True)
    first, second = Agenda(STUDY, tmp_path).first
    assert shown.eta() == "-"
    shown.done(first, result("static", 7, 80.0))  # kept from an earlier call: says nothing about the speed
    shown.running({second: (0, 0)})
    assert shown.eta() == "-"
    clock[0] = 10.0
    shown.running({second: (2, 4)})
    assert shown.eta() == "0:00:50"  # half a run in 10 s, 2.5 runs are left
    with shown:
        pass
    text = stream.getvalue()
    assert "1/4 runs, 0 failed, ETA 0:00:50" in text
    row = next(line for line in text.splitlines() if "lr=0.2 s7 2/4" in line)
    assert row.split()[:3] == ["a", "0.2", "1/4"]


class _Alive:
    """A parent that lives; what `multiprocessing.parent_process` gives in a worker."""

    def __init__(self) -> None:
        self.kept, other = multiprocessing.Pipe()
        self.sentinel = other


def test_an_error_that_is_not_ours_is_a_failure_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, _) = Agenda(STUDY, tmp_path).first
    (tmp_path / worker.LOCK).touch()
    ours, theirs = multiprocessing.Pipe()
    alive = _Alive()

    def broken(*_: Any) -> None:
        raise TypeError("no such thing")

    monkeypatch.setattr(worker, "attempt", broken)
    monkeypatch.setattr(worker, "multiprocessing", SimpleNamespace(parent_process=lambda: alive))
    monkeypatch.setattr(worker.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    ours.send(job)
    ours.send(None)
    worker.work(theirs, tmp_path)
    assert ours.recv() == Failure(f"TypeError: no such thing; see {tmp_path / worker.ERRORS}")
    text = (tmp_path / worker.ERRORS).read_text()
    assert text.startswith(f"{job}\nTraceback")
    for pipe in (ours, theirs, alive.kept, alive.sentinel):
        pipe.close()


def test_trials_are_queued_once_and_retried_a_bounded_number_of_times(tmp_path: Path) -> None:
    jobs = Agenda(STUDY, tmp_path).first
    trials = Trials(tmp_path)
    assert [trials.add(job) for job in jobs] == [None, None]
    trials = Trials(tmp_path)  # as after a kill, before anything ran
    assert [trials.add(job) for job in jobs] == [None, None]
    assert set(states(tmp_path).values()) == {1}
    ended = []
    while (waiting := trials.next()) is not None:
        job, trial = waiting
        ended.append((job.point, trials.finish(job, trial, Death("killed"))))
    assert [point for point, _ in ended] == [job.point for job in jobs] * ATTEMPTS
    assert [outcome for _, outcome in ended[:4]] == [None] * 4
    assert ended[-1][1] == Failure("killed, at attempt 3 of 3")
    assert trials.next() is None
    assert states(tmp_path).total() == len(jobs) * ATTEMPTS, "no trial is made up"


def test_a_running_trial_of_a_dead_process_is_queued_again_without_a_wait(tmp_path: Path) -> None:
    (job, other) = Agenda(STUDY, tmp_path).first
    trials = Trials(tmp_path)
    trials.add(job)
    trials.add(other)
    assert trials.next() is not None
    trials = Trials(tmp_path)
    assert trials.add(job) is None
    again = trials.next()
    assert again is not None
    assert again[0] == job, "the trial of the run that is not asked for any more is passed over"
    assert trials.next() is None
    assert states(tmp_path) == {(job.run, "FAIL"): 1, (job.run, "RUNNING"): 1, (other.run, "FAIL"): 1}


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no database")
    with pytest.raises(CheckpointError, match=r"trials\.db: file is not a database; move it away"):
        Trials(tmp_path)
