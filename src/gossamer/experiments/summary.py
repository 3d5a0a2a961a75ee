"""From many results to one table: mean and deviation over seeds, paired differences, and f."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .runs import Result

DENSE, SMALL = "dense", "small"
Spread = tuple[float, float | None]  # mean and sample standard deviation
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # header and rows


@dataclass(frozen=True)
class Line:
    """All seeds of one (label, density asked for); the table shows the density achieved.

    deviation: sample standard deviation, None for one seed. against: label of a control row -> mean and deviation of
    the differences to it at equal seeds, None where there are none. original: the same for the row that this one is a
    variant of; None where no row of the table is a variant. f: (mean - SMALL) / (DENSE - SMALL), 1 as good as
    dense, 0 no better than the small dense net. with_others: whether the table tells `others`: where some row has an
    offset, a subspace or something frozen.
    """

    label: str
    density: float
    results: tuple[Result, ...]
    mean: float
    deviation: float | None
    against: Mapping[str, Spread | None]
    original: tuple[str, Spread | None] | None
    f: float | None
    with_others: bool = False

    def cells(self) -> tuple[str, ...]:
        """One row of the table, as text."""
        first, count = self.results[0], len(self.results)
        achieved = sum(result.density["achieved"] for result in self.results) / count
        size = sum(result.checkpoint_bytes for result in self.results) // count
        return (
            self.label,
            f"{achieved:.3g}",
            spread(self.mean, self.deviation),
            *("" if difference is None else spread(*difference, sign=True) for difference in self.against.values()),
            *(() if self.original is None else (_told(*self.original),)),
            "" if self.f is None else f"{self.f:.2f}",
            f"{first.counts['active']:,}",
            *([f"{self.others:,}"] if self.with_others else []),
            f"{size:,}",
        )

    @property
    def others(self) -> int:
        """Numbers trained beside the sparse weights: norm, biases, factors of offsets; those of a subspace."""
        return sum(count for kind, count in self.results[0].trained.items() if kind != "weights")

    @property
    def seconds(self) -> float:
        """Median wall time of training."""
        return statistics.median(result.seconds for result in self.results)

    def machine(self, key: str) -> float | None:
        """Median over the seeds of "step_seconds" or "peak_bytes", None where that was not measured."""
        told = [value for result in self.results if (value := result.machine.get(key)) is not None]
        return statistics.median(told) if told else None


def summarise(
    results: Mapping[tuple[str, float], Sequence[Result]],
    compare: Sequence[str] | None = None,
    originals: Mapping[str, str] | None = None,
) -> list[Line]:
    """Return one line per (label, density), in order; the rows of the methods dense and small anchor f.

    compare: labels to give paired differences to, at the same density (of a dense row: at its own); by default those
    of the method small. originals: label of a variant -> label of the row that it changes in one thing.
    """
    groups = {cell: group for cell, group in results.items() if group}
    anchors: dict[tuple[str, float], tuple[str, dict[int, float]]] = {}
    for (label, density), group in groups.items():
        anchors.setdefault((group[0].method, density), (label, _by_seed(group)))  # of several dense rows the first
    beside = ("offset", "freeze", "subspace")
    told = any(result.config.get(key) for key in beside for group in groups.values() for result in group)
    leading, dense = next((held for (method, _), held in anchors.items() if method == DENSE), ("", {}))
    if compare is None:
        compare = list(dict.fromkeys(label for (label, _), group in groups.items() if group[0].method == SMALL))
    lines = []
    for (label, density), group in groups.items():
        values, small = _by_seed(group), anchors.get((SMALL, density), ("", {}))[1]
        against = {name: _difference(groups, label, density, name) for name in compare}
        original = None
        if originals:
            name = originals.get(label, "")
            original = name, _difference(groups, label, density, name) if name else None
        f = 1.0 if group[0].method == DENSE and label == leading else _fraction(values, dense, small)
        spread = mean_and_deviation(values.values())
        lines.append(Line(label, density, tuple(group), *spread, against, original, f, told))
    return lines


def _difference(
    groups: Mapping[tuple[str, float], Sequence[Result]], label: str, density: float, control: str
) -> Spread | None:
    """Mean and deviation of the differences to a control at the seeds that both have."""
    if label == control:
        return None
    values = _by_seed(groups[label, density])
    others = next(
        (_by_seed(g) for (name, d), g in groups.items() if name == control and (d == density or g[0].method == DENSE)),
        {},
    )
    differences = [values[seed] - others[seed] for seed in values if seed in others]
    return mean_and_deviation(differences) if differences else None


def _fraction(values: Mapping[int, float], dense: Mapping[int, float], small: Mapping[int, float]) -> float | None:
    shared = [seed for seed in values if seed in small and seed in dense]
    span = sum(dense[seed] - small[seed] for seed in shared)
    return sum(values[seed] - small[seed] for seed in shared) / span + 0.0 if span else None  # + 0.0: no minus zero


def _told(original: str, difference: Spread | None) -> str:
    return "" if difference is None else f"{spread(*difference, sign=True)} ({original})"


def _by_seed(results: Iterable[Result]) -> dict[int, float]:
    return {result.seed: float(result.metric["value"]) for result in results}


def mean_and_deviation(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation; none of one value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(mean: float, deviation: float | None, *, sign: bool = False) -> str:
    """Mean and deviation as text.

    >>> spread(76.912, 0.4), spread(1.5, None, sign=True)
    ('76.91 ± 0.40', '+1.50')
    """
    text = f"{mean:+.2f}" if sign else f"{mean:.2f}"
    return text if deviation is None else f"{text} ± {deviation:.2f}"


def table(lines: Sequence[Line]) -> Table:
    """Header and rows of the table, as text."""
    metric = lines[0].results[0].metric["name"] if lines else "metric"
    against = [f"vs {label}" for label in (lines[0].against if lines else ())]
    variants = ["vs its original"] if lines and lines[0].original is not None else []
    others = ["others trained"] if lines and lines[0].with_others else []
    header = ("method", "density", metric, *against, *variants, "f", "non-zeros", *others, "bytes")
    return header, [line.cells() for line in lines]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (escaped[0], rule, *escaped[1:])) + "\n"
