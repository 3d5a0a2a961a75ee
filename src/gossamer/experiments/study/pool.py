"""Worker processes: started when there is work, watched, and stopped in good order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from ..runs import Result
from .agenda import Failure, Job
from .worker import Beat, work

GRACE = 120.0  # seconds without a beat after which a worker counts as hung
PROCESSES = multiprocessing.get_context("spawn")  # how they are started

Ticket = TypeVar("Ticket")


@dataclass(frozen=True)
class Death:
    """A worker ended without an outcome."""

    why: str


@dataclass
class _Worker(Generic[Ticket]):
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    job: tuple[Job, Ticket] | None = None
    beat: Beat = (0, 0)
    heard: float = field(default_factory=time.monotonic)


class Pool(Generic[Ticket]):
    """At most `size` worker processes with one OpenMP thread each, for the study in the folder `out`.

    A context manager: leaving it asks the workers to write a checkpoint and ends them. A second Ctrl-C kills them.
    """

    def __init__(self, size: int, out: Path):
        self._size, self._out = size, out
        self._workers: list[_Worker[Ticket]] = []

    @property
    def free(self) -> bool:
        """Whether another job can be sent."""
        return sum(worker.job is not None for worker in self._workers) < self._size

    @property
    def running(self) -> dict[Job, Beat]:
        """The jobs at work, and the step each has reached."""
        return {worker.job[0]: worker.beat for worker in self._workers if worker.job}

    def send(self, job: Job, ticket: Ticket) -> None:
        """Give a job to an idle worker, or to a new one; `listen` hands the ticket back with the outcome."""
        worker = next((worker for worker in self._workers if worker.job is None), None) or self._start()
        worker.job, worker.beat = (job, ticket), (0, 0)
        with suppress(OSError):  # it has just died: `listen` will say so
            worker.pipe.send(job)

    def listen(self, seconds: float) -> Iterator[tuple[Job, Ticket, Result | Failure | Death]]:
        """Wait until something happens, at most `seconds`; yield what has ended."""
        wait([item for worker in self._workers for item in (worker.pipe, worker.process.sentinel)], seconds)
        for worker in list(self._workers):
            alive = worker.process.is_alive()  # asked before reading: what it sent before its death counts
            outcome: Result | Failure | Death | None = self._read(worker)
            if alive and time.monotonic() - worker.heard > GRACE:
                worker.process.kill()  # found dead next time
            if not alive:
                self._workers.remove(worker)
                worker.pipe.close()
                outcome = outcome or Death(f"its worker process ended with exit code {worker.process.exitcode}")
            if outcome and worker.job:
                (job, ticket), worker.job = worker.job, None
                yield job, ticket, outcome

    def _read(self, worker: _Worker[Ticket]) -> Result | Failure | None:
        """The outcome that a worker has sent, if it has; notes its beats."""
        with suppress(EOFError, OSError):
            while worker.pipe.poll():
                message = worker.pipe.recv()
                worker.heard = time.monotonic()
                if isinstance(message, Result | Failure):
                    return message
                worker.beat = message
        return None

    def _start(self) -> _Worker[Ticket]:
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=work, args=(theirs, self._out), daemon=True)
        with _inherited():
            process.start()
        theirs.close()
        worker = _Worker[Ticket](process, ours)
        self._workers.append(worker)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for worker in self._workers:
                with suppress(OSError):
                    worker.pipe.send(None)  # for one that no longer listens to signals, as its run is about to end
                worker.process.terminate()
            for worker in self._workers:
                worker.process.join()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()


@contextmanager
def _inherited() -> Iterator[None]:
    """What processes that start inside inherit: one OpenMP thread, since several per core only get in each other's
    way, and a blocked Ctrl-C, which a terminal sends to all processes though only the parent can stop in good order.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    resource_tracker.ensure_running()  # its first start, which is part of that of a process, would lift the block
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
