"""Running a study: here, one run after the other, or in worker processes with its state in a file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..locks import locked
from ..runs import Result
from ..train import Update
from .agenda import Agenda, Failure, Job, Outcome
from .definition import Study
from .pool import Pool
from .worker import LOCK, Beat, attempt

if TYPE_CHECKING:
    from optuna.trial import Trial

    from .trials import Trials

_POLL = 0.5  # seconds between two looks at the workers
_LEFTOVERS = 60.0  # seconds to wait for the workers of an earlier process, which end by themselves

Done = Callable[[Job, Result | Failure], None]
Running = Callable[[Mapping[Job, Beat]], None]


def run_study(
    study: Study, out: Path, *, progress: Callable[[Job, Update], None] | None = None, done: Done | None = None
) -> Outcome:
    """Run the study here; finished runs are skipped, interrupted ones are resumed. A failed run does not stop the rest.

    progress: after every step. done: after every run, with its result or why it failed.

    Raises:
        ConfigError: settings that cannot be, or a folder with other runs; before anything is trained.
        Interrupted: Ctrl-C, after a checkpoint was written.
    """
    agenda = Agenda(study, out)
    todo = deque(agenda.first)
    while todo:
        job = todo.popleft()
        outcome = attempt(job, partial(progress, job) if progress else None)
        todo.extend(agenda.record(job, outcome))
        if done:
            done(job, outcome)
    return agenda.outcome()


def run_in_workers(
    study: Study, out: Path, *, workers: int = 1, running: Running | None = None, done: Done | None = None
) -> Outcome:
    """Run the study in `workers` processes; killed at any moment, it goes on where it was when it is called again.

    The runs wait in `trials.db` in `out`. A run that failed is tried again by the next call, except that one that
    diverged keeps its failure while its folder is there; so does a finished one its result. A run whose worker dies is
    continued by another worker, up to three times. running: now and then, with the step of every run at work.

    Raises:
        ConfigError: as `run_study`; or another process runs this study, or Optuna is not installed.
        CheckpointError: `trials.db` is damaged.
        KeyboardInterrupt: Ctrl-C, after the workers wrote checkpoints.
    """
    if workers < 1:
        raise ConfigError(f"workers = {workers}: expected at least 1")
    if find_spec("optuna") is None:
        raise ConfigError("optuna is not installed, which keeps the state of a study; pip install 'gossamer[study]'")
    from .trials import Trials

    agenda = Agenda(study, out)
    with _alone(out):
        trials = Trials(out)
        try:
            with Pool["Trial"](workers, out) as pool:
                for job, outcome in _run(agenda, trials, pool, running):
                    if done:
                        done(job, outcome)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; the same command continues") from None
    return agenda.outcome()


def _run(
    agenda: Agenda, trials: Trials, pool: Pool[Trial], running: Running | None
) -> Iterator[tuple[Job, Result | Failure]]:
    yield from _queue(agenda, trials, agenda.first)
    while True:
        while pool.free and (waiting := trials.next()) is not None:
            pool.send(*waiting)
        if running:
            running(pool.running)
        if not pool.running:
            return
        for job, trial, outcome in pool.listen(_POLL):
            ended = trials.finish(job, trial, outcome)
            if ended is not None:
                yield from _settle(agenda, trials, job, ended)


def _queue(agenda: Agenda, trials: Trials, jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Failure]]:
    for job in jobs:
        known = trials.add(job)
        if known is not None:
            yield from _settle(agenda, trials, job, known)


def _settle(
    agenda: Agenda, trials: Trials, job: Job, outcome: Result | Failure
) -> Iterator[tuple[Job, Result | Failure]]:
    """Record an outcome and queue what it makes possible."""
    unlocked = agenda.record(job, outcome)
    yield job, outcome
    yield from _queue(agenda, trials, unlocked)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder of the study; a process that was killed lets go at once, and its workers soon."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK).touch()
    except OSError as error:
        raise ConfigError(f"cannot use {out} as folder of a study: {error.strerror}; give another --out") from error
    with locked(out) as got:
        if not got:
            raise ConfigError(f"cannot use {out} as folder of a study: another process runs it; give another --out")
        _wait_for_leftovers(out)
        yield


def _wait_for_leftovers(out: Path) -> None:
    end = time.monotonic() + _LEFTOVERS
    while True:
        with locked(out / LOCK) as got:
            if got:
                return
        if time.monotonic() > end:
            raise ConfigError(f"workers of a killed study still use {out}; end them, or give another --out")
        time.sleep(_POLL / 5)
