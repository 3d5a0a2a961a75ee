"""Locks between processes that the system lets go of when their holder dies, however it dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Lock an existing file or folder without waiting; yields False if another process holds it.

    Any number of processes may share a lock. Where there are no such locks this yields True.
    """
    if fcntl is None:
        yield True
        return
    descriptor, got = os.open(path, os.O_RDONLY), True
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                got = False
        yield got
    finally:
        os.close(descriptor)
