"""Parts of the GPU benchmark that raise, crash or hang cost themselves, and what the others found is kept."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "worker.py"
PARTS = f"""
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("worker", {str(SCRIPT)!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
def wrong(): raise ValueError("a\\nb")
def crash(): print("last words", file=sys.stderr, flush=True); os.abort()
def hang(): time.sleep(60)
parts = {{"fine": lambda: {{"told": 1}}, "also": lambda: {{"told": 2}}, "wrong": wrong, "crash": crash, "hang": hang}}
at = sys.argv.index("--worker")
sys.exit(worker.work(worker.Path(sys.argv[at + 1]), sys.argv[at + 2:], parts))
"""


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_bench_worker", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def found(tmp_path: Path, *batches: list[str], script: str = PARTS, seconds: float = 60, jobs: int = 1) -> list[dict]:
    path = tmp_path / "parts.py"
    path.write_text(script)
    until = time.monotonic() + seconds
    command = [sys.executable, str(path)]
    return list(module().carried_out(batches, command, jobs=jobs, until=until, patience=2.0))


def test_every_part_is_told_of_once_whatever_happens(tmp_path: Path) -> None:
    told = found(tmp_path, ["fine", "wrong", "crash", "also", "hang", "fine"])
    assert [each["part"] for each in told] == ["fine", "wrong", "crash", "also", "hang", "fine"]
    assert [each.get("told") for each in told] == [1, None, None, 2, None, 1]
    assert told[1]["error"] == "ValueError: a b"
    assert "its process ended with -6: last words" in told[2]["error"]
    assert told[4]["error"] == "stopped after 2 s without an answer"


def test_batches_run_beside_each_other(tmp_path: Path) -> None:
    told = found(tmp_path, ["crash", "fine"], ["also"], ["wrong"], jobs=2)
    assert sorted(each["part"] for each in told) == ["also", "crash", "fine", "wrong"]


def test_what_the_time_does_not_suffice_for_is_told_too(tmp_path: Path) -> None:
    told = found(tmp_path, ["hang", "fine"], ["also"], seconds=1)
    assert [(each["part"], each["error"]) for each in told] == [
        (name, "not done: the time was over") for name in ("also", "hang", "fine")
    ]


def test_a_process_that_cannot_begin_ends_the_run(tmp_path: Path) -> None:
    told = found(tmp_path, ["fine", "also"], script="raise SystemExit('no torch here')")
    assert [each["error"] for each in told] == ["its process ended with 1: no torch here"] * 2
