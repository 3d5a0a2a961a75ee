"""All about the GPU in one command: versions, correctness of every kernel, then the targets G1 to G18, and a page.

    python benchmarks/gpu/run.py                 on a machine with a GPU, about 8 minutes
    python benchmarks/gpu/run.py --page out/gpu.md --json out/gpu.json
    python benchmarks/gpu/run.py --only G4,G10
    python benchmarks/gpu/run.py --dry           on any machine: tiny shapes, each thing once, nothing timed

Checks run beside each other, in processes of their own, which also compiles most kernels; targets run one by one. A
target is not measured if a check that it rests on fails. Page and figures are written anew whenever something ended, so
what was found survives whatever comes after. With TRITON_INTERPRET=1 a dry run takes the Triton kernels through the
interpreter, where Triton is installed; else it takes their references.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from checks import CHECKS
from rows import Row, Task
from stage import Stage, versions
from targets import CEILINGS, tasks
from worker import Found, carried_out, work

from gossamer._gpu_timing import STATISTIC

COMMAND = "python benchmarks/gpu/run.py"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "gpu.md"
HEAD = f"""# On a GPU

Made by `{COMMAND}`. Ratios are to dense bfloat16 in the same run: {STATISTIC};
random data, inputs that exceed the cache. *Reached* compares with the targets in the table, set from bytes and
operations before anything was run. The step of a whole model (G7) is launched, not replayed.
"""
NAMES = {CEILINGS, *(f"G{number}" for number in range(1, 19))}
CHECKING = 200.0  # seconds that the checks may take together, and each of them
PATIENCE = 150.0  # seconds that a target may take


@dataclass
class Results:
    """What was found so far; `keep` writes it."""

    stage: Stage
    page: Path | None
    json: Path | None
    told: dict[str, str] = field(default_factory=versions)
    checks: list[dict[str, str]] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)  # by number of the task

    def check(self, found: Found) -> bool:
        """Take what a check told; whether it was right."""
        fine = "error" not in found
        told = {"check": found["part"], "outcome": "right" if fine else "WRONG", "what": found.get("error", "")}
        self.checks.append(told | ({"what": found["outcome"]} if fine else {}))
        print(": ".join((self.checks[-1]["outcome"], found["part"], self.checks[-1]["what"])), flush=True)
        self.keep()
        return fine

    def row(self, number: int, row: Row) -> None:
        """Take a line of the table."""
        self.rows[number] = row
        print("  ".join(_cells(row)), flush=True)
        self.keep()

    def sorted_rows(self) -> list[Row]:
        """By the number of the target, then as they were done."""
        rows = [self.rows[number] for number in sorted(self.rows)]
        return sorted(rows, key=lambda row: int(row.target.removeprefix("G")) if row.target != CEILINGS else 0)

    def keep(self) -> None:
        """Write page and figures."""
        rows = self.sorted_rows()
        if self.json is not None:
            figures = {"versions": self.told, "dry": self.stage.dry, "checks": self.checks}
            _write(self.json, json.dumps(figures | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
        if self.page is not None:
            _write(self.page, _text(self.told, rows, self.checks))


def _write(path: Path, text: str) -> None:
    """At once, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _cells(row: Row) -> tuple[str, ...]:
    reached = {None: "-", True: "yes", False: "no"}[row.reached]
    return tuple(cell.replace("|", "/") for cell in (row.target, row.what, row.wanted, row.figure, reached, row.note))


def _text(told: dict[str, str], rows: Sequence[Row], checks: Sequence[dict[str, str]]) -> str:
    lines = [HEAD, ", ".join(f"{name} {value}" for name, value in told.items()) + "\n", "## Correctness\n"]
    lines += [f"- {each['check']}: {each['outcome']} ({each['what']})" for each in checks]
    lines += ["\n## Targets\n", "| | what | target | here | reached | note |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def checked(results: Results, until: float) -> set[str]:
    """Make all checks; the targets that rest on one that failed."""
    dry, barred, command = results.stage.dry, set[str](), _command(results.stage)
    jobs = 1 if dry else max(1, min(8, (os.cpu_count() or 2) // 2))
    batches = [list(CHECKS)] if dry else [[name] for name in CHECKS]
    for found in carried_out(batches, command, jobs=jobs, until=until, patience=CHECKING):
        barred |= set() if results.check(found) else CHECKS[found["part"]][1]
    return barred


def measured(results: Results, numbered: Iterable[tuple[int, Task]], barred: set[str], until: float) -> None:
    """Measure what may be measured, as far as the time goes."""
    open_tasks = dict(numbered)
    for number, task in list(open_tasks.items()):
        if task.target in barred:
            del open_tasks[number]
            results.row(number, Row(task.target, task.what, "", "not measured", False, "a check failed"))
    batch = [str(number) for number in open_tasks]
    for found in carried_out([batch], _command(results.stage), jobs=1, until=until, patience=PATIENCE):
        number = int(found["part"])
        task = open_tasks[number]
        failed = Row(task.target, task.what, "", "failed", False, found.get("error", ""))
        results.row(number, failed if "error" in found else Row(**found["row"]))


def _command(stage: Stage) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *(["--dry"] if stage.dry else [])]


def _work(stage: Stage, file: Path, names: Sequence[str]) -> int:
    """In a worker: checks by their name, targets by their number."""
    parts = {name: lambda run=run: {"outcome": run(stage)} for name, (run, _) in CHECKS.items()}
    for number, task in enumerate(tasks(stage)):
        parts[str(number)] = lambda run=task.run: {"row": asdict(run())}
    return work(file, names, parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="G1,G4", help="these targets only; all checks are made")
    parser.add_argument("--minutes", type=float, default=8.0, help="all is stopped after so long")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, nothing timed, no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the Markdown page")
    parser.add_argument("--worker", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run what the command line asks for; 1 if a check or a target failed."""
    parser, started = _parser(), time.monotonic()
    chosen = parser.parse_args()
    only = {name.strip().upper() for name in chosen.only.split(",") if name.strip()}
    if unknown := only - NAMES:
        parser.error(f"--only {', '.join(sorted(unknown))}: the targets are G1 to G18")
    if not chosen.dry and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry runs everything once, tiny, without timing")
    stage = Stage(chosen.dry)
    if chosen.worker is not None:
        return _work(stage, chosen.worker, chosen.parts)
    results = Results(stage, None if chosen.dry else chosen.page, chosen.json)
    print(", ".join(f"{name} {value}" for name, value in results.told.items()), flush=True)
    until = started + 60 * chosen.minutes
    barred = checked(results, min(until, started + CHECKING))
    numbered = [(n, task) for n, task in enumerate(tasks(stage)) if not only or task.target in {*only, CEILINGS}]
    measured(results, numbered, barred, until)
    return int(bool(barred) or any(row.figure == "failed" for row in results.rows.values()))


if __name__ == "__main__":
    sys.exit(main())
