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
    for text in (
        STATISTIC,
        "24x40, batch 8",
        "row-major; packed",
        "break-even density",
        "x masked",
        "1 threads, pinned",
    ):
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
    assert told["request"]["model"] == "mlp"
    assert told["request"]["data"] == "digits"
    assert told["request"]["model_options"] == {"hidden": "16"}
    (whole,) = told["steps"]
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
    assert "densities=',' names none" in _fails("--layer", "8x8", "--densities", ",")
    assert "threads=100000: this machine runs" in _fails("--layer", "8x8", "--threads", "100000")
    assert "its folder does not exist" in _fails("--layer", "8x8", "--json", "nowhere/bench.json")
    assert "budget=-1" in _fails("--layer", "8x8", "--budget", "-1")


def test_a_file_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> dict[str, Any]:
        raise AssertionError("it was measured first")

    monkeypatch.setattr(_bench_command, "_measured", measured)
    assert "it is a folder" in _fails("--layer", "8x8", "--json", str(tmp_path))
    monkeypatch.setattr(_bench_command.os, "access", lambda *_: False)  # root may write anywhere
    assert "permission denied" in _fails("--layer", "8x8", "--json", str(tmp_path / "new.json"))


def test_what_the_measuring_process_refuses_is_told(in_process: list[dict[str, str]]) -> None:
    assert "keeps none of the 64 weights of 8x8" in _fails("--layer", "8x8", "--density", "1e-9")


def test_a_killed_measuring_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -9, "")
    monkeypatch.setattr(_bench_command.subprocess, "run", lambda *_, **__: killed)
    assert "was killed by 9, perhaps out of memory" in _fails("--layer", "8x8")


def test_words_for_a_break_even_density() -> None:
    def words(*speeds: float) -> str:
        found = _bench._even({0.1 / (i + 1): speed for i, speed in enumerate(speeds)})
        return "" if found is None else _bench_command._even(**found)

    assert words(0.5, 2.0) == "0.071"
    assert words(1.5, 3.0) == "above 0.1"
    assert words(0.5, 0.9) == "below 0.05"
    assert words() == ""


def test_the_side_of_a_break_even_density_is_kept() -> None:
    assert _bench._even({0.1: 0.5, 0.05: 2.0}) == {"side": "at", "density": pytest.approx(0.1 / 2**0.5)}
    assert _bench._even({0.1: 1.5, 0.05: 3.0}) == {"side": "above", "density": 0.1}
    assert _bench._even({0.1: 0.5, 0.05: 0.9}) == {"side": "below", "density": 0.05}
    assert _bench._even({}) is None


def test_hybrid_layers_are_measured_if_asked_for(in_process: list[dict[str, str]], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    layers = ["--layer", "24x40", "--layer", "conv:8x4x3@10", "--batch", "8", "--density", "0.1"]
    done = RUN.invoke(cli.app, ["bench", *layers, "--budget", "0", "--threads", "1", "--hybrid", "--json", str(file)])
    assert done.exit_code == 0, done.output
    linear, conv = json.loads(file.read_text())["layers"]
    assert set(linear["variants"]) == {*VARIANTS, "hybrid", "hybrid rewired"}
    assert set(conv["variants"]) == VARIANTS  # there is no hybrid layer of one axis
    (row,) = linear["densities"]
    assert set(row["milliseconds"]) == set(linear["variants"])
    assert row["bytes"]["hybrid"] > row["bytes"]["dense"]
    assert linear["break_even"]["hybrid rewired vs dense fp32"]["density"] == 0.1
    assert "hybrid with a new support in every step" in done.output


def test_table_verdict_and_break_even_name_variants_alike(in_process: list[dict[str, str]]) -> None:
    given = ["--layer", "24x40", "--batch", "8", "--density", "0.1", "--budget", "0", "--threads", "1"]
    lines = RUN.invoke(cli.app, ["bench", *given]).output.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("0.1 ")} == {"dense", "masked", "sparse", "packed"}
    assert next(line for line in lines if line.startswith("break-even")).count("sparse vs ") == 2
    assert "(sparse " in next(line for line in lines if line.startswith("density 0.1:"))
