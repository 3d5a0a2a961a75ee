"""What a study has to run: its tuning runs, then, once a row is tuned, that row's final runs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import ConfigError, GossamerError
from .. import data
from ..computing import check_device, pinned
from ..config import ResolvedConfig, RunConfig
from ..recipes import resolve
from ..runs import Result, RunFolder
from ..setup import build_parts, make_plan, named_method
from .definition import Key, Point, Row, Study
from .tuning import Tuning, tuned

_TUNING = "tuning"  # folder of the tuning runs
# Whether a run can be built does not depend on these; of the last one tuning, which comes first, has the larger.
_HARMLESS = ("seed", "out", "lr", "valid_fraction")


@dataclass(frozen=True)
class Job:
    """One run of a study. run: its folder, relative to that of the study, which names it. point: of a sweep."""

    label: str
    density: float
    seed: int
    run: str
    config: RunConfig = field(compare=False)
    point: Point = ()
    tuning: bool = False

    def __str__(self) -> str:
        point = " ".join(self.point)
        words = (self.label, f"d={self.density:g}", point, f"{'tuning ' * self.tuning}seed={self.seed}")
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Failure:
    """Why a run has no result, in one line. lasting: another attempt would fail in the same way."""

    why: str
    lasting: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a study gave.

    results: by (label, density, seed). failures: name of a run -> one line. tunings: by (label, density). folders: of
    the runs with a result.
    """

    study: Study
    results: Mapping[Key, Result]
    failures: Mapping[str, str]
    tunings: Mapping[tuple[str, float], Tuning]
    folders: Mapping[Key, Path]


class Agenda:
    """The runs of `study` in the folder `out`; making one checks what can be checked before any training.

    Raises:
        ConfigError: a setting that cannot be, or a folder that holds a run with other settings.
    """

    def __init__(self, study: Study, out: Path):
        self.study, self.out = study, out
        self._check = _Checker(out)
        self._results: dict[Key, Result] = {}
        self._folders: dict[Key, Path] = {}
        self._failures: dict[str, str] = {}
        self._tunings: dict[tuple[str, float], Tuning] = {}
        self._waiting: dict[tuple[str, float], dict[Job, Result | Failure | None]] = {}
        self._cells = {(row.label, density): row for row, density in study.cells()}
        self.first = tuple(self._first_jobs())
        every = [*self.first, *self._possible()]
        counts = Counter(job.run.lower() for job in every)
        for job in every:
            if counts[job.run.lower()] > 1:
                raise ConfigError(f"the folder {job.run!r} would hold two runs; give the rows more different labels")
        for job in every:
            self._check(job)

    def record(self, job: Job, outcome: Result | Failure) -> list[Job]:
        """Note how a run ended; returns the runs that can start now because of it."""
        if job.tuning:
            return self._record_tuning(job, outcome)
        if isinstance(outcome, Failure):
            self._failures[str(job)] = outcome.why
        else:
            self._results[job.label, job.density, job.seed] = outcome
            self._folders[job.label, job.density, job.seed] = self.out / job.run
        return []

    def outcome(self) -> Outcome:
        """Everything recorded so far, in the order of the study."""
        keys = [(label, density, seed) for label, density in self._cells for seed in self.study.seeds]
        found = {key: self._results[key] for key in keys if key in self._results}
        tunings = {cell: self._tunings[cell] for cell in self._cells if cell in self._tunings}
        return Outcome(self.study, found, dict(self._failures), tunings, dict(self._folders))

    def _first_jobs(self) -> Iterator[Job]:
        for (label, density), row in self._cells.items():
            if not row.points:
                yield from self._final(row, density, ())
                continue
            jobs = list(self._tuning(row, density))
            self._waiting[label, density] = dict.fromkeys(jobs)
            yield from jobs

    def _possible(self) -> Iterator[Job]:
        for (_, density), row in self._cells.items():
            for point in row.points:
                yield from self._final(row, density, point)

    def _final(self, row: Row, density: float, point: Point) -> Iterator[Job]:
        for seed in self.study.seeds:
            yield self._job(row, density, seed, point, tuning=False)

    def _tuning(self, row: Row, density: float) -> Iterator[Job]:
        for point in row.points:
            for seed in self.study.tune.seeds if self.study.tune else ():
                yield self._job(row, density, seed, point, tuning=True)

    def _job(self, row: Row, density: float, seed: int, point: Point, *, tuning: bool) -> Job:
        parts = [row.label, f"d{density:g}", *([",".join(point)] if point else []), f"s{seed}"]
        name = "-".join("".join(c if c.isalnum() or c in ".,=-" else "_" for c in part) for part in parts)
        run = f"{_TUNING}/{name}" if tuning else name
        config = self.study.config(row, density, seed, self.out / run, point=point, tuning=tuning)
        return Job(row.label, density, seed, run, config, point, tuning)

    def _record_tuning(self, job: Job, outcome: Result | Failure) -> list[Job]:
        cell = job.label, job.density
        scores = self._waiting[cell]
        scores[job] = outcome
        if isinstance(outcome, Failure) and not outcome.lasting:
            self._failures[str(job)] = outcome.why
        known = {(j.point, j.seed): score for j, score in scores.items() if score is not None}
        if len(known) < len(scores):
            return []
        row = self._cells[cell]
        if any(isinstance(score, Failure) and not score.lasting for score in known.values()):
            self._give_up(row, job.density, "not run, since runs of its tuning failed")
            return []
        self._tunings[cell] = chosen = tuned(row, job.density, known)
        if chosen.best is None:
            self._give_up(row, job.density, "not run, since training diverged at every point of its sweep")
            return []
        return list(self._final(row, job.density, chosen.best.point))

    def _give_up(self, row: Row, density: float, why: str) -> None:
        for job in self._final(row, density, ()):
            self._failures[str(job)] = why


class _Checker:
    """Checks the settings of runs, and what is in their folders; loads every data set and builds every model once."""

    def __init__(self, out: Path):
        self._out = out
        self._data: dict[str, data.Dataset] = {}
        self._built: set[str] = set()

    def __call__(self, job: Job) -> None:
        config, folder = job.config, RunFolder(self._out / job.run)
        try:
            named_method(config)
            dataset = self._dataset(config)
            if job.tuning and not len(dataset.valid):
                raise ConfigError("tuning needs a validation split; write settings: {valid_fraction: 0.2} into tune")
            resolved = resolve(config, dataset)
            folder.check(resolved, resume=True)
            self._build(resolved, dataset)
        except GossamerError as error:
            raise ConfigError(f"{job}: {error}") from error

    def _build(self, config: ResolvedConfig, dataset: data.Dataset) -> None:
        """Make the model, optimizers and sparsifier, which check what the method needs; the CPU will do for that."""
        name = repr({key: value for key, value in config.to_dict().items() if key not in _HARMLESS})
        if name in self._built:
            return
        check_device(config.device)
        plan = make_plan(replace(config, device="cpu"), dataset)
        with pinned(plan.config), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # each run tells its own, and keeps them in its result
            build_parts(plan)
        self._built.add(name)

    def _dataset(self, config: RunConfig) -> data.Dataset:
        settings = {"valid_fraction": config.valid_fraction, **config.data_options}
        name = repr((config.data, settings))
        if name not in self._data:
            self._data[name] = data.load(config.data, **settings)
        return self._data[name]
