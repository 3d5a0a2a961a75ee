"""What the tests of runs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gossamer.experiments.config import RunConfig

Make = Callable[..., RunConfig]


def rows_of(config: RunConfig) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, without the wall time."""
    lines = (Path(str(config.out)) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def model_of(config: RunConfig) -> bytes:
    """The bytes of the trained model's file."""
    return (Path(str(config.out)) / "model.safetensors").read_bytes()
