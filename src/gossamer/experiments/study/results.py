"""What a study leaves behind: results.md, results.json, report.html, and the table on the terminal."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .. import summary
from ..report import write_comparison
from ..runs import Result, RunFolder, write_atomically
from ..summary import Line, spread
from ..values import spell
from .agenda import Outcome

_UNBOUNDED = 10_000  # columns, to measure what a table needs


def lines(outcome: Outcome) -> list[Line]:
    """The summary of an outcome, one line per (label, density)."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for (label, density, _), result in outcome.results.items():
        groups.setdefault((label, density), []).append(result)
    originals = {row.label: row.variant_of for row in outcome.study.rows if row.variant_of is not None}
    return summary.summarise(groups, outcome.study.compare, originals)


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "study": spell(asdict(outcome.study)),
        "runs": [
            {"label": label, "density": density, "seed": seed, "result": result.to_dict()}
            for (label, density, seed), result in outcome.results.items()
        ],
        "tuning": [tuning.to_dict() for tuning in outcome.tunings.values()],
        "failures": dict(outcome.failures),
    }


def write_outcome(outcome: Outcome, out: Path, command: str, tables: Path | None = None) -> None:
    """Write results.md (the tables with their setting), results.json (every result) and report.html into `out`.

    tables: a folder that gets a copy of results.md, as NAME.md.
    """
    study = outcome.study
    base = ", ".join(f"{key}={value}" for key, value in study.base.items())
    text = [
        f"# {study.name}\n",
        f"{study.note}\n" if study.note else "",
        f"Setting: {base}; targets: {study.base.get('targets', 'default')}; seeds {list(study.seeds)}. "
        f"Mean ± sample standard deviation over seeds of the test metric after the last step; differences are paired "
        f"by seed; f = (row - SMALL) / (DENSE - SMALL); s: median seconds of training, as the machine allowed; "
        f"ms/step: of one optimizer step; MiB: peak memory beyond that of the process before the run.",
        f"Command: `{command}` (Python {platform.python_version()}, torch {torch.__version__}).\n",
        summary.markdown(*_full_table(outcome)),
        _tuning_text(outcome),
        *(f"Failed: {run}: {why}\n" for run, why in outcome.failures.items()),
    ]
    content = "\n".join(part for part in text if part).rstrip("\n") + "\n"
    write_atomically(out / "results.md", content)
    if tables:
        tables.mkdir(parents=True, exist_ok=True)
        write_atomically(tables / f"{study.name}.md", content)
    write_atomically(out / "results.json", json.dumps(to_dict(outcome), indent=1) + "\n")
    if outcome.results:
        lead = f"{study.base.get('model')} on {study.base.get('data')}, {len(study.seeds)} seeds"
        write_report(outcome, out, study.name, lead)


def write_report(outcome: Outcome, out: Path, title: str, lead: str) -> None:
    """Write report.html into `out`: the table, the curves of the first seed at the first density, and every run."""
    study, first = outcome.study, next(iter(outcome.results.values()))
    curves = {
        label: RunFolder(outcome.folders[label, density, seed]).metrics()
        for label, density, seed in outcome.results
        if seed == study.seeds[0] and density in (1.0, study.densities[0])
    }
    shown = f"{lead}; curves show seed {study.seeds[0]}; f = (row - SMALL) / (DENSE - SMALL)"
    results = list(outcome.results.values())
    write_comparison(out / "report.html", title, shown, _full_table(outcome), curves, first.metric, results)


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print the summary, and what was chosen for every tuned (label, density)."""
    print_lines(console, outcome.study.name, lines(outcome))
    for tuning in outcome.tunings.values():
        console.print(f"tuned: {tuning.label} d={tuning.density:g}: {tuning}", markup=False, highlight=False)


def print_lines(console: Console, title: str, shown: Sequence[Line]) -> None:
    """Print the summary table; no cell is cut, however narrow the terminal is."""
    header, rows = summary.table(shown)
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=0)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    needed = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _full_table(outcome: Outcome) -> summary.Table:
    """The summary with time, memory and, where the study tunes, the chosen settings."""
    shown = lines(outcome)
    header, rows = summary.table(shown)
    header = (*header, "s", "ms/step", "MiB")
    timed = [(*row, f"{line.seconds:.1f}", *_machine(line)) for row, line in zip(rows, shown, strict=True)]
    if outcome.study.tune is None:
        return header, timed
    chosen = [str(outcome.tunings.get((line.label, line.density), "untuned")) for line in shown]
    return (*header, "chosen"), [(*row, cell) for row, cell in zip(timed, chosen, strict=True)]


def _machine(line: Line) -> tuple[str, str]:
    """Milliseconds per step and MiB of memory, as text."""
    step, peak = line.machine("step_seconds"), line.machine("peak_bytes")
    return "" if step is None else f"{1e3 * step:.2f}", "" if peak is None else f"{peak / 2**20:.0f}"


def _tuning_text(outcome: Outcome) -> str:
    """How the settings were chosen, and the validation metric of every point."""
    tune, tunings = outcome.study.tune, outcome.tunings.values()
    if tune is None or not tunings:
        return ""
    lead = (
        f"Tuning: {tune.budget} points per row and density, trained with {dict(tune.settings)} on seeds "
        f"{list(tune.seeds)}, chosen by the mean validation metric after the last step. The test split was not used. "
        "(edge): the chosen value is the smallest or largest of the sweep, so a better one may lie beyond.\n"
    )
    rows = [
        (tuning.label, f"{tuning.density:g}", ", ".join(score.point), _score_text(score.values, score.mean), best)
        for tuning in tunings
        for score in tuning.scores
        for best in ("*" if score == tuning.best else "",)
    ]
    metric = next(iter(tunings)).metric
    return f"{lead}\n{summary.markdown(('row', 'density', 'point', f'validation {metric}', 'chosen'), rows)}"


def _score_text(values: Sequence[float | None], mean: float | None) -> str:
    if mean is None:
        return "diverged"
    return spread(*summary.mean_and_deviation([value for value in values if value is not None]))
