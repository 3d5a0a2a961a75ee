"""Measurements of earlier processes on this machine: a JSON file in the user's cache folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _user_cache
from .layer_shape import LayerShape

Record = dict[str, Any]


def cache_file() -> Path | None:
    """Where measurements are kept; None for a user without a home."""
    return _user_cache.path_of("measurements.json")


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{named[0]} ({_signature(lines)})" if named else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _signature(lines: Sequence[str]) -> str:
    """Family and model: virtual machines tell the same name of different processors."""
    wanted = ("cpu family", "model\t", "stepping")
    return ".".join(line.partition(":")[2].strip() for key in wanted for line in lines if line.startswith(key))[:24]


def key_of(shape: LayerShape, density: float) -> str:
    """What a measurement depends on."""
    about = (cpu_model(), f"torch {torch.__version__}", f"gossamer {__version__}", f"{torch.get_num_threads()} threads")
    layer = f"{shape} batch {shape.batch} pad {shape.padding} step {shape.stride} gap {shape.dilation}"
    forced = os.environ.get("GOSSAMER_CPU", "")
    return "; ".join((*about, layer, "inner" if shape.inner else "first", f"density {density:.2g}", forced))


def find(key: str, variants: Sequence[str]) -> Record | None:
    """A record that has at least these variants, measured together; None if there is none, or the file is damaged."""
    for record in _read().get(key, []):
        if _sound(record) and set(variants) <= record["variants"].keys():
            return dict(record)
    return None


def store(key: str, record: Record) -> None:
    """Keep a record in place of those it covers; without a folder to write to, nothing is kept."""
    held = _read()
    others = [r for r in held.get(key, []) if _sound(r) and not r["variants"].keys() <= record["variants"].keys()]
    held[key] = [record, *others]
    _user_cache.write(cache_file(), held)


def _read() -> dict[str, list[Record]]:
    return {k: v for k, v in _user_cache.read(cache_file()).items() if isinstance(v, list)}


def _sound(record: Any) -> bool:
    """Whether it has the form of a record and times above 0."""
    if not (isinstance(record, Mapping) and isinstance(record.get("variants"), Mapping)):
        return False
    numbers = [record.get("rounds"), record.get("index_bytes")]
    times = [t for pair in record["variants"].values() for t in (pair if isinstance(pair, list) else [None])]
    return (
        all(isinstance(number, int) for number in numbers)
        and isinstance(record.get("pinned"), bool)
        and all(isinstance(time, float) and 0 < time < float("inf") for time in times)
        and all(len(pair) == 2 for pair in record["variants"].values())
    )
