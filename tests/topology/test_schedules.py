"""Schedules and the clock: golden values, exact ends, resolution of fractions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.topology import Clock, Constant, Cosine, Cubic, Linear, Piecewise, Schedule, as_schedule

RAMPS = [Linear, Cosine, Cubic]


def test_cosine_golden() -> None:
    schedule = Cosine(0.3, end=25000)
    golden = {0: 0.3, 100: 0.299988, 12500: 0.15, 24900: 0.000012, 25000: 0.0}
    assert {step: round(schedule(step), 6) for step in golden} == golden


def test_cubic_golden() -> None:
    schedule = Cubic(1.0, 0.1, start=100, end=500)
    golden = {0: 1.0, 100: 1.0, 200: 0.47969, 300: 0.2125, 400: 0.11406, 500: 0.1, 600: 0.1}
    assert {step: round(schedule(step), 5) for step in golden} == golden


def test_piecewise() -> None:
    schedule = Piecewise(((0, 0.5), (10, 0.2), (20, 0.1)))
    assert [schedule(step) for step in (0, 9, 10, 19, 20, 99)] == [0.5, 0.5, 0.2, 0.2, 0.1, 0.1]
    assert Piecewise(((5, 0.5),))(0) == 0.5


@pytest.mark.parametrize("ramp", RAMPS)
@given(a=st.floats(0, 1), b=st.floats(0, 1), start=st.integers(0, 50), length=st.integers(0, 50))
def test_ramps_end_exactly_and_are_monotone(ramp: type, a: float, b: float, start: int, length: int) -> None:
    schedule = ramp(a, b, start=start, end=start + length)
    values = [schedule(step) for step in range(start + length + 2)]
    assert values[-1] == values[start + length] == b
    assert values[:start] == [a] * start
    if length:
        assert values[start] == a
    ordered = sorted(values, reverse=a > b)
    assert values == pytest.approx(ordered, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "same"),
    [
        (Cosine(0.3), Cosine(0.3, end=200)),
        (Linear(1.0, 0.5, start=0.1, end=0.75), Linear(1.0, 0.5, start=20, end=150)),
        (Cubic(1.0, start=10, end=0.5), Cubic(1.0, start=10, end=100)),
        (Piecewise(((0, 1.0), (0.5, 0.1))), Piecewise(((0, 1.0), (100, 0.1)))),
        (Clock(0.1, 0.5, 0.75), Clock(20, 100, 150)),
        (Clock(0.001), Clock(1)),  # at least a step
        (Clock(1.0), Clock(200)),
        (Clock(1), Clock(1)),
        (Clock(7, stop=0.5), Clock(7, stop=100)),
        (Clock(math.inf, stop=1.0), Clock(math.inf, stop=200)),
        (Constant(0.5), Constant(0.5)),
    ],
)
def test_resolve(schedule: Schedule, same: Schedule) -> None:
    assert schedule.resolve(200) == same
    assert not same.needs_total
    assert same.resolve(None) == same
    assert schedule.needs_total == (schedule != same)
    if schedule.needs_total:
        use = schedule.due if isinstance(schedule, Clock) else schedule
        with pytest.raises(ConfigError, match="needs total_steps"):
            use(1)
        for total in (None, 0, 2.5, True):
            with pytest.raises(ConfigError, match="needs total_steps"):
                schedule.resolve(total)


@given(every=st.integers(1, 30), start=st.none() | st.integers(0, 60), stop=st.integers(0, 200))
def test_clock(every: int, start: int | None, stop: int) -> None:
    clock = Clock(every, start, stop)
    first = every if start is None else start
    assert [step for step in range(250) if clock.due(step)] == list(range(first, stop, every))


def test_clock_ends() -> None:
    assert not any(Clock(math.inf).due(step) for step in range(1000))
    assert Clock(5).due(10**9)
    assert not Clock(5).due(0)
    assert Clock(5, start=0).due(0)


def test_the_period_doubles_and_further_times_are_due() -> None:
    clock = Clock(100, stop=0.95, double_at=(0.25, 0.5, 0.75)).resolve(4000)
    times = [step for step in range(4001) if clock.due(step)]
    assert times == [*range(100, 1000, 100), *range(1100, 2000, 200), *range(2100, 3000, 400), 3300]
    late = Clock(math.inf, also=(0.5,)).resolve(10)
    assert [step for step in range(11) if late.due(step)] == [5]
    ends = Clock(4, stop=0.9, also=(0.9, 1)).resolve(10)
    assert [step for step in range(11) if ends.due(step)] == [1, 4, 8, 9]
    assert Clock(4, also=(0.9,)).needs_total


def test_points_that_fall_on_one_step_in_a_short_run() -> None:
    """The later one counts."""
    assert Piecewise(((0.0, 1.0), (0.001, 0.2), (0.5, 0.1))).resolve(100) == Piecewise(((0, 0.2), (50, 0.1)))


def test_as_schedule() -> None:
    assert as_schedule(1)(7) == 1.0
    cosine = Cosine(0.3)
    assert as_schedule(cosine) is cosine
    for bad in ("0.3", None, lambda step: 0.3):
        with pytest.raises(ConfigError, match="number or a schedule"):
            as_schedule(bad)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Constant(math.nan), "finite number, got nan"),
        (lambda: Constant(True), "finite number, got True"),
        (lambda: Cosine("0.3"), "start_value must be a finite number"),
        (lambda: Linear(1.0, math.inf), "end_value must be a finite"),
        (lambda: Cosine(0.3, end=1.5), "end is a time: an int >= 0 counts steps, a float .* got 1.5"),
        (lambda: Cosine(0.3, start=-1), "start is a time"),
        (lambda: Cosine(0.3, end=math.nan), "end is a time"),
        (lambda: Cosine(0.3, start=10, end=5), "cannot end before it starts"),
        (lambda: Cosine(0.3, start=10, end=0.5).resolve(10), "cannot end before it starts"),
        (lambda: Piecewise(()), "at least one"),
        (lambda: Piecewise((0.5, 0.1)), "points must be"),
        (lambda: Piecewise(((5, 0.1), (5, 0.2))), "must increase"),
        (lambda: Piecewise(((-1, 0.1),)), "time of a point"),
        (lambda: Piecewise(((0, math.nan),)), "value of a point"),
        (lambda: Clock(0), "above 0"),
        (lambda: Clock(0.0), "above 0"),
        (lambda: Clock(-5), "every is a time"),
        (lambda: Clock(100.0), "every is a time"),
        (lambda: Clock(True), "every is a time"),
        (lambda: Clock("1"), "every is a time"),
        (lambda: Clock(5, start=math.inf), "start is a time"),
        (lambda: Clock(5, stop=2.0), "stop is a time"),
        (lambda: Clock(math.nan), "every is a time"),
        (lambda: Clock(5, also=(2.0,)), "also is a time"),
        (lambda: Clock(5, double_at=(-1,)), "double_at is a time"),
    ],
)
def test_bad_values(make: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()
