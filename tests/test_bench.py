"""`gossamer bench`: what it prints and writes, and what it refuses. No test depends on how fast anything is."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gossamer import _bench, _bench_command, cli
from gossamer._timing import QUIET, STATISTIC

RUN = CliRunner()
VARIANTS = {"dense fp32", "dense bf16", "masked", "sparse", "packed"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Answer in this process; the environments that the measuring process would have had."""
    environments: list[dict[str, str]] = []

    def run(command: list[str], *, input: str, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        environments.append(env)
        out, threads = io.StringIO(), torch.get_num_threads()
        with pytest.MonkeyPatch.context() as inside, contextlib.redirect_stdout(out):
            inside.setattr("sys.stdin", io.StringIO(input))
            _bench.main()
        torch.set_num_threads(threads)
        return subprocess.CompletedProcess(command, 0, out.getvalue())

    monkeypatch.setattr(_bench_command.subprocess, "run", run)
    return environments


def _fails(*arguments: str) -> str:
    done = RUN.invoke(cli.app, ["bench", *arguments])
    assert done.exit_code == 1, done.output
    return done.stderr


def test_threads_are_pinned_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arguments = ["--layer", "24x40", "--batch", "8", "--densities", ".5,.1", "--budget", "0", "--threads", "1"]
    done = RUN.invoke(cli.app, ["bench", *arguments, "--json", str(file)])
    assert done.exit_code == 0, done.output
    told = json.loads(file.read_text())
    assert told["pinned"]
    assert told["threads"] == 1
    assert told["statistic"] == STATISTIC
    (layer,) = told["layers"]
    assert [row["density"] for row in layer["densities"]] == [0.5, 0.1]
    for row in layer["densities"]:
        assert set(row["milliseconds"]) == VARIANTS
        assert row["bytes"]["dense"] == 16 * 24 * 40
        assert row["bytes"]["sparse"] > 16 * row["density"] * 24 * 40
        assert row["rounds"] >= 15
    for text in (STATISTIC, "24x40, batch 8", "row-major", "break-even density", "x masked", "1 threads, pinned"):
        assert text in done.output


def test_a_model_is_measured_layer_by_layer_and_whole(in_process: list[dict[str, str]], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    given = ["--model", "mlp", "--data", "digits", "--set", "model.hidden=16", "--density", "0.25", "--batch", "8"]
    done = RUN.invoke(cli.app, ["bench", *given, "--budget", "0", "--threads", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    (environment,) = in_process
    assert environment["OMP_NUM_THREADS"] == "1"
    assert QUIET.items() <= environment.items()
    told = json.loads(file.read_text())
    assert [layer["layer"] for layer in told["layers"]] == ["16x64", "10x16"]
    (whole,) = told["model"]
    assert set(whole["milliseconds"]) == {"dense fp32", "masked", "sparse"}
    assert "whole training step at density 0.25" in done.output


def test_bad_input_is_told() -> None:
    assert "write linear weights as OUTxIN" in _fails("--layer", "4096")
    assert "give either layers" in _fails()
    assert "give either layers" in _fails("--layer", "8x8", "--model", "mlp")
    assert "--data and --set are for --model" in _fails("--layer", "8x8", "--data", "digits")
    assert "needs data" in _fails("--model", "mlp")
    assert "unknown model 'mpl'; did you mean 'mlp'" in _fails("--model", "mpl", "--data", "digits")
    assert "unknown option" in _fails("--model", "mlp", "--data", "digits", "--set", "model.hiden=3")
    assert "density=2.0" in _fails("--layer", "8x8", "--density", "2")
    assert "keeps nothing" in _fails("--layer", "8x8", "--density", "0")
    assert "densities" in _fails("--layer", "8x8", "--densities", "a")
    assert "its folder does not exist" in _fails("--layer", "8x8", "--json", "nowhere/bench.json")
    assert "budget=-1" in _fails("--layer", "8x8", "--budget", "-1")


def test_what_the_measuring_process_refuses_is_told(in_process: list[dict[str, str]]) -> None:
    assert "keeps none of the 64 weights of 8x8" in _fails("--layer", "8x8", "--density", "1e-9")


def test_a_killed_measuring_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -9, "")
    monkeypatch.setattr(_bench_command.subprocess, "run", lambda *_, **__: killed)
    assert "was killed by 9, perhaps out of memory" in _fails("--layer", "8x8")


def test_words_for_a_break_even_density() -> None:
    def rows(*speeds: float | None) -> list[dict[str, Any]]:
        return [{"density": 0.1 / (i + 1), "speedup": {"packed": speed}} for i, speed in enumerate(speeds)]

    assert _bench_command._even("packed", 0.2, []) == "packed 0.2"
    assert _bench_command._even("packed", None, rows(1.5, 3.0)) == "packed above 0.1"
    assert _bench_command._even("packed", None, rows(0.5, 0.9)) == "packed below 0.05"
    assert _bench_command._even("packed", None, rows(None, None)) == ""
