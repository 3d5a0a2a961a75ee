"""From many results to one table: mean and deviation over seeds, paired differences, and f."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .runs import Result

DENSE, SMALL = "dense", "small"
HEADER = ("method", "density", "{metric}", "vs SMALL", "f", "non-zeros", "bytes")


@dataclass(frozen=True)
class Line:
    """All seeds of one (label, density asked for); the table shows the density achieved.

    deviation: sample standard deviation, None for one seed. vs_small: mean and deviation of the differences to
    SMALL at equal seeds. f: (mean - SMALL) / (DENSE - SMALL), 1 as good as dense, 0 no better than the small dense net.
    """

    label: str
    density: float
    results: tuple[Result, ...]
    mean: float
    deviation: float | None
    vs_small: tuple[float, float | None] | None
    f: float | None

    def cells(self) -> tuple[str, ...]:
        """One row of the table, as text."""
        first, count = self.results[0], len(self.results)
        achieved = sum(result.density["achieved"] for result in self.results) / count
        size = sum(result.checkpoint_bytes for result in self.results) // count
        return (
            self.label,
            f"{achieved:.3g}",
            spread(self.mean, self.deviation),
            "" if self.vs_small is None else spread(*self.vs_small, sign=True),
            "" if self.f is None else f"{self.f:.2f}",
            f"{first.counts['active']:,}",
            f"{size:,}",
        )


def summarise(results: Mapping[tuple[str, float], Sequence[Result]]) -> list[Line]:
    """Return one line per (label, density), in order; the rows of the methods dense and small anchor f."""
    anchors = {
        (group[0].method, density): _by_seed(group)
        for (_, density), group in results.items()
        if group and group[0].method in (DENSE, SMALL)
    }
    dense = next((values for (method, _), values in anchors.items() if method == DENSE), {})
    return [
        _line(label, density, group, dense, anchors.get((SMALL, density), {}))
        for (label, density), group in results.items()
        if group
    ]


def _line(
    label: str,
    density: float,
    results: Sequence[Result],
    dense: Mapping[int, float],
    small: Mapping[int, float],
) -> Line:
    values = _by_seed(results)
    mean, deviation = _mean_and_deviation(values.values())
    shared = [seed for seed in values if seed in small]
    differences = [values[seed] - small[seed] for seed in shared]
    vs_small = _mean_and_deviation(differences) if differences and results[0].method != SMALL else None
    if results[0].method == DENSE:
        return Line(label, density, tuple(results), mean, deviation, None, 1.0)
    spans = [dense[seed] - small[seed] for seed in shared if seed in dense]
    paired = [values[seed] - small[seed] for seed in shared if seed in dense]
    f = sum(paired) / sum(spans) + 0.0 if spans and sum(spans) else None  # + 0.0: no minus zero
    return Line(label, density, tuple(results), mean, deviation, vs_small, f)


def _by_seed(results: Iterable[Result]) -> dict[int, float]:
    return {result.seed: float(result.metric["value"]) for result in results}


def _mean_and_deviation(values: Iterable[float]) -> tuple[float, float | None]:
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(mean: float, deviation: float | None, *, sign: bool = False) -> str:
    """Mean and deviation as text.

    >>> spread(76.912, 0.4), spread(1.5, None, sign=True)
    ('76.91 ± 0.40', '+1.50')
    """
    text = f"{mean:+.2f}" if sign else f"{mean:.2f}"
    return text if deviation is None else f"{text} ± {deviation:.2f}"


def table(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the table, as text."""
    metric = lines[0].results[0].metric["name"] if lines else "metric"
    return tuple(name.format(metric=metric) for name in HEADER), [line.cells() for line in lines]


def markdown(lines: Sequence[Line]) -> str:
    """Return the table in Markdown."""
    header, rows = table(lines)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows)) + "\n"
