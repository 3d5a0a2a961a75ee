"""A worker process of a study: trains the runs that it is sent, one after the other."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ...errors import DivergedError, GossamerError
from ..locks import locked
from ..runs import Result
from ..train import Update, train
from .agenda import Failure, Job

LOCK = "workers.lock"  # shared by the workers of a study while they live
ERRORS = "errors.log"
BEAT = 0.5  # seconds between signs of life

Beat = tuple[int, int]  # step, steps of the current run; (0, 0) before its first step
Message = Result | Failure | Beat


def attempt(job: Job, progress: Callable[[Update], None] | None = None) -> Result | Failure:
    """Train a run, or continue it; an error of ours is a failure, for good if training diverged."""
    try:
        return train(job.config, resume=True, progress=progress, test=not job.tuning)
    except GossamerError as error:
        return Failure(str(error), lasting=isinstance(error, DivergedError))


def work(pipe: Connection, out: Path) -> None:
    """Receive jobs and send how they ended, and beats in between; None instead of a job ends the process."""
    parent = _Parent(pipe)
    with locked(out / LOCK, shared=True):
        threading.Thread(target=parent.beat, daemon=True).start()
        if not parent.alive:  # from here on, whoever takes over waits until this process is gone
            return
        while (job := parent.receive()) is not None:
            try:
                outcome = attempt(job, parent.note)
            except KeyboardInterrupt:
                return
            except Exception as error:
                outcome = Failure(f"{type(error).__name__}: {error}; see {out / ERRORS}")
                with (out / ERRORS).open("a", encoding="utf-8") as file:
                    file.write(f"{job}\n{traceback.format_exc()}\n")
            parent.report(outcome)


class _Parent:
    """The process that started this one. When it dies this one ends at once: the run resumes from its checkpoint."""

    def __init__(self, pipe: Connection):
        self._pipe, self._lock = pipe, threading.Lock()
        self._step: Beat = (0, 0)
        process = multiprocessing.parent_process()
        self._sentinel = process.sentinel if process else -1

    @property
    def alive(self) -> bool:
        return not wait([self._sentinel], 0)

    def receive(self) -> Job | None:
        try:
            job: Job | None = self._pipe.recv()
        except (EOFError, OSError):
            return None
        return job

    def note(self, update: Update) -> None:
        self._step = update.step, update.steps

    def report(self, outcome: Result | Failure) -> None:
        self._step = (0, 0)
        self._send(outcome)

    def beat(self) -> None:
        while not wait([self._sentinel], BEAT):
            self._send(self._step)
        os._exit(1)

    def _send(self, message: Message) -> None:
        try:
            with self._lock:
                self._pipe.send(message)
        except OSError:
            os._exit(1)
