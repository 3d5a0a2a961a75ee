"""Values that change with the step.

A **time** is an int, in optimizer steps, or a float, a fraction of training in [0, 1], which `resolve` makes a step
(``round(fraction * total_steps)``). So ``1`` is one step and ``1.0`` the whole training.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, TypeVar

from ..errors import ConfigError

Time = int | float


class Schedule(Protocol):
    """What a schedule provides."""

    @property
    def needs_total(self) -> bool:
        """Whether it still holds fractions of training."""

    def __call__(self, step: int) -> float:
        """Return the value at ``step`` completed optimizer steps."""

    def resolve(self, total_steps: int | None) -> Schedule:
        """Return the schedule with every time in steps; ConfigError if it needs ``total_steps`` and gets None."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_time(name: str, time: Time) -> None:
    """Raise ConfigError unless ``time`` is an int >= 0 or a float in [0, 1]."""
    if not _is_number(time) or (isinstance(time, int) and time < 0) or (isinstance(time, float) and not 0 <= time <= 1):
        raise ConfigError(
            f"{name} is a time: an int >= 0 counts steps, a float in [0, 1] is a fraction of training; got {time!r}"
        )


def _check_value(name: str, value: float) -> None:
    if not _is_number(value) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")


def is_fractional(*times: Time | None) -> bool:
    """Whether one of the times is a fraction of training."""
    return any(isinstance(time, float) and math.isfinite(time) for time in times)


def to_step(name: str, time: Time, total_steps: int | None) -> int:
    """Return ``time`` in steps; ConfigError if it is a fraction and ``total_steps`` is not given."""
    return time if isinstance(time, int) else round(time * check_total(name, total_steps))


def check_total(what: object, total_steps: int | None) -> int:
    """Return ``total_steps``; ConfigError if it is not a number of steps."""
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise ConfigError(
            f"{what} has times that are fractions of training and needs total_steps=T, the number of optimizer steps; "
            f"got {total_steps!r}"
        )
    return total_steps


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float
    needs_total = False

    def __post_init__(self) -> None:
        """Check the value."""
        _check_value("value", self.value)

    def __call__(self, step: int) -> float:
        """Return the value."""
        return float(self.value)

    def resolve(self, total_steps: int | None) -> Constant:
        """Return itself."""
        return self


_Self = TypeVar("_Self", bound="_Ramp")


@dataclass(frozen=True)
class _Ramp(ABC):
    """From ``start_value`` at time ``start`` to ``end_value`` at time ``end``; constant before and after.

    With ``t = (step - start) / (end - start)`` in [0, 1]; both ends are exact.
    """

    start_value: float
    end_value: float = 0.0
    start: Time = 0
    end: Time = 1.0

    def __post_init__(self) -> None:
        """Check values and times."""
        _check_value("start_value", self.start_value)
        _check_value("end_value", self.end_value)
        check_time("start", self.start)
        check_time("end", self.end)
        if type(self.start) is type(self.end) and self.end < self.start:
            raise ConfigError(f"a schedule cannot end before it starts, got start={self.start}, end={self.end}")

    @property
    def needs_total(self) -> bool:
        """Whether ``start`` or ``end`` is a fraction of training."""
        return is_fractional(self.start, self.end)

    def resolve(self: _Self, total_steps: int | None) -> _Self:
        """Return the schedule with ``start`` and ``end`` in steps."""
        if not self.needs_total:
            return self
        total = check_total(self, total_steps)
        return replace(self, start=to_step("a time", self.start, total), end=to_step("a time", self.end, total))

    def __call__(self, step: int) -> float:
        """Return the value at ``step``."""
        if self.needs_total:
            check_total(self, None)
        if step >= self.end:
            return float(self.end_value)
        if step <= self.start:
            return float(self.start_value)
        return self._between((step - self.start) / (self.end - self.start))

    @abstractmethod
    def _between(self, t: float) -> float:
        """Return the value at a share ``t`` of the way, 0 < t < 1."""


@dataclass(frozen=True)
class Linear(_Ramp):
    """``start_value + (end_value - start_value) t``, with t from 0 at ``start`` to 1 at ``end``; constant outside.

    >>> [Linear(1.0, 0.0, end=4)(step) for step in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """

    def _between(self, t: float) -> float:
        return self.start_value + (self.end_value - self.start_value) * t


@dataclass(frozen=True)
class Cosine(_Ramp):
    """``end_value + (start_value - end_value)/2 (1 + cos(pi t))``, t from 0 at ``start`` to 1 at ``end``.

    Source: the drop fraction of RigL (1911.11134).

    >>> round(Cosine(0.3, end=25000)(12500), 6)
    0.15
    """

    def _between(self, t: float) -> float:
        return self.end_value + (self.start_value - self.end_value) / 2 * (1 + math.cos(math.pi * t))


@dataclass(frozen=True)
class Cubic(_Ramp):
    """``end_value + (start_value - end_value) (1 - t)^3``, t from 0 at ``start`` to 1 at ``end``; here on density.

    Source: Zhu and Gupta 2017 (1710.01878), who state it on sparsity.

    >>> [round(Cubic(1.0, 0.1, end=4)(step), 5) for step in range(5)]
    [1.0, 0.47969, 0.2125, 0.11406, 0.1]
    """

    def _between(self, t: float) -> float:
        return self.end_value + (self.start_value - self.end_value) * (1 - t) ** 3


@dataclass(frozen=True)
class Piecewise:
    """A step function: the value of the last point whose time has come; before the first, its value.

    Args:
        points: ((time, value), ...), times increasing.

    >>> schedule = Piecewise(((0, 0.5), (10, 0.1)))
    >>> schedule(9), schedule(10)
    (0.5, 0.1)
    """

    points: tuple[tuple[Time, float], ...]

    def __post_init__(self) -> None:
        """Check points."""
        try:
            checked = tuple((time, value) for time, value in self.points)
        except (TypeError, ValueError):
            raise ConfigError(f"points must be ((time, value), ...), got {self.points!r}") from None
        if not checked:
            raise ConfigError("a piecewise schedule needs at least one (time, value) point")
        for time, value in checked:
            check_time("the time of a point", time)
            _check_value("the value of a point", value)
        object.__setattr__(self, "points", checked)
        if len({type(time) for time, _ in checked}) == 1:
            self._check_order()

    def _check_order(self) -> None:
        times = [time for time, _ in self.points]
        if any(later <= time for time, later in pairwise(times)):
            raise ConfigError(f"the times of a piecewise schedule must increase, got {times}")

    @property
    def needs_total(self) -> bool:
        """Whether a time is a fraction of training."""
        return is_fractional(*(time for time, _ in self.points))

    def resolve(self, total_steps: int | None) -> Piecewise:
        """Return the schedule with times in steps."""
        if not self.needs_total:
            return self
        total = check_total(self, total_steps)
        in_steps = {to_step("a time", time, total): value for time, value in self.points}  # of equal ones the last
        return Piecewise(tuple(in_steps.items()))

    def __call__(self, step: int) -> float:
        """Return the value at ``step``."""
        if self.needs_total:
            check_total(self, None)
        passed = [value for time, value in self.points if time <= step]
        return float(passed[-1] if passed else self.points[0][1])


def as_schedule(value: float | Schedule) -> Schedule:
    """Return ``value`` if it is a schedule, else the constant schedule of it.

    Raises:
        ConfigError: neither a finite number nor a schedule.
    """
    if isinstance(value, int | float):
        return Constant(value)
    if not callable(value) or not hasattr(value, "resolve"):
        raise ConfigError(f"expected a number or a schedule such as Cosine(0.3), got {value!r}")
    return value
