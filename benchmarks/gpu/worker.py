"""Parts of the run in processes of their own: one that fails, crashes or hangs costs itself, and no other.

A wrong memory access leaves a process without a GPU, a crash in a library ends it, and a kernel may never return. So
the process that reports holds no GPU; others do the parts, each telling what it found at once, and are replaced.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Found = dict[str, Any]  # "part": its name; "error": what went wrong, or what else the part told
_PAUSE = 0.1


def work(file: Path, names: Sequence[str], parts: Mapping[str, Callable[[], Found]]) -> int:
    """In a worker: do the parts, one line of the file for the beginning and one for the end of each."""
    with file.open("a", encoding="utf-8", buffering=1) as out:
        for name in names:
            out.write(json.dumps({"begin": name}) + "\n")
            try:
                found = parts[name]()
            except Exception as error:  # whatever a compiler or a driver says: the others are still to be done
                found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            out.write(json.dumps({"part": name, **found}) + "\n")
            gc.collect()
            if not _fresh():
                return 3  # another process does the rest
    return 0


def _fresh() -> bool:
    """Whether the GPU still answers this process; its memory is given back."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception:  # a broken context raises what it likes
        return False
    return True


class Worker:
    """A process that does some parts in order. left: those not yet told of; ended: when last asked, it was gone."""

    def __init__(self, names: Sequence[str], command: Sequence[str], threads: int, patience: float) -> None:
        self.left, self.ended = deque(names), False
        self._begun = self._progress = False
        self._folder = tempfile.TemporaryDirectory()
        self._file, self._errors = (Path(self._folder.name) / name for name in ("found", "errors"))
        self._file.touch()
        self._patience, self._moved, self._read = patience, time.monotonic(), 0
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, "--worker", str(self._file), *names], stdout=errors, stderr=errors, env=environment
            )

    def found(self) -> Iterator[Found]:
        """What was told since the last call; of a part that brought the process down, or to a stop, that."""
        code = self._process.poll()  # before the file is read: what a process wrote last is not missed
        self.ended = code is not None
        yield from self._told()
        if not self.left:
            return
        if code is not None and (self._begun or not self._progress):
            yield {"part": self.left.popleft(), "error": f"its process ended with {code}: {self._last_words()}"}
        elif code is None and time.monotonic() - self._moved > self._patience:
            self._process.kill()
            self.ended = True
            yield {"part": self.left.popleft(), "error": f"stopped after {self._patience:.0f} s without an answer"}

    def _told(self) -> Iterator[Found]:
        with self._file.open(encoding="utf-8") as lines:
            lines.seek(self._read)
            while (line := lines.readline()).endswith("\n"):
                self._read, self._moved = lines.tell(), time.monotonic()
                told = json.loads(line)
                self._begun = "begin" in told
                if not self._begun:
                    self.left.popleft()
                    self._progress = True
                    yield told

    def _last_words(self) -> str:
        return " ".join(self._errors.read_text(errors="replace").split())[-300:]

    def stop(self) -> None:
        """End the process, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def carried_out(
    batches: Sequence[Sequence[str]], command: Sequence[str], *, jobs: int, until: float, patience: float
) -> Iterator[Found]:
    """What all parts found, in the order in which they end.

    A batch is for one process, the command with ``--worker FILE`` and the names, which calls `work`; so many jobs run
    beside each other. until: by `time.monotonic`; what is not done by then is stopped. patience: seconds that a part
    may take.
    """
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    waiting, running = deque(list(batch) for batch in batches if batch), list[Worker]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs and time.monotonic() < until:
                running.append(Worker(waiting.popleft(), command, threads, patience))
            for worker in list(running):
                yield from worker.found()
                if not worker.left or worker.ended:
                    running.remove(worker)
                    worker.stop()
                    if worker.left:
                        waiting.appendleft(list(worker.left))
            if time.monotonic() >= until:
                yield from _given_up([*waiting, *(worker.left for worker in running)])
                return
            time.sleep(_PAUSE)
    finally:
        for worker in running:
            worker.stop()


def _given_up(batches: Sequence[Sequence[str]]) -> Iterator[Found]:
    for name in (name for batch in batches for name in batch):
        yield {"part": name, "error": "not done: the time was over"}
