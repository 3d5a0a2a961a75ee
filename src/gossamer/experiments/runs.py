"""The folder of one run: config.yaml, metrics.jsonl, checkpoints, result.json and the report."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import CheckpointError, ConfigError
from .config import ResolvedConfig
from .locks import locked

# Keys that may differ when a run is resumed: they say where it is, not what it is.
_FREE_ON_RESUME = ("out",)
# What runs of earlier versions do not say.
_UNSAID = {"execution": "masked", "alpha": 1.0, "freeze": [], "projection": "fastfood", "origin": "init"}


@dataclass(frozen=True)
class Result:
    """The outcome of a finished run; `to_dict` is the content of result.json.

    density: {"asked", "achieved"}; achieved = active / eligible. counts: {"active", "eligible", "total"}.
    trained: numbers that are trained, by kind: "weights" (the active ones), "other weights", "alpha" (of offsets),
    "norm", "bias", "other"; in a subspace "theta" alone; empty in results of earlier versions.
    metric: {"name", "value", "higher_is_better", "split"}, measured once on the split ("test"; "valid" for a run that
    must not see the test split) after the last step.
    final_loss: mean training loss since the row before the last of metrics.jsonl. seconds: of training.
    first_support: {"kept", "on_paths", "empty"}: entries, those on a path from input to output (None if that cannot be
    told), names of empty weights; None unless the run had to find it. notes: warnings given while the run was made.
    execution: per weight (or "all") its "layout" and "why", with measured figures; empty for a masked run.
    machine: {"step_seconds", "peak_bytes"}: median of an optimizer step, memory beyond that of the process before the
    run; of the part since the last resume, None where it was not measured. ledger: FLOPs and bytes in theory and as
    executed, `Ledger.to_dict`; None for a run that was not tested, or is in a subspace. structure: "name"; "holds",
    whether all saved weights have it, and "broken", those that do not; "packed_bytes", of the form for its kernels with
    16-bit values (None where there is none), beside "dense_bytes"; None for an unstructured method.
    """

    task: str
    data: str
    model: str
    method: str
    seed: int
    density: Mapping[str, float]
    counts: Mapping[str, int]
    metric: Mapping[str, Any]
    final_loss: float
    steps: int
    seconds: float
    checkpoint_bytes: int
    config: Mapping[str, Any]
    first_support: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default_factory=list)
    execution: Sequence[Mapping[str, Any]] = field(default_factory=list)
    machine: Mapping[str, float | None] = field(default_factory=dict)
    ledger: Mapping[str, Any] | None = None
    trained: Mapping[str, int] = field(default_factory=dict)
    structure: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """The method, its structure, and what was done to its first support."""
        words = {"offset": "offset ", "control": "", "kept_weights": "kept weights ", "mask_data": "scored on "}
        done = [self.structure["name"]] if self.structure else []
        done += [f"{word}{self.config[key]}" for key, word in words.items() if self.config.get(key)]
        done += [f"frozen {part}" for part in self.config.get("freeze", ())]
        if self.config.get("subspace"):
            done.append("subspace {subspace} {projection} from {origin}".format_map(self.config))
        return f"{self.method} ({', '.join(done)})" if done else self.method

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError on anything else."""
        result = cls(**values)
        numbers = {
            **{f"density.{key}": result.density[key] for key in ("asked", "achieved")},
            **{f"counts.{key}": result.counts[key] for key in ("active", "eligible", "total")},
            "metric.value": result.metric["value"],
            **{key: values[key] for key in ("seed", "final_loss", "steps", "seconds", "checkpoint_bytes")},
        }
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise TypeError(f"{key} is {value!r}, not a finite number")
        if not isinstance(result.metric["name"], str) or "out" not in result.config:
            raise ValueError("it lacks the name of the metric or the run's folder")
        if not isinstance(result.metric.get("higher_is_better"), bool):
            raise ValueError("it does not say whether a higher metric is better")
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the keys of the contract."""
        return asdict(self)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that a kill or a full disk leaves the old one or the new one; text is UTF-8."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}; what was there is kept") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of config keys."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(values, default=str)  # raises on a value that contains itself
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"cannot read the config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values, so no config")
    return values


class RunFolder:
    """Paths and small files of a run."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.training_file = path / "training.safetensors"
        self.model_file = path / "model.safetensors"
        self.result_file = path / "result.json"

    def check(self, config: ResolvedConfig, *, resume: bool) -> None:
        """Raise ConfigError if the folder is not empty (without `resume`) or holds another run; write nothing."""
        try:
            used = self.path.exists() and any(item.suffix != ".tmp" for item in self.path.iterdir())
        except OSError as error:
            raise self._unusable(error.strerror) from error
        if not used:
            return
        if not resume:
            raise ConfigError(f"{self.path} is not empty; add --resume to continue its run, or give another --out")
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} is not empty and holds no config.yaml, so there is no run to resume")
        self._check_same(config)

    def create(self, config: ResolvedConfig) -> None:
        """Make the folder with its config.yaml, if it is not there yet."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error.strerror) from error
        if not os.access(self.path, os.W_OK):
            raise self._unusable("not writable")
        if not self.config_file.exists():
            write_atomically(self.config_file, yaml.safe_dump(config.to_dict(), sort_keys=False))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the system lets go when the process dies.

        The folder itself is locked, so that nothing is left in it. Where there are no such locks this does nothing.

        Raises:
            ConfigError: another process trains here.
        """
        with locked(self.path) as got:
            if not got:
                raise self._unusable("another process is training in it")
            yield

    def _unusable(self, why: object) -> ConfigError:
        return ConfigError(f"cannot use {self.path} as run folder: {why}; give another --out")

    @property
    def _again(self) -> str:
        return f"delete the folder {self.path} to run it again"

    def stored_config(self) -> dict[str, Any]:
        """The resolved config of the run in this folder."""
        return read_config(self.config_file)

    def _check_same(self, config: ResolvedConfig) -> None:
        stored, asked = self.stored_config(), config.to_dict()
        keys = [key for key in {**stored, **asked} if key not in _FREE_ON_RESUME]
        stored = {**_UNSAID, **stored}
        changed = [f"{k} {stored.get(k)!r} -> {asked.get(k)!r}" for k in keys if stored.get(k) != asked.get(k)]
        if changed:
            raise ConfigError(
                f"cannot resume {self.path} with another config ({', '.join(changed)}); "
                "leave these as they were, or give another --out"
            )

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return self.result_file.exists()

    def result(self) -> Result:
        """Read result.json."""
        try:
            return Result.from_dict(json.loads(self.result_file.read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.result_file} is no result of a run: {error}; {self._again}") from error

    def write_result(self, result: Result) -> None:
        """Write result.json, the last file of a run."""
        write_atomically(self.result_file, json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Make metrics.jsonl hold exactly these rows."""
        write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl."""
        try:
            lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.metrics_file} holds no rows of a run: {error}; {self._again}") from error
