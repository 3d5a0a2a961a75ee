"""Law 5: a run that is killed and resumed, at any step, equals the uninterrupted run bit for bit."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.checkpoint import load, save
from gossamer.errors import CheckpointError, ConfigError
from gossamer.experiments import setup
from gossamer.experiments.config import RunConfig
from gossamer.experiments.runs import RunFolder
from gossamer.experiments.train import Update, train

from .kills import train_with_kills
from .tiny import Make, assert_alike, assert_continues_exactly, interrupt, rows_of

METHODS = {
    "dense": {},
    "small": {},
    "static": {},
    "set": {"every": 3},
    "rigl": {"every": 3},
    "rewire": {"exploit": "reset:4"},
    "set-itop": {"every": 3, "grace": 4},
    "rigl-itop": {"every": 3},
    "deepr": {"temperature": 1e-3},
    "dsr": {"every": 2, "threshold": 0.02},
    "snfs": {"every": 3},
    "topkast": {"every": 2},
    "srigl": {"every": 3},
    "ste": {},
    "sr-ste": {"group": None},
    "one-shot": {"at": 8},
    "gmp": {"every": 3},
    "granet": {"every": 3},
}


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_runs_continue_exactly(make: Make, method: str) -> None:
    values: dict[str, Any] = {"method": method, "args": METHODS[method], "optimizer": "adamw", "amp": "bf16"}
    _, result = assert_continues_exactly(make, values, 1, 7, 13)
    assert result.steps == 20


@pytest.mark.parametrize("values", [{"optimizer": "muon", "clip": 0.5}, {"amp": "fp16", "accumulate": 2}])
def test_all_that_has_a_state_is_restored(make: Make, values: dict[str, Any]) -> None:
    values = {"model_options": {"hidden": [16, 16]}, "schedule": "step", "method": "rewire", **values}
    assert_continues_exactly(make, values, 11, number=signal.SIGTERM)


def test_rows_after_the_checkpoint_are_not_doubled(make: Make) -> None:
    """Rows at 8, 16, 20, checkpoints at 6, 12: a crash at step 10 has written a row that the resumed run repeats."""

    def crash(update: Update) -> None:
        if update.step == 10:
            raise RuntimeError("power cut")

    whole, parts = make("whole"), make("parts")
    train(whole)
    with pytest.raises(RuntimeError, match="power cut"):
        train(parts, progress=crash)
    assert [row["step"] for row in rows_of(parts)] == [8]
    train(parts, resume=True)
    assert_alike(parts, whole)


def test_a_checkpoint_without_topology_metrics_is_named(make: Make) -> None:
    config = make()
    interrupt(config, 10)
    file = RunFolder(Path(str(config.out))).training_file
    contents = load(file)
    del contents.state["extra"]["exploration"]
    save(file, contents.state, kind="training", metadata=contents.metadata)
    with pytest.raises(CheckpointError, match="the saved topology metrics do not fit"):
        train(config, resume=True)


def test_seconds_of_both_parts_are_added(make: Make) -> None:
    config = make()
    interrupt(config, 10)
    before = load(f"{config.out}/training.safetensors").state["extra"]["seconds"]
    assert train(config, resume=True).seconds >= round(before, 3)


def test_finished_runs_are_not_run_again(make: Make) -> None:
    config = make()
    result = train(config)
    steps: list[int] = []
    assert train(config, resume=True, progress=lambda update: steps.append(update.step)) == result
    assert steps == []


def test_resume_of_a_new_folder_is_a_new_run(make: Make) -> None:
    assert train(make("new"), resume=True).steps == 20


def test_changed_configs_are_named(make: Make) -> None:
    train(make())
    with pytest.raises(
        ConfigError, match=r"cannot resume .* with another config \(density 0\.2 -> 0\.4, lr .* -> 0\.5\)"
    ):
        train(make(density=0.4, lr=0.5), resume=True)
    with pytest.raises(ConfigError, match="is not empty; add --resume"):
        train(make())


def test_the_folder_may_be_spelled_otherwise(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train(make())
    monkeypatch.chdir(tmp_path)
    config = RunConfig.from_dict(make().to_dict() | {"out": "run"})
    assert train(config, resume=True) == result


@pytest.mark.slow
@pytest.mark.parametrize("method", ["set", "rewire"])
def test_sigkill_at_three_random_steps_changes_nothing(make: Make, method: str) -> None:
    """Autocast to bf16, cosine schedule with warm-up, drop and grow (or live weights) between the kills."""
    values: dict[str, Any] = {
        "data": "mnist1d",
        "method": method,
        "args": {"every": 7},
        "model_options": {"hidden": [32]},
        "steps": 120,
        "eval_every": 10,
        "checkpoint_every": 9,
        "warmup": 0.1,
        "schedule": "cosine",
        "amp": "bf16",
    }
    whole, parts = make("whole", **values), make("parts", **values)
    train(whole)
    kills = sorted(random.Random(method).sample(range(1, 120), 3))
    assert train_with_kills(parts, [*kills, 0]) == [*[-signal.SIGKILL] * 3, 0]
    assert_alike(parts, whole)


def test_random_state_of_dropout_is_restored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    build = setup.models.build

    def with_dropout(*args: Any, **options: Any) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), build(*args, **options))

    monkeypatch.setattr(setup.models, "build", with_dropout)
    assert_continues_exactly(make, {}, 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_runs_on_a_gpu_continue_exactly(make: Make, amp: str | None) -> None:
    assert_continues_exactly(make, {"device": "cuda", "amp": amp}, 9)


# -- the folder ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_one_folder_takes_one_process(make: Make) -> None:
    config = make()
    folder = RunFolder(Path(str(config.out)))
    interrupt(config, 2)
    before = {item.name: item.read_bytes() for item in folder.path.iterdir()}
    code = f"import pathlib, gossamer.experiments.runs as r\nwith r.RunFolder(pathlib.Path({config.out!r})).locked(): "
    holder = subprocess.Popen(
        [sys.executable, "-c", code + "print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"cannot use .*run as run folder: another process is training in it"):
            train(config, resume=True)
        holder.kill()
    assert {item.name: item.read_bytes() for item in folder.path.iterdir()} == before
    assert train(config, resume=True).steps == 20


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("metric", {"name": "accuracy", "value": "abc"}),
        ("counts", {}),
        ("config", {}),
        ("steps", None),
        ("metric", {"name": "accuracy", "value": math.nan, "higher_is_better": True}),
        ("metric", {"name": "accuracy", "value": 50.0}),
    ],
)
def test_a_damaged_result_is_named(make: Make, part: str, damage: object) -> None:
    config = make(steps=2)
    train(config)
    file = RunFolder(Path(str(config.out))).result_file
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: damage}))
    with pytest.raises(CheckpointError, match=r"result\.json is no result of a run: .*; delete the folder .* again"):
        train(config, resume=True)


def test_damaged_rows_are_named_with_the_remedy(make: Make) -> None:
    config = make(steps=2)
    train(config)
    folder = RunFolder(Path(str(config.out)))
    folder.metrics_file.unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl holds no rows of a run: .*; delete the folder .* again"):
        folder.metrics()
