"""What the tests of studies share."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from gossamer.experiments.runs import Result, RunFolder
from gossamer.experiments.setup import make_plan
from gossamer.experiments.study import Agenda, Row, Study
from gossamer.experiments.study.trials import FILE

BASE = {
    "data": "digits",
    "model": "mlp",
    "model_options": {"hidden": [16]},
    "steps": 4,
    "threads": 1,
    "valid_fraction": 0,
}


def tiny(**changes: Any) -> Study:
    rows = (Row("dense", "dense"), Row("SMALL", "small"), Row("RigL", "rigl", {"every": 2}, {"lr": 0.05}))
    return replace(Study("tiny", BASE, rows, (0.2, 0.4), (0, 1)), **changes)


def damage(study: Study, out: Path, label: str) -> None:
    """Leave results that cannot be read where the first runs of a row go, so that these fail."""
    for job in Agenda(study, out).first:
        if job.label == label:
            folder = RunFolder(out / job.run)
            folder.create(make_plan(job.config).config)
            folder.result_file.write_text("[]")


def result(method: str, seed: int, value: float, *, higher: bool = True) -> Result:
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


def states(out: Path) -> Counter[tuple[str, str]]:
    """How many trials of a study's file are in which state, by (run, state)."""
    study = optuna.load_study(study_name="gossamer", storage=f"sqlite:///{out / FILE}")
    found = Counter((trial.user_attrs["run"], trial.state.name) for trial in study.trials)
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return found


def contents(out: Path) -> dict[str, tuple[bytes, list[dict[str, Any]], dict[str, Any]]]:
    """What every run of a study made, without wall times and folders: model, rows and result."""
    found = {}
    for file in sorted(out.rglob("result.json")):
        folder, made = file.parent, json.loads(file.read_text())
        made["config"].pop("out")
        made.pop("seconds")
        made.pop("machine")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row.pop("seconds")
        found[str(folder.relative_to(out))] = ((folder / "model.safetensors").read_bytes(), rows, made)
    return found
