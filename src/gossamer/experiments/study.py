"""A study: one base config, rows that differ in method, times densities, times seeds; run as a resumable grid.

``python -m gossamer.experiments.study studies/m1d-baselines.yaml --workers 2``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..errors import ConfigError, GossamerError, did_you_mean
from .config import RunConfig
from .runs import Result, read_config, write_atomically
from .summary import DENSE, Line, markdown, summarise, table
from .train import Update, train

Key = tuple[str, float, int]  # label, density, seed
_UNBOUNDED = 10_000  # columns, to measure what a table needs


@dataclass(frozen=True)
class Row:
    """One row of a study. args: of the method; settings: run fields in which it differs from the base."""

    label: str
    method: str
    args: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A grid of runs: rows x densities x seeds. Dense rows run once per seed, at density 1."""

    name: str
    base: Mapping[str, Any]
    rows: tuple[Row, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    note: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        """Build from a mapping such as a parsed YAML file."""
        fields = ("name", "base", "rows", "densities", "seeds", "note")
        for key in values:
            if key not in fields:
                raise ConfigError(f"unknown key {key!r} in the study{did_you_mean(str(key), fields)}")
        for key in fields[:-1]:
            if not values.get(key):
                raise ConfigError(f"the study has no {key}: a study needs {', '.join(fields[:-1])}")
        try:
            rows = tuple(Row(**row) for row in values["rows"])
        except TypeError as error:
            raise ConfigError(f"a row of the study needs label and method, may have args, settings: {error}") from error
        labels = [row.label for row in rows]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ConfigError(f"rows of a study need labels of their own; {', '.join(twice)} occur more than once")
        lists = {key: tuple(values[key]) for key in ("densities", "seeds")}
        return cls(str(values["name"]), values["base"], rows, note=str(values.get("note", "")).strip(), **lists)

    @classmethod
    def from_file(cls, path: Path) -> Study:
        """Read a YAML file."""
        return cls.from_dict(read_config(path))

    def runs(self, out: Path) -> dict[Key, RunConfig]:
        """Every run of the grid with its folder, by (label, density, seed); each is checked."""
        return {
            (row.label, density, seed): self._run(row, density, seed, out)
            for row in self.rows
            for density in ((1.0,) if row.method == DENSE else self.densities)
            for seed in self.seeds
        }

    def _run(self, row: Row, density: float, seed: int, out: Path) -> RunConfig:
        slug = "".join(c if c.isalnum() or c in ".=-" else "_" for c in row.label)
        own = {"method": row.method, "args": row.args, "density": density, "seed": seed}
        folder = str(out / f"{slug}-d{density:g}-s{seed}")
        return RunConfig.from_dict({**self.base, **row.settings, **own, "out": folder})


@dataclass(frozen=True)
class Outcome:
    """What a study gave: results by (label, density, seed), and one-line errors of the runs that failed."""

    results: Mapping[Key, Result]
    failures: Mapping[Key, str]

    def lines(self) -> list[Line]:
        """The summary, one line per (label, density)."""
        groups: dict[tuple[str, float], list[Result]] = {}
        for (label, density, _), result in self.results.items():
            groups.setdefault((label, density), []).append(result)
        return summarise(groups)


def run_study(
    study: Study,
    out: Path,
    *,
    workers: int = 1,
    progress: Callable[[Key, Update], None] | None = None,
    done: Callable[[Key, Result | str], None] | None = None,
) -> Outcome:
    """Run the grid; finished runs are skipped, interrupted ones are resumed. A failed run does not stop the rest.

    workers: processes, each with one thread; 1 runs here. progress: after every step (only with one worker).
    done: after every run, with its result or its error.
    """
    runs = study.runs(out)
    finished: dict[Key, Result] = {}
    failures: dict[Key, str] = {}
    for key, result in _execute(runs, workers, progress):
        if isinstance(result, Result):
            finished[key] = result
        else:
            failures[key] = result
        if done:
            done(key, result)
    return Outcome({key: finished[key] for key in runs if key in finished}, failures)


def _execute(
    runs: Mapping[Key, RunConfig], workers: int, progress: Callable[[Key, Update], None] | None
) -> Iterator[tuple[Key, Result | str]]:
    if workers == 1:
        for key, config in runs.items():
            yield key, _attempt(config, partial(progress, key) if progress else None)
        return
    context = multiprocessing.get_context("spawn")
    with _one_thread_per_process(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(_attempt, config): key for key, config in runs.items()}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _attempt(config: RunConfig, progress: Callable[[Update], None] | None = None) -> Result | str:
    try:
        return train(config, resume=True, progress=progress)
    except GossamerError as error:
        return str(error)


@contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Processes that start inside use one OpenMP thread: several per core only get in each other's way."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def write_outcome(study: Study, outcome: Outcome, out: Path, command: str) -> None:
    """Write results.md (the table with its setting) and results.json (every result) into `out`."""
    base = ", ".join(f"{key}={value}" for key, value in study.base.items())
    text = [
        f"# {study.name}\n",
        f"{study.note}\n" if study.note else "",
        f"Setting: {base}; targets: {study.base.get('targets', 'default')}; seeds {list(study.seeds)}. "
        f"Mean ± sample standard deviation over seeds of the test metric after the last step; "
        f"f = (row - SMALL) / (DENSE - SMALL).",
        f"Command: `{command}` (Python {platform.python_version()}, torch {torch.__version__}).\n",
        markdown(outcome.lines()),
        *(f"Failed: {label}, density {d:g}, seed {s}: {why}" for (label, d, s), why in outcome.failures.items()),
    ]
    write_atomically(out / "results.md", "\n".join(part for part in text if part) + "\n")
    raw = [
        {"label": label, "density": density, "seed": seed, "result": result.to_dict()}
        for (label, density, seed), result in outcome.results.items()
    ]
    write_atomically(out / "results.json", json.dumps({"study": asdict(study), "runs": raw}, indent=1) + "\n")


def print_lines(console: Console, title: str, lines: Sequence[Line]) -> None:
    """Print the summary table; no cell is cut, however narrow the terminal is."""
    header, rows = table(lines)
    shown = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=0)
    for index, name in enumerate(header):
        shown.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    needed = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), shown).maximum
    console.width = max(console.width, needed)
    console.print(shown)


