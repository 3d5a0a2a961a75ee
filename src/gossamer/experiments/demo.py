"""The demo: six ways to train one network at one low density, in under three minutes on two cores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .data import available
from .runs import Result, write_atomically
from .study import Failure, Job, Outcome, Row, Study, run_study, write_report
from .train import Update

DENSITY, SEEDS, STEPS = 0.05, (0, 1, 2), 600


def _rows(steps: int) -> tuple[Row, ...]:
    clock = {"every": max(2, steps // 40), "stop": 0.75}
    return (
        Row("dense", "dense"),
        Row("SMALL", "small"),
        Row("static", "static"),
        Row("SET", "set", clock),
        Row("RigL", "rigl", clock),
        Row("rewire", "rewire"),
    )


def demo_study(*, steps: int = STEPS, seeds: tuple[int, ...] = SEEDS) -> Study:
    """The demo's grid: a 300-100 MLP with batch norm on Fashion-MNIST if it is on this machine, else on MNIST-5k."""
    base = {
        "data": "fashion-mnist" if available("fashion-mnist") else "mnist5k",
        "model": "mlp",
        "model_options": {"hidden": [300, 100]},
        "optimizer": "sgd",
        "lr": 0.1,
        "steps": steps,
        "threads": 1,
    }
    return Study("gossamer demo", base, _rows(steps), (DENSITY,), seeds)


def demo_folder(study: Study, out: Path) -> Path:
    """The first of ``out``, ``out-2``, ``out-3``... that is new, or holds this study unfinished."""
    definition = json.dumps(asdict(study), indent=1) + "\n"
    number = 1
    while True:
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        file = folder / "study.json"
        if not folder.exists() or not any(folder.iterdir()):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, definition)
            return folder
        unfinished = not (folder / "report.html").exists()
        if unfinished and file.exists() and file.read_text(encoding="utf-8") == definition:
            return folder
        number += 1


def run_demo(
    study: Study,
    folder: Path,
    *,
    progress: Callable[[Job, Update], None] | None = None,
    done: Callable[[Job, Result | Failure], None] | None = None,
) -> Outcome:
    """Run what is left of the demo in `folder`, and write one report over all runs."""
    outcome = run_study(study, folder, progress=progress, done=done)
    if outcome.results:
        base = study.base
        title = f"{base['model']} on {base['data']} at density {study.densities[0]:g}"
        write_report(outcome, folder, title, f"{base['steps']} steps, {len(study.seeds)} seeds")
    return outcome
