"""Choosing a point of a sweep by its validation metric."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..runs import Result
from .definition import Point, Row

if TYPE_CHECKING:
    from .agenda import Failure


@dataclass(frozen=True)
class Score:
    """Validation metric of a point: values per tuning seed, and their mean. None: training diverged."""

    point: Point
    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Mean over the tuning seeds; None if training diverged at one of them."""
        known = [value for value in self.values if value is not None]
        return statistics.fmean(known) if len(known) == len(self.values) else None


@dataclass(frozen=True)
class Tuning:
    """The sweep of one (label, density).

    best: the point of the best mean, the first of equals; None if training diverged at all. edges: keys whose chosen
    value is the smallest or the largest of the sweep, so that a better one may lie beyond.
    """

    label: str
    density: float
    metric: str
    scores: tuple[Score, ...]
    best: Score | None
    edges: tuple[str, ...]

    def __str__(self) -> str:
        if self.best is None:
            return "none"
        keys = (setting.partition("=")[0] for setting in self.best.point)
        marked = (f"{s}{' (edge)' * (key in self.edges)}" for key, s in zip(keys, self.best.point, strict=True))
        return ", ".join(marked)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for results.json."""
        points = [{"point": list(s.point), "values": list(s.values), "mean": s.mean} for s in self.scores]
        chosen = None if self.best is None else list(self.best.point)
        about = {"label": self.label, "density": self.density, "metric": self.metric}
        return {**about, "points": points, "chosen": chosen, "edges": list(self.edges)}


def tuned(row: Row, density: float, outcomes: Mapping[tuple[Point, int], Result | Failure]) -> Tuning:
    """Choose from the outcomes of all tuning runs of a row at a density, by (point, seed)."""
    values: dict[Point, list[float | None]] = {point: [] for point in row.points}
    metric, sign = "metric", 1.0
    for (point, _), outcome in outcomes.items():
        if isinstance(outcome, Result):
            metric, sign = outcome.metric["name"], 1.0 if outcome.metric["higher_is_better"] else -1.0
        values[point].append(float(outcome.metric["value"]) if isinstance(outcome, Result) else None)
    scores = tuple(Score(point, tuple(found)) for point, found in values.items())
    means = [float("-inf") if score.mean is None else sign * score.mean for score in scores]
    best = scores[means.index(max(means))] if any(score.mean is not None for score in scores) else None
    return Tuning(row.label, density, metric, scores, best, _edges(row, best))


def _edges(row: Row, best: Score | None) -> tuple[str, ...]:
    if best is None:
        return ()
    position = row.points.index(best.point)
    edges = []
    for key, values in reversed(list((row.sweep or {}).items())):
        position, index = divmod(position, len(values))
        numbers = [_number(value) for value in values]
        known = [number for number in numbers if number is not None]
        if len(known) == len(numbers) > 1 and numbers[index] in (min(known), max(known)):
            edges.append(key)
    return tuple(reversed(edges))


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
