"""The command line: what it prints, its exit status, and that its flags are those of `RunConfig`."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import gossamer
from gossamer import cli
from gossamer.experiments.config import CONTROLS, FIELDS, MAPPINGS
from gossamer.experiments.data import DATASETS
from gossamer.experiments.models import MODELS
from gossamer.experiments.progress import figures, live_progress
from gossamer.experiments.train import Update
from gossamer.experiments.values import DATA
from gossamer.method import Choices
from gossamer.methods import REGISTRY

TINY = ["--data", "digits", "--model", "mlp", "--set", "model.hidden=16", "--steps", "10", "--threads", "1"]
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Outcome:
    def __init__(self, *args: str):
        result = CliRunner().invoke(cli.app, list(args), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.status, self.out, self.err = result.exit_code, ANSI.sub("", result.stdout), ANSI.sub("", result.stderr)


def _train(out: Path, *args: str) -> Outcome:
    return Outcome("train", *TINY, "--out", str(out), *args)


# -- train -----------------------------------------------------------------------------------------------------


def test_train_writes_a_run_folder(tmp_path: Path) -> None:
    done = _train(tmp_path / "run", "--method", "rewire", "--density", "0.2", "--set", "exploit=reset:5", "--seed", "3")
    assert done.status == 0
    assert "density 0.2002 (237 of 1,184 weights)" in done.out
    assert done.err == ""
    assert {item.name for item in (tmp_path / "run").iterdir()} == {
        "config.yaml", "metrics.jsonl", "training.safetensors", "model.safetensors", "result.json", "curves.png",
        "report.html",
    }  # fmt: skip
    config = json.loads((tmp_path / "run" / "result.json").read_text())["config"]
    assert (config["args"], config["seed"], config["model_options"]) == ({"exploit": "reset:5"}, 3, {"hidden": [16]})


def test_json_is_the_result_and_nothing_else(tmp_path: Path) -> None:
    done = _train(tmp_path / "run", "--json")
    assert done.status == 0
    assert json.loads(done.out) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert done.err == ""


def test_finished_runs_are_shown_again_with_resume_alone(tmp_path: Path) -> None:
    first = _train(tmp_path / "run", "--json")
    again = Outcome("train", "--resume", "--out", str(tmp_path / "run"), "--json")
    assert again.status == 0
    assert again.out == first.out


def test_a_config_file_is_a_start_that_flags_change(tmp_path: Path) -> None:
    _train(tmp_path / "a", "--method", "rigl", "--density", "0.3", "--set", "every=4")
    config = str(tmp_path / "a" / "config.yaml")
    again = Outcome(
        "train", "--config", config, "--out", str(tmp_path / "b"), "--lr", "0.01", "--epochs", "0.5", "--json"
    )
    assert again.status == 0
    stored = json.loads(again.out)["config"]
    assert (stored["method"], stored["density"], stored["args"]) == ("rigl", 0.3, {"every": 4})
    assert (stored["lr"], stored["steps"]) == (0.01, round(0.5 * 1293 / 50))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method", "rigle", "--density", "0.1"], "unknown method 'rigle'; did you mean 'rigl'"),
        (["--model", "lenet-5"], "unknown model 'lenet-5'; did you mean 'lenet5'"),
        (["--data", "mnist"], "unknown data set 'mnist'; did you mean 'mnist5k' or 'mnist1d'"),
        (["--method", "set", "--density", "0"], "density = 0.0: expected a fraction kept"),
        (["--method", "set", "--density", "1.5"], "density = 1.5: expected a fraction kept"),
        (["--method", "set", "--density", "nan"], "density = nan: expected a fraction kept"),
        (["--method", "set"], "method 'set' needs the fraction kept"),
        (
            ["--method", "set", "--density", "0.1", "--set", "evry=3"],
            "unknown key 'evry' for set; did you mean 'every'",
        ),
        (["--optimizer", "sdg"], "optimizer = 'sdg': expected none or 'sgd', 'adam', 'adamw', 'muon'"),
        (["--set", "model.hiden=3"], "unknown option 'hiden' of model mlp; did you mean 'hidden'"),
        (["--set", "data.valid_fraction=0.1"], "unknown option 'valid_fraction' of data set digits"),
        (
            ["--method", "rigl", "--density", "0.1", "--set", "fraction=cosine"],
            "cosine needs start_value; write cosine:",
        ),
        (["--targets", "fc*"], "target 'fc*' matches no parameter"),
        (["--lr", "9e3", "--steps", "40", "--set", "model.batch_norm=false"], "; try a smaller --lr"),
        (["--lr", "1e300"], "lr = 1e+300: expected above 0, and below 10000"),
        (["--seed", "9" * 26], "expected 0 or more, and below 2**63"),
        (["--threads", "9" * 26], "expected 1 to 1024"),
        (["--device", "meta"], "device = 'meta' cannot compute here"),
        (["--set", "model.hidden=99999999999"], "cannot build model mlp with hidden=[99999999999] on cpu"),
        (["--out", "/dev/null/run"], "cannot use /dev/null/run as run folder"),
    ],
)
def test_our_errors_are_one_line_and_status_1(tmp_path: Path, args: list[str], message: str) -> None:
    done = Outcome("train", *TINY, "--out", str(tmp_path / "run"), *args)
    assert done.status == 1
    assert done.out == ""
    assert done.err.startswith("gossamer: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert (tmp_path / "run").exists() == ("try a smaller" in message)


@pytest.mark.parametrize("place", [[], ["--out", "nowhere"]])
def test_resume_needs_a_run(place: list[str]) -> None:
    done = Outcome("train", "--resume", *place)
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert f"there is no run to resume {'in nowhere' if place else 'without its folder'}" in done.err


def test_ctrl_c_without_a_message_says_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gossamer.experiments.train.train", interrupt)
    done = _train(tmp_path / "run")
    assert (done.status, done.err) == (130, "gossamer: stopped\n")


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    _train(tmp_path / "run")
    again = _train(tmp_path / "run")
    assert again.status == 1
    assert "is not empty; add --resume" in again.err
    changed = _train(tmp_path / "run", "--resume", "--seed", "5")
    assert changed.status == 1
    assert "another config (seed 0 -> 5)" in changed.err


@pytest.mark.parametrize(
    "args", [["frob"], ["train", "--steps", "x"], ["train", "--frob"], ["inspect"], ["demo", "--seeds", "0"]]
)
def test_usage_errors_are_status_2(args: list[str]) -> None:
    assert Outcome(*args).status == 2


def test_every_run_field_is_a_flag_and_nothing_else_is() -> None:
    parameters = inspect.signature(cli.train_command).parameters
    own = {"settings", "config", "resume", "quiet", "as_json"}
    assert set(parameters) == (set(FIELDS) - set(MAPPINGS)) | own
    text = Outcome("train", "--help").out
    for name in set(FIELDS) - set(MAPPINGS):
        assert f"--{name.replace('_', '-')}" in text


def test_help_names_the_values_of_choices() -> None:
    text = "".join(Outcome("train", "--help").out.replace("│", " ").split())
    assert "masked|sparse|hybrid|bl" in text  # the rest is on the next line
    assert "sgd|adam" in text


@pytest.mark.parametrize("name", ["train", "demo", "methods", "inspect", "bench", "data", "models"])
def test_every_command_has_help_with_an_example(name: str) -> None:
    done = Outcome(name, "--help")
    assert done.status == 0
    assert f"Example: gossamer {'train' if name in ('data', 'models') else name}" in " ".join(done.out.split())


# -- the other commands ----------------------------------------------------------------------------------------


def test_methods_json_is_the_contract() -> None:
    rows = json.loads(Outcome("methods", "--json").out)
    assert [row["name"] for row in rows] == sorted(REGISTRY)
    assert {"rewire", "rigl", "set", "static"} <= {row["name"] for row in rows}
    assert all(set(row) == {"name", "summary", "needs", "source", "choices"} and all(row.values()) for row in rows)
    assert all(set(row["choices"]) == set(Choices.header()) for row in rows)
    omits = {row["name"]: row["choices"]["omits"] for row in rows}
    assert (omits["rewire"], omits["static"]) == ([], ["rewire", "dense gradients"])
    assert json.loads(Outcome("methods", "rigl", "--json").out) == [row for row in rows if row["name"] == "rigl"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_method_is_described_with_its_choices_and_arguments(name: str) -> None:
    info, text = REGISTRY[name], Outcome("methods", name).out
    for argument in set(inspect.signature(info.build).parameters) - {"density", *DATA}:
        assert f"  {argument} = " in text
    for column, cell in zip(Choices.header(), info.build(0.25).choices.cells(), strict=True):
        assert re.search(rf"^  {column} +{re.escape(cell)}$", text, re.M)
    assert info.source in text


@pytest.mark.parametrize("width", [80, 200])
def test_methods_lists_all_with_their_choices_and_the_controls(width: int) -> None:
    done = CliRunner().invoke(cli.app, ["methods"], env={"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"})
    tables = [line.split() for line in done.output.splitlines()]
    headers = [line[1:] for line in tables if line[:1] == ["method"]]
    assert headers[0] == ["summary", "needs"]
    assert [column for header in headers[1:] for column in header] == list(Choices.header())
    assert len(headers) < (7 if width == 80 else 4)
    for name in REGISTRY:
        assert sum(line[:1] == [name] for line in tables) == len(headers), "a row in every table"
    drawn = [line for line in done.output.splitlines() if line.startswith("  ")]
    assert max(map(len, drawn)) <= width
    assert "controls: dense: " in done.output
    unknown = Outcome("methods", "rigle")
    assert (unknown.status, unknown.out) == (1, "")


def test_methods_in_markdown_are_one_table() -> None:
    lines = Outcome("methods", "--markdown").out.splitlines()
    assert lines[0] == f"| method | {' | '.join(Choices.header())} |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| [{name}]({name}.md)" for name in sorted(REGISTRY)]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(Choices.header()) + 2}
    assert (
        lines[:2] + [line for line in lines if line.startswith("| [rigl]")]
        == Outcome("methods", "rigl", "--markdown").out.splitlines()
    )


@pytest.mark.parametrize("name", ["dense", "small"])
def test_controls_are_described(name: str) -> None:
    done = Outcome("methods", name)
    assert done.out.startswith(f"{name}: {CONTROLS[name]}\n")
    assert json.loads(Outcome("methods", name, "--json").out)[0]["summary"] == CONTROLS[name]


def test_data_and_models_are_listed_with_their_options() -> None:
    data, models = json.loads(Outcome("data", "--json").out), json.loads(Outcome("models", "--json").out)
    assert [row["name"] for row in data] == list(DATASETS)
    assert {row["name"]: row["present"] for row in data}["digits"] is True
    assert [row["name"] for row in models] == list(MODELS)
    assert {row["name"]: row["options"] for row in models}["mlp"]["hidden"] == "256,256"
    assert all(name in Outcome("data").out for name in DATASETS)
    assert all(name in Outcome("models").out for name in MODELS)


def test_inspect_shows_both_kinds_of_checkpoint(tmp_path: Path) -> None:
    _train(tmp_path / "run", "--method", "static", "--density", "0.1")
    for name, kind in (("model", "model"), ("training", "training")):
        file = str(tmp_path / "run" / f"{name}.safetensors")
        assert f"{kind} file, " in Outcome("inspect", file).out
        about = json.loads(Outcome("inspect", file, "--json").out)
        assert about["kind"] == kind
    assert "method: static" in Outcome("inspect", str(tmp_path / "run" / "model.safetensors")).out
    for file, message in ((tmp_path / "none", "there is no file"), (Path(__file__), "safetensors")):
        done = Outcome("inspect", str(file))
        assert (done.status, done.err.count("\n")) == (1, 1)
        assert message in done.err


def test_version() -> None:
    assert Outcome("--version").out == f"gossamer {gossamer.__version__}\n"


def test_demo_prints_one_table_and_resumes_nothing_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.experiments.demo.available", lambda name: False)
    done = Outcome("demo", "--out", str(tmp_path / "demo"), "--steps", "4", "--seeds", "1")
    assert done.status == 0
    for label in ("dense", "SMALL", "static", "SET", "RigL", "rewire", "bytes", "non-zeros"):
        assert label in done.out
    assert (tmp_path / "demo" / "report.html").exists()
    rows = json.loads(Outcome("demo", "--out", str(tmp_path / "demo"), "--steps", "4", "--seeds", "1", "--json").out)
    assert len(rows) == 6
    assert (tmp_path / "demo-2" / "report.html").exists()


# -- progress and processes ------------------------------------------------------------------------------------


def test_progress_shows_loss_metric_and_density(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    row = {"train_metric": 50.0, "valid_metric": 48.0, "density": 0.1}
    assert figures(Update(1, 2, 0.5, "accuracy", {})) == "loss 0.500"
    assert figures(Update(1, 2, 0.5, "accuracy", row)) == "loss 0.500  valid 48  density 0.1"
    console = Console(force_terminal=True, width=160)
    with live_progress(console, runs=2) as show:
        for label in ("a", "b"):
            for step in (1, 2):
                show(label, Update(step, 2, 0.25, "accuracy", row | {"valid_metric": None}))
    text = ANSI.sub("", capsys.readouterr().out)
    assert "loss 0.250  train 50  density 0.1" in text
    assert "4/4" in text
    assert "ETA" in text


def test_progress_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    row = {"train_metric": 50.0, "valid_metric": 48.25, "density": 0.2002}
    with live_progress(Console(force_terminal=True, width=80), runs=18) as show:
        show("rewire seed 2", Update(10000, 10000, 12.345, "accuracy", row))
    text = ANSI.sub("", capsys.readouterr().out)
    assert re.search(r"rewire seed 2 +10000/180000 loss 12\.345  valid 48\.25  density 0\.2002 ETA [-:\d]+", text)


def _command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from gossamer.cli import main; main()", *args]


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume_and_that_works(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = ["--data", "mnist1d", "--model", "mlp", "--steps", "100000", "--eval-every", "10", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(_command("train", *steps), stderr=subprocess.PIPE, text=True, env=environment)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, message = child.communicate(timeout=60)
    assert child.returncode == 130
    assert re.fullmatch(
        r"gossamer: stopped after step \d+ of 100000, checkpoint written; "
        rf"continue with: gossamer train --resume --out {re.escape(str(out))}\n",
        message,
    )
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] >= 10
    assert (out / "training.safetensors").exists()


def test_the_installed_command_reports_errors_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        _command("train", *TINY, "--density", "2", "--out", str(tmp_path / "run")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gossamer: error: density = 2.0")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [("--version",), ("data",)])
def test_a_full_disk_and_a_closed_pipe_are_status_1_without_a_traceback(args: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(_command(*args), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 1
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(_command(*args), stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_starting_the_command_loads_no_loop_data_or_figures() -> None:
    heavy = ["matplotlib", "gossamer.experiments.train", "gossamer.experiments.data", "gossamer.experiments.models"]
    code = f"import sys, gossamer.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_entry_point_is_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(typer.Typer, "__call__", lambda self: called.append(self))
    cli.main()
    assert called == [cli.app]


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_warning_of_a_run_is_one_line_and_in_its_result(tmp_path: Path) -> None:
    args = ["--method", "magnitude", "--density", "0.004", "--control", "reinit", "--set", "allow_collapse=true"]
    done = _train(tmp_path / "run", *args)
    notes = [line for line in done.err.splitlines() if "no path" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: magnitude at density")
    assert done.out.startswith("magnitude (reinit): test accuracy")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["notes"] == [notes[0].removeprefix("note: ")]
