"""The clock that says when something periodic is due."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import ConfigError
from .schedules import Time, check_time, check_total, is_fractional, to_step


@dataclass(frozen=True)
class Clock:
    """When something periodic is due: at ``start``, ``start + every``, ... while ``step < stop``.

    Args:
        every: int, in steps (``1`` is each step); float in (0, 1], a fraction of training, at least one step (``1.0``
            is the whole training); ``math.inf``, never.
        start: first time; None: ``every``.
        stop: end, not itself due; ``math.inf``: no end.
        also: further times, up to and including ``stop``, that are due whatever the period, as where a schedule must
            reach its last value.
        double_at: times from which on the period is twice as long (DSR).

    >>> clock = Clock(every=100, stop=0.5).resolve(total_steps=600)
    >>> [step for step in range(600) if clock.due(step)]
    [100, 200]
    >>> [step for step in range(20) if Clock(every=2, stop=15, also=(15,), double_at=(6,)).due(step)]
    [2, 4, 6, 10, 14, 15]
    """

    every: Time = 100
    start: Time | None = None
    stop: Time = math.inf
    also: tuple[Time, ...] = ()
    double_at: tuple[Time, ...] = ()

    def __post_init__(self) -> None:
        """Check times."""
        if self.every != math.inf:
            check_time("every", self.every)
            if self.every == 0:
                raise ConfigError("every must be above 0: a number of steps, or math.inf for never")
        if self.start is not None:
            check_time("start", self.start)
        if self.stop != math.inf:
            check_time("stop", self.stop)
        for name in ("also", "double_at"):
            times = getattr(self, name)
            if not isinstance(times, tuple):
                raise ConfigError(f"{name} = {times!r}: expected a tuple of times, e.g. {name}=(0.5,)")
            for time in times:
                check_time(name, time)

    @property
    def needs_total(self) -> bool:
        """Whether a time is a fraction of training."""
        return is_fractional(self.every, self.start, self.stop, *self.also, *self.double_at)

    def resolve(self, total_steps: int | None) -> Clock:
        """Return the clock with every time in steps.

        Raises:
            ConfigError: it needs ``total_steps`` and did not get it.
        """
        if not self.needs_total:
            return self
        total = check_total(self, total_steps)
        return replace(
            self,
            every=self.every if self.every == math.inf else max(1, to_step("every", self.every, total)),
            start=None if self.start is None else to_step("start", self.start, total),
            stop=self.stop if self.stop == math.inf else to_step("stop", self.stop, total),
            also=tuple(to_step("also", time, total) for time in self.also),
            double_at=tuple(to_step("double_at", time, total) for time in self.double_at),
        )

    def due(self, step: int) -> bool:
        """Whether it is time at ``step`` completed optimizer steps."""
        if self.needs_total:
            check_total(self, None)
        if step in self.also and step <= self.stop:
            return True
        if self.every == math.inf:
            return False
        start = self.every if self.start is None else self.start
        period = self.every * 2 ** sum(time <= step for time in self.double_at)
        return start <= step < self.stop and (step - start) % period == 0