def main(argv: Sequence[str] | None = None) -> int:
    """Run study files one after the other; returns the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m gossamer.experiments.study", description=__doc__)
    parser.add_argument("studies", type=Path, nargs="+", help="YAML files, e.g. studies/m1d-baselines.yaml")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the file")
    parser.add_argument("--out", type=Path, default=Path("runs") / "studies", help="folder of all runs and results")
    parser.add_argument("--tables", type=Path, help="folder that gets a copy of every table, e.g. docs/results")
    given = parser.parse_args(argv)
    errors = Console(stderr=True)
    try:
        failed = sum(_run_file(file, given, errors) for file in given.studies)
    except (GossamerError, KeyboardInterrupt) as error:
        again = isinstance(error, KeyboardInterrupt)
        errors.print(f"gossamer: {'stopped; the same command continues' if again else f'error: {error}'}", markup=False)
        return 130 if again else 1
    return 1 if failed else 0


def _run_file(file: Path, given: argparse.Namespace, errors: Console) -> bool:
    """Run one study file, print and write its table; returns whether a run failed."""
    study = Study.from_file(file)
    if given.seeds:
        study = replace(study, seeds=tuple(given.seeds))
    out = given.out / study.name
    total = len(study.runs(out))
    counter = iter(range(1, total + 1))

    def done(key: Key, result: Result | str) -> None:
        value = result if isinstance(result, str) else f"{result.metric['name']} {result.metric['value']:.4g}"
        errors.print(f"{next(counter)}/{total} {key[0]} d={key[1]:g} seed={key[2]}: {value}", highlight=False)

    outcome = run_study(study, out, workers=given.workers, done=done)
    command = f"python -m gossamer.experiments.study {file} --workers {given.workers}"
    command += f" --seeds {' '.join(map(str, given.seeds))}" if given.seeds else ""
    write_outcome(study, outcome, out, command)
    console = Console()
    print_lines(console, study.name, outcome.lines())
    console.print(f"written: {out / 'results.md'}, {out / 'results.json'}", highlight=False, soft_wrap=True)
    if given.tables:
        given.tables.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "results.md", given.tables / f"{study.name}.md")
    return bool(outcome.failures)


if __name__ == "__main__":
    sys.exit(main())
