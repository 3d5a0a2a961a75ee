"""A line of the table of targets, and what makes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table. reached: None where nothing was measured or the target is not a number."""

    target: str
    what: str
    wanted: str
    figure: str
    reached: bool | None
    note: str = ""


@dataclass(frozen=True)
class Task:
    """What makes one line; `run` takes its memory when it is called, and what it raises costs this line alone."""

    target: str
    what: str
    run: Callable[[], Row]


def at_least(target: str, what: str, wanted: float, figure: float | None, note: str = "") -> Row:
    """A row of a ratio."""
    told = "dry run" if figure is None else f"{figure:.2f}x"
    return Row(target, what, f">= {wanted:g}x", told, None if figure is None else figure >= wanted, note)


def at_most(target: str, what: str, wanted: float, figure: float | None, unit: str, note: str = "") -> Row:
    """A row of a quantity."""
    told = "dry run" if figure is None else f"{figure:.1f} {unit}"
    return Row(target, what, f"<= {wanted:g} {unit}", told, None if figure is None else figure <= wanted, note)


def not_done(target: str, what: str, wanted: str, why: str) -> Row:
    """A row without a measurement."""
    return Row(target, what, wanted, "not done", None, why)


def ratio(told: dict[str, float], over: str, under: str) -> float | None:
    """None in a dry run."""
    return told[over] / told[under] if told else None


def beside(told: dict[str, float]) -> str:
    """All times of a turn."""
    return ", ".join(f"{name} {1e3 * value:.1f} us" for name, value in told.items())
