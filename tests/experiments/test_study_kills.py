"""Law: a study that is killed, wholly or in part, and run again equals one that was not; no run is completed twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from gossamer.errors import ConfigError
from gossamer.experiments.locks import locked
from gossamer.experiments.study import Job, Row, Study, pool, run_in_workers, run_study
from gossamer.experiments.study.worker import LOCK

from .studies import BASE, contents, states, tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals")]
LONG = {**BASE, "steps": 1500, "model_options": {"hidden": [64]}, "eval_every": 500, "checkpoint_every": 50}
GRID = tiny(base=LONG, rows=(Row("dense", "dense"), Row("SET", "set", {"every": 7})), densities=(0.2,), seeds=(0, 1))
ENTRY = "from gossamer.cli import main; main()"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("uninterrupted")
    run_study(GRID, out)
    return contents(out)


def _completed_once(out: Path, study: Study) -> None:
    completed = {run: count for (run, state), count in states(out).items() if state == "COMPLETE"}
    assert len(completed) == study.size
    assert set(completed.values()) == {1}


def _command(file: Path, out: Path) -> list[str]:
    raw = {key: value for key, value in asdict(GRID).items() if value}
    raw["rows"] = [{key: value for key, value in row.items() if value} for row in raw["rows"]]
    raw = {key: list(value) if isinstance(value, tuple) else value for key, value in raw.items()}
    file.write_text(yaml.safe_dump(raw))
    return [sys.executable, "-W", "error", "-c", ENTRY, "study", str(file), "--workers", "2", "--out", str(out)]


def _start_and_wait_for_checkpoints(command: list[str], out: Path) -> subprocess.Popen[str]:
    """The command in a session of its own, once two runs are under way."""
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        under_way = [f for f in out.glob("*/training.safetensors") if not (f.parent / "result.json").exists()]
        if len(under_way) == 2:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"it never had two runs under way: {process.communicate()}")


def _finish(command: list[str], out: Path, expected: dict[str, Any]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(out / "tiny") == expected
    _completed_once(out / "tiny", GRID)


@pytest.mark.parametrize("group", [False, True], ids=["the parent", "all"])
def test_after_sigkill_the_same_command_goes_on_at_once(tmp_path: Path, expected: dict[str, Any], group: bool) -> None:
    command, out = _command(tmp_path / "s.yaml", tmp_path / "out"), tmp_path / "out"
    process = _start_and_wait_for_checkpoints(command, out / "tiny")
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    assert len(contents(out / "tiny")) < GRID.size
    _finish(command, out, expected)
    process.communicate()
    assert sum(count for (_, state), count in states(out / "tiny").items() if state == "FAIL") == 2


def test_ctrl_c_writes_checkpoints_and_the_same_command_continues(tmp_path: Path, expected: dict[str, Any]) -> None:
    command, out = _command(tmp_path / "s.yaml", tmp_path / "out"), tmp_path / "out"
    process = _start_and_wait_for_checkpoints(command, out / "tiny")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "gossamer: stopped; the same command continues"
    assert "Traceback" not in errors
    _finish(command, out, expected)


class _Assassin:
    """Sends a signal to the only worker whenever `when` holds for the step of its run, at most `times` times."""

    def __init__(self, number: int, times: int, label: str, step: int):
        self._number, self._times, self._label, self._step = number, times, label, step
        self.victims: list[int] = []

    def __call__(self, running: Mapping[Job, tuple[int, int]]) -> None:
        for job, (step, _) in running.items():
            due = job.label == self._label and step >= self._step and len(self.victims) < self._times
            for pid in [worker.pid or 0 for worker in multiprocessing.active_children() if due]:
                if pid not in self.victims:
                    self.victims.append(pid)
                    os.kill(pid, self._number)


@pytest.mark.usefixtures("forked_workers")
def test_a_killed_worker_is_replaced_and_its_run_continued(tmp_path: Path, expected: dict[str, Any]) -> None:
    assassin = _Assassin(signal.SIGKILL, 1, "SET", 1)
    outcome = run_in_workers(GRID, tmp_path, running=assassin)
    assert len(assassin.victims) == 1
    assert not outcome.failures
    assert contents(tmp_path) == expected
    _completed_once(tmp_path, GRID)


@pytest.mark.usefixtures("forked_workers")
def test_a_hung_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny(base=LONG, rows=(Row("SET", "set"),), densities=(0.2,), seeds=(0,))
    assassin = _Assassin(signal.SIGSTOP, 1, "SET", 1)

    def running(beats: Mapping[Job, tuple[int, int]]) -> None:
        assassin(beats)
        hung = any(worker.pid in assassin.victims for worker in multiprocessing.active_children())
        monkeypatch.setattr(pool, "GRACE", 2.0 if hung else 120.0)

    outcome = run_in_workers(study, tmp_path, running=running)
    assert len(assassin.victims) == 1
    assert not outcome.failures
    _completed_once(tmp_path, study)


def test_a_run_whose_workers_always_die_fails_and_the_others_go_on(tmp_path: Path) -> None:
    study = tiny(rows=(Row("bad", "set"), Row("good", "static")), densities=(0.2,), seeds=(0,))
    assassin = _Assassin(signal.SIGKILL, 3, "bad", 0)
    outcome = run_in_workers(study, tmp_path, running=assassin)
    why = "its worker process ended with exit code -9, at attempt 3 of 3"
    assert outcome.failures == {"bad d=0.2 seed=0": why}
    assert [key[0] for key in outcome.results] == ["good"]
    assert states(tmp_path) == {("bad-d0.2-s0", "FAIL"): 3, ("good-d0.2-s0", "COMPLETE"): 1}
    assert not run_in_workers(study, tmp_path).failures  # the next call tries again


def test_one_process_at_a_time_runs_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another process runs it"):
        run_in_workers(tiny(), tmp_path)
    (tmp_path / LOCK).touch()
    monkeypatch.setattr("gossamer.experiments.study.running._LEFTOVERS", 0.2)
    with locked(tmp_path / LOCK, shared=True), pytest.raises(ConfigError, match="workers of a killed study still use"):
        run_in_workers(tiny(), tmp_path)
