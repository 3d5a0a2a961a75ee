"""All about the GPU in one command: versions, correctness of every kernel, then the targets G1 to G18, and a page.

    python benchmarks/gpu/run.py                 on a machine with a GPU, about 8 minutes
    python benchmarks/gpu/run.py --only G4,G10
    python benchmarks/gpu/run.py --dry           on any machine: tiny shapes, each thing once, nothing timed

A target is not measured if a check that it rests on fails. With TRITON_INTERPRET=1 a dry run takes the Triton kernels
through the interpreter, where Triton is installed; else it takes their references.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import checks
from rows import Row
from stage import Stage, versions
from targets import TARGETS

from gossamer._gpu_timing import STATISTIC

COMMAND = "python benchmarks/gpu/run.py"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "gpu.md"
HEAD = f"""# On a GPU

Made by `{COMMAND}`. Ratios are to dense bfloat16 in the same run: {STATISTIC};
random data, inputs that exceed the cache. *Reached* compares with the targets in the table, set from bytes and
operations before anything was run.
"""


def checked(stage: Stage) -> tuple[list[dict[str, str]], set[str]]:
    """The outcome of all checks, and the targets that rest on a wrong one."""
    told, barred = [], set()
    for check, targets in checks.CHECKS.items():
        try:
            outcome, fine = check(stage), "right"
        except Exception as error:  # whatever a compiler or driver says: the others are still to be checked
            outcome, fine = _said(error), "WRONG"
            barred |= targets
        print(f"{fine}: {check.__name__}: {outcome}", flush=True)
        told.append({"check": check.__name__, "outcome": fine, "what": outcome})
    return told, barred


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def measured(stage: Stage, only: set[str], barred: set[str], minutes: float) -> list[Row]:
    """The rows of all targets asked for, as far as the time goes."""
    rows, started = [], time.monotonic()
    for names, measure in TARGETS.items():
        wanted = set(names.split(","))
        if only and not only & wanted:
            continue
        over = time.monotonic() - started > 60 * minutes
        try:
            if over or barred & wanted:
                why = f"the {minutes:g} minutes were over" if over else "a check failed"
                found = [Row(names, "", "", "not measured", None if over else False, why)]
            else:
                found = [row for row in measure(stage) if not only or row.target in only]
        except Exception as error:  # as above: one target must not end the run
            found = [Row(names, "", "", "failed", False, _said(error))]
        for row in found:
            print("  ".join(_cells(row)), flush=True)
        rows += found
    return rows


def _cells(row: Row) -> tuple[str, ...]:
    reached = {None: "-", True: "yes", False: "no"}[row.reached]
    return row.target, row.what, row.wanted, row.figure, reached, row.note


def page(told: dict[str, object], rows: Sequence[Row], outcomes: Sequence[dict[str, str]]) -> str:
    """The page of results."""
    lines = [HEAD, ", ".join(f"{name} {value}" for name, value in told.items()) + "\n", "## Correctness\n"]
    lines += [f"- {each['check'].replace('_', ' ')}: {each['outcome']} ({each['what']})" for each in outcomes]
    lines += ["\n## Targets\n", "| | what | target | here | reached | note |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what the command line asks for; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="G1,G4", help="these targets only; all checks are made")
    parser.add_argument("--minutes", type=float, default=8.0, help="no target is begun after so long")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, nothing timed, no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the Markdown page")
    chosen = parser.parse_args()
    only = {name.strip().upper() for name in chosen.only.split(",") if name.strip()}
    if unknown := only - {name for names in TARGETS for name in names.split(",")}:
        parser.error(f"--only {', '.join(sorted(unknown))}: the targets are G1 to G18")
    if not chosen.dry and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry runs everything once, tiny, without timing")
    stage = Stage(chosen.dry)
    told: dict[str, object] = dict(versions())
    print(", ".join(f"{name} {value}" for name, value in told.items()), flush=True)
    outcomes, barred = checked(stage)
    rows = measured(stage, only, barred, chosen.minutes)
    if chosen.json is not None:
        figures = {"versions": told, "dry": chosen.dry, "checks": outcomes, "rows": [asdict(row) for row in rows]}
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not chosen.dry:
        chosen.page.write_text(page(told, rows, outcomes), encoding="utf-8")
    return int(bool(barred))


if __name__ == "__main__":
    sys.exit(main())
