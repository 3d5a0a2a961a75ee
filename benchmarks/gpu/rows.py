"""A line of the table of targets."""

from __future__ import annotations

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


def at_least(target: str, what: str, wanted: float, figure: float | None, note: str = "") -> Row:
    """A row of a ratio."""
    told = "dry run" if figure is None else f"{figure:.2f}x"
    return Row(target, what, f">= {wanted:g}x", told, None if figure is None else figure >= wanted, note)


def at_most(target: str, what: str, wanted: float, figure: float | None, unit: str, note: str = "") -> Row:
    """A row of a quantity."""
    told = "dry run" if figure is None else f"{figure:.1f} {unit}"
    return Row(target, what, f"<= {wanted:g} {unit}", told, None if figure is None else figure <= wanted, note)


def ratio(told: dict[str, float], over: str, under: str) -> float | None:
    """None in a dry run."""
    return told[over] / told[under] if told else None


def beside(told: dict[str, float]) -> str:
    """All times of a turn."""
    return ", ".join(f"{name} {1e3 * value:.1f} us" for name, value in told.items())
