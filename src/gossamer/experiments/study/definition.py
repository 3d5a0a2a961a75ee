"""What a study is: one base config, rows that differ in method and settings, times densities, times seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError, did_you_mean
from ..config import ONLY_DENSITY, RunConfig
from ..runs import read_config
from ..values import parse, spelled

Key = tuple[str, float, int]  # label, density, seed
Point = tuple[str, ...]  # settings such as "every=0.05", one per swept key
_OWN = ("method", "args", "density", "seed", "out")  # fields of a run that a study sets itself
_NEVER_SWEPT = (*_OWN, "data", "model", "subspace", "valid_fraction", "data.valid_fraction")


@dataclass(frozen=True)
class Row:
    """One row of a study.

    args: of the method. settings: run fields in which it differs from the base. sweep: key -> values to choose from
    when the study tunes, where a key is what ``--set`` takes; an empty one says that the row is not tuned.
    variant_of: label of the row that this one changes in one thing; the table gives the paired difference to it.
    """

    label: str
    method: str
    args: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[Any]] | None = None
    variant_of: str | None = None

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point of the sweep, the last key running fastest; none without a sweep."""
        if not self.sweep:
            return ()
        points: list[Point] = [()]
        for key, values in self.sweep.items():
            points = [(*point, f"{key}={spelled(value)}") for point in points for value in values]
        return tuple(points)


