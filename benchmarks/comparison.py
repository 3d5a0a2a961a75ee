"""Shared by the benchmarks of sparse layers: both sides measured in one run, printed as tables and written as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import QUIET, ROUNDS, STATISTIC, faster_half, interleave, spread
from torch import Tensor

import gossamer
from gossamer.kernels.cpu.library import native
from gossamer.nn._measurements import cpu_model
from gossamer.nn.measure import break_even

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")


class Timing(NamedTuple):
    """Seconds of one side: the statistic, and the quartiles of all rounds."""

    seconds: float
    low: float
    high: float

    def shown(self) -> tuple[str, str]:
        return f"{1e3 * self.seconds:.3f}", f"{1e3 * self.low:.3f} to {1e3 * self.high:.3f}"


def at_least(least: int) -> Callable[[str], int]:
    """Read a whole number from there on."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of {least} or more")
        return int(text)

    return read


def results_of(study: Path) -> dict[str, Any]:
    """The results of a finished study; stops if the folder has none."""
    try:
        content: dict[str, Any] = json.loads((study / "results.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        what = f"{study} holds no results of a finished study ({error})"
        raise SystemExit(f"{what}; run `gossamer study FILE` first and name the folder that it writes") from error
    return content


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that every such benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(2), default=2 * ROUNDS, help="2 or more: quartiles need them")
    parser.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser


def measure(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time all sides in turns, after two turns to warm up."""
    interleave(runs, 2)
    return {name: timing(seconds) for name, seconds in interleave(runs, rounds).items()}


def timing(seconds: list[float]) -> Timing:
    _, low, high = spread(seconds)
    return Timing(faster_half(seconds), low, high)


def best(timings: Mapping[str, Timing], *names: str) -> str:
    """The fastest of these sides, e.g. of two memory formats."""
    return min(names, key=lambda name: timings[name].seconds)


def agree(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    """Stop unless the two sides of a comparison compute the same, relative to the largest value."""
    error = float((got - wanted).abs().max() / wanted.abs().max())
    if not error <= tolerance:
        raise SystemExit(f"the two sides do not compute the same: relative difference {error:.1e}, allowed {tolerance}")


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    flags, library = _cpu_flags(), native()
    return {
        "cpu": cpu_model(),
        "instructions": ", ".join(name for name in INSTRUCTION_SETS if name in flags) or platform.machine(),
        "gossamer's kernels": library.isa if library else "plain-torch reference",
        "threads": torch.get_num_threads(),
        "environment": " ".join(f"{key}={os.environ[key]}" for key in QUIET if key in os.environ) or "default",
        "torch": torch.__version__,
        "gossamer": gossamer.__version__,
    }


def _cpu_flags() -> set[str]:
    """Instruction sets of the first processor as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())


class Report:
    """Prints figures as they come, as Markdown tables, and keeps them for `--json`."""

    def __init__(self, title: str, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(arguments.threads)
        self.path: Path | None = arguments.json
        self.rows: list[dict[str, object]] = []
        rounds: int | None = getattr(arguments, "rounds", None)
        self.head = {"title": title, **machine()} | ({"rounds": rounds, "statistic": STATISTIC} if rounds else {})
        print(f"# {title}\n")
        for key, value in list(self.head.items())[1:]:
            print(f"- {key}: {value}")
        if rounds and rounds < ROUNDS:
            print(f"- fewer than {ROUNDS} rounds: a trial run, its figures do not count")

    def timings(self, title: str, timings: Mapping[str, Timing]) -> None:
        """One row per side: milliseconds and quartiles."""
        print(f"\n## {title}")
        _print_table(
            ("side", "ms", "quartiles of all rounds"), [(name, *value.shown()) for name, value in timings.items()]
        )
        self.rows += [{"table": title, "side": name, **value._asdict()} for name, value in timings.items()]

    def ratios(self, rows: Sequence[tuple[str, Timing, Timing, float | None]]) -> None:
        """Rows (what, slower side, faster side, floor): how many times faster, whether or not it is."""
        values = [(what, slow.seconds / fast.seconds, floor) for what, slow, fast, floor in rows]
        self._judge(values, "times faster", "floor", lambda value, floor: value >= floor)

    def figures(self, rows: Sequence[tuple[str, float, float | None]], unit: str) -> None:
        """Rows (what, value, bound): values that should be at most their bound."""
        self._judge(rows, unit, "at most", lambda value, bound: value <= bound)

    def floors(self, rows: Sequence[tuple[str, float, float | None]], unit: str) -> None:
        """Rows (what, value, bound): values that should be at least their bound."""
        self._judge(rows, unit, "at least", lambda value, bound: value >= bound)

    def table(self, columns: Sequence[str], rows: Sequence[tuple[str, *tuple[float, ...]]]) -> None:
        """Rows (what, a value per further column)."""
        _print_table(columns, [(what, *(f"{value:.2f}" for value in values)) for what, *values in rows])
        self.rows += [dict(zip(columns, row, strict=True)) for row in rows]

    def note(self, text: str) -> None:
        print(f"\n{text}")
        self.rows.append({"note": text})

    def write(self) -> None:
        """Write everything as JSON if that was asked for."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")

    def _judge(
        self,
        rows: Sequence[tuple[str, float, float | None]],
        unit: str,
        label: str,
        holds: Callable[[float, float], bool],
    ) -> None:
        shown = []
        for what, value, bound in rows:
            reached = None if bound is None else holds(value, bound)
            verdict = "" if reached is None else "yes" if reached else "no"
            shown.append((what, f"{value:.3g}", "" if bound is None else f"{bound:g}", verdict))
            self.rows.append({"what": what, "unit": unit, "value": value, label: bound, "reached": reached})
        _print_table(("what", unit, label, "reached"), shown)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def crossing(speedups: Mapping[float, float]) -> str:
    """The break-even density in words."""
    found = break_even(speedups)
    if found is not None:
        return f"{found:.2g}"
    return f"above {max(speedups):g}" if min(speedups.values()) > 1 else f"below {min(speedups):g}"
