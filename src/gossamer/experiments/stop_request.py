"""Ctrl-C and SIGTERM as a request, so that a run stops where it can go on later."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the current step; the second one kills.

    at_once: interrupt instead, because there are no steps yet.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = True
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if self.at_once:
            raise KeyboardInterrupt("stopped before training, nothing was written")

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def __exit__(self, *details: object) -> None:
        self._restore()