@dataclass(frozen=True)
class Tune:
    """How every row with a sweep is tuned, with one budget for all.

    seeds: of the tuning runs. budget: points that every sweep must have. settings: run fields in which tuning runs
    differ from the final ones, e.g. ``{valid_fraction: 0.2}``.
    """

    seeds: tuple[int, ...]
    budget: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A grid of runs: rows x densities x seeds. Dense rows run once per seed, at density 1, offset-only ones at 0.

    compare: labels of the rows that the table gives paired differences to; by default those of the method small.

    Raises:
        ConfigError: labels, seeds or densities that occur twice, or a tuning budget that a row does not keep.
    """

    name: str
    base: Mapping[str, Any]
    rows: tuple[Row, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    note: str = ""
    tune: Tune | None = None
    compare: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        _check_once("rows of a study need labels of their own", labels)
        _check_once("densities of a study", self.densities)
        _check_once("seeds of a study", self.seeds)
        for label in self.compare or ():
            if label not in labels:
                raise ConfigError(f"compare names the row {label!r}{did_you_mean(label, labels)}")
        if self.tune:
            _check_once("seeds of tune", self.tune.seeds)
            shared = sorted(set(self.tune.seeds) & set(self.seeds))
            if shared:
                raise ConfigError(
                    f"seeds {shared} are of the study and of tune: the choice would know the final runs' initial "
                    "weights and data order; give tune seeds of its own, e.g. [100]"
                )
        for row in self.rows:
            _check_sweep(row, self.tune)
            others = [other for other in labels if other != row.label]
            if row.variant_of is not None and row.variant_of not in others:
                hint = did_you_mean(row.variant_of, others)
                raise ConfigError(f"row {row.label!r} is a variant of {row.variant_of!r}, which is no other row{hint}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        """Build from a mapping such as a parsed YAML file; raises ConfigError on what is no study."""
        _check_keys("the study", values, cls)
        name = parse(values["name"], str, "name")
        if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
            raise ConfigError(f"name = {name!r}: a study's name is the name of its folder, e.g. m1d-baselines")
        rows = _list("rows", values["rows"])
        tune = values.get("tune")
        compare = values.get("compare")
        return cls(
            name,
            _run_fields("base", values["base"]),
            tuple(_row(row, number) for number, row in enumerate(rows, 1)),
            parse(_list("densities", values["densities"]), tuple[float, ...], "densities"),
            parse(_list("seeds", values["seeds"]), tuple[int, ...], "seeds"),
            str(values.get("note") or "").strip(),
            None if tune is None else _tune(tune),
            None if compare is None else parse(_list("compare", compare), tuple[str, ...], "compare"),
        )

    @classmethod
    def from_file(cls, path: Path) -> Study:
        """Read a YAML file."""
        return cls.from_dict(read_config(path))

    def with_seeds(self, seeds: str | None) -> Study:
        """The study with the seeds of a text such as "0,1"; itself without one."""
        if seeds is None:
            return self
        given = parse(seeds, tuple[int, ...], "seeds")
        return replace(self, seeds=tuple(_list("seeds", given)))

    def cells(self) -> list[tuple[Row, float]]:
        """Every (row, density) of the grid."""
        only = {method: (density,) for method, density in ONLY_DENSITY.items()}
        return [(row, d) for row in self.rows for d in only.get(row.method, self.densities)]

    @property
    def size(self) -> int:
        """Number of runs, those for tuning included."""
        tuning = sum(len(row.points) for row, _ in self.cells()) * (len(self.tune.seeds) if self.tune else 0)
        return len(self.cells()) * len(self.seeds) + tuning

    def config(
        self, row: Row, density: float, seed: int, out: Path, *, point: Point = (), tuning: bool = False
    ) -> RunConfig:
        """The config of one run in the folder `out`; raises ConfigError if its settings cannot be."""
        extra = self.tune.settings if tuning and self.tune else {}
        own = {"method": row.method, "args": row.args, "density": density, "seed": seed, "out": str(out)}
        try:
            return RunConfig.from_dict({**self.base, **row.settings, **extra, **own}).with_settings(point)
        except ConfigError as error:
            raise ConfigError(f"row {row.label!r}: {error}") from error


def _row(values: Any, number: int) -> Row:
    _check_keys(f"row {number} of the study", values, Row)
    label = parse(values["label"], str, f"label of row {number}")
    given = {key: _mapping(f"{key} of row {label!r}", values[key]) for key in ("args", "sweep") if key in values}
    for key, choices in given.get("sweep", {}).items():
        given["sweep"][key] = _list(f"{key} in the sweep of row {label!r}", choices)
    settings = _run_fields(f"settings of row {label!r}", values.get("settings", {}))
    method = parse(values["method"], str, f"method of row {label!r}")
    original = parse(values.get("variant_of"), str | None, f"variant_of of row {label!r}")
    return Row(label, method, **given, settings=settings, variant_of=original)


def _tune(values: Any) -> Tune:
    _check_keys("tune", values, Tune)
    return Tune(
        parse(_list("seeds of tune", values["seeds"]), tuple[int, ...], "seeds of tune"),
        parse(values["budget"], int, "budget"),
        _run_fields("settings of tune", values.get("settings", {})),
    )


def _check_keys(what: str, values: Any, kind: type) -> None:
    """`values` must be a mapping that names all fields of the dataclass `kind` without default, and no others."""
    known = {item.name: item.default is item.default_factory is MISSING for item in fields(kind)}
    needed = [name for name, required in known.items() if required]
    if not isinstance(values, Mapping):
        raise ConfigError(f"{what} is {values!r}: expected a mapping with {', '.join(needed)}")
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {what}{did_you_mean(str(key), known)}")
    for name in needed:
        if values.get(name) in (None, "", [], {}):
            raise ConfigError(f"{what} has no {name}: it needs {', '.join(needed)}")


def _mapping(what: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{what} is {values!r}: expected a mapping of names to values")
    return {str(key): value for key, value in values.items()}


def _run_fields(what: str, values: Any) -> dict[str, Any]:
    values = _mapping(what, values)
    for key in values:
        if key in _OWN:
            raise ConfigError(f"{what} sets {key!r}, which the study itself sets; use rows, densities and seeds")
    return values


def _list(what: str, values: Any) -> list[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"{what} is {values!r}: expected a list that is not empty")
    return list(values)


def _check_once(what: str, values: Sequence[object]) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ConfigError(f"{what}; {', '.join(twice)} occur more than once")


def _check_sweep(row: Row, tune: Tune | None) -> None:
    if tune is None:
        if row.sweep is not None:
            raise ConfigError(f"row {row.label!r} has a sweep, but the study has no tune section with seeds and budget")
        return
    if row.sweep is None:
        raise ConfigError(f"row {row.label!r} has no sweep; give one, or write sweep: {{}} to leave the row untuned")
    for key in row.sweep:
        if key in _NEVER_SWEPT:
            raise ConfigError(f"row {row.label!r} sweeps {key!r}, which no sweep can choose; make two rows instead")
    points = math.prod(map(len, row.sweep.values()))  # counted first, since a wrong grid may be too large to make
    if row.sweep and points != tune.budget:
        raise ConfigError(
            f"the sweep of row {row.label!r} has {points} points, but the budget of every row is {tune.budget}"
        )
    _check_once(f"points of the sweep of row {row.label!r}", [" ".join(point) for point in row.points])
