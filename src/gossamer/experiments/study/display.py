"""The live table of a study on a terminal; plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..runs import Result
from .agenda import Failure, Job
from .definition import Study
from .worker import Beat

Cell = tuple[str, float]  # label, density


class Display:
    """A context manager whose `done` and `running` are what `run_in_workers` calls."""

    def __init__(self, console: Console, study: Study):
        self._console, self._total = console, study.size
        tuning = len(study.tune.seeds) if study.tune else 0
        self._sizes = {(row.label, d): len(study.seeds) + len(row.points) * tuning for row, d in study.cells()}
        self._done, self._failed = Counter[Cell](), Counter[Cell]()
        self._beats: Mapping[Job, Beat] = {}
        self._start: tuple[float, float] | None = None  # when the first run was sent to a worker, and what was done
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def done(self, job: Job, outcome: Result | Failure) -> None:
        """Count a run that ended, and say so in a line if there is no table or if it failed."""
        cell = job.label, job.density
        failed = isinstance(outcome, Failure)
        self._done[cell] += 1
        self._failed[cell] += failed
        if failed or not self._console.is_terminal:
            text = outcome.why if isinstance(outcome, Failure) else _value(outcome)
            line = f"{self._done.total()}/{self._total} {job}: {text}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def running(self, beats: Mapping[Job, Beat]) -> None:
        """Take over the step of every run at work."""
        self._beats = dict(beats)
        if self._start is None:
            self._start = time.monotonic(), self._work

    @property
    def _work(self) -> float:
        """Runs done, those at work counted by their share of steps."""
        return self._done.total() + sum(step / steps for step, steps in self._beats.values() if steps)

    def eta(self) -> str:
        """Time left if the rest goes as fast, counted in runs, as what was done since the start."""
        if self._start is None or self._work <= self._start[1]:
            return "-"
        rate = (self._work - self._start[1]) / (time.monotonic() - self._start[0])
        return str(timedelta(seconds=round(max(0.0, self._total - self._work) / rate)))

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("row", "density", "done", "failed", "running"):
            table.add_column(name, justify="left" if name in ("row", "running") else "right", no_wrap=True)
        for (label, density), size in self._sizes.items():
            done, failed = self._done[label, density], self._failed[label, density]
            at_work = [
                f"{' '.join(job.point)} s{job.seed} {step}/{steps or '?'}".strip()
                for job, (step, steps) in self._beats.items()
                if (job.label, job.density) == (label, density)
            ]
            table.add_row(Text(label), f"{density:g}", f"{done}/{size}", str(failed or ""), Text(", ".join(at_work)))
        head = f"{self._done.total()}/{self._total} runs, {self._failed.total()} failed, ETA {self.eta()}"
        return Group(Text(head), table)


def _value(result: Result) -> str:
    return f"{result.metric['name']} {result.metric['value']:.4g}"
