"""The state of a study's runs in an SQLite file, kept by Optuna: what waits, runs, is done or has failed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ...errors import CheckpointError, GossamerError
from ..runs import Result, RunFolder
from .agenda import Failure, Job
from .pool import Death

FILE = "trials.db"
ATTEMPTS = 3  # to run a trial whose worker dies
_PATIENCE = 60.0  # seconds to wait while another process, e.g. a viewer, holds the file


class Trials:
    """The trials in the file of the folder `out`; one process at a time may have them open.

    A run is one trial, with a new one for every further attempt. Trials that were running when the last process ended
    are closed here, so that `add` queues their runs again.

    Raises:
        CheckpointError: the file is damaged, or no such file.
    """

    def __init__(self, out: Path):
        self._out, self._jobs = out, dict[str, Job]()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            # A creator instead of a URL: any path will do. No pool: no connection is left open.
            connect = {"creator": lambda: sqlite3.connect(out / FILE, timeout=_PATIENCE), "poolclass": NullPool}
            storage = RDBStorage("sqlite://", engine_kwargs=connect)
            sampler = optuna.samplers.RandomSampler()  # never asked: every trial is enqueued
            self._study = optuna.create_study(
                storage=storage, sampler=sampler, study_name="gossamer", load_if_exists=True
            )
            self._latest = {trial.user_attrs["run"]: trial for trial in self._study.get_trials(deepcopy=False)}
            for trial in self._with(TrialState.RUNNING):
                self._study.tell(trial.number, state=TrialState.FAIL)
        except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.OptunaError, RuntimeError, KeyError) as error:
            why = " ".join(str(error.__cause__ or error).split())[:120]
            raise CheckpointError(f"cannot use {out / FILE}: {why}; move it away, finished runs are kept") from error

    def add(self, job: Job) -> Result | Failure | None:
        """Queue a run, if it does not wait already; one that is done is not queued, and how it ended is returned."""
        self._jobs[job.run] = job
        latest, folder = self._latest.get(job.run), RunFolder(self._out / job.run)
        if latest is not None:
            if latest.state == TrialState.WAITING:
                return None
            if latest.state == TrialState.COMPLETE and folder.finished:
                try:
                    return folder.result()
                except GossamerError as error:
                    return Failure(str(error))
            if latest.user_attrs.get("lasting") and folder.config_file.exists():
                return Failure(latest.user_attrs["why"], lasting=True)
        self._enqueue(job, attempt=1)
        return None

    def next(self) -> tuple[Job, Trial] | None:
        """Take the first waiting trial of the runs added; it counts as running from now on. None if none waits."""
        while any(self._with(TrialState.WAITING)):  # otherwise `ask` would make up a trial
            trial = self._study.ask()
            job = self._jobs.get(trial.user_attrs["run"])
            if job is not None:
                return job, trial
            self._study.tell(trial, state=TrialState.FAIL)  # no longer in the study
        return None

    def finish(self, job: Job, trial: Trial, outcome: Result | Failure | Death) -> Result | Failure | None:
        """Note how a running trial ended; after a worker's death its run is queued again, up to `ATTEMPTS`.

        Returns how the run ended, None if it was queued again.
        """
        if isinstance(outcome, Result):
            self._study.tell(trial, float(outcome.metric["value"]))
            return outcome
        attempt = trial.user_attrs["attempt"]
        if isinstance(outcome, Death):
            failure = Failure(f"{outcome.why}, at attempt {attempt} of {ATTEMPTS}")
        else:
            failure = outcome
        trial.set_user_attr("why", failure.why)
        trial.set_user_attr("lasting", failure.lasting)
        self._study.tell(trial, state=TrialState.FAIL)
        if isinstance(outcome, Death) and attempt < ATTEMPTS:
            self._enqueue(job, attempt + 1)
            return None
        return failure

    def _enqueue(self, job: Job, attempt: int) -> None:
        about = {"run": job.run, "label": job.label, "density": job.density, "seed": job.seed, "point": list(job.point)}
        self._study.enqueue_trial({}, user_attrs={**about, "tuning": job.tuning, "attempt": attempt})

    def _with(self, state: TrialState) -> Iterable[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(state,))
