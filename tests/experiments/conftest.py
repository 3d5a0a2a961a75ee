from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gossamer.experiments.config import RunConfig

from .kills import fork_server
from .tiny import Make


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are killed here, machines are not: waiting for the disk ten times a run would be most of a tiny one."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of studies start at once."""
    monkeypatch.setattr("gossamer.experiments.study.pool.PROCESSES", fork_server())


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A tiny run on digits, in a folder of its own."""

    def make(name: str = "run", **values: Any) -> RunConfig:
        method = values.get("method", "set")
        base: dict[str, Any] = {
            "data": "digits",
            "model": "mlp",
            "model_options": {"hidden": [16]} if values.get("model", "mlp") == "mlp" else {},
            "method": method,
            "density": None if method == "dense" else 0.2,
            "args": {"every": 5} if method == "set" else {},
            "steps": 20,
            "eval_every": 8,
            "checkpoint_every": 6,
            "threads": 1,
            "out": str(tmp_path / name),
        }
        return RunConfig.from_dict(base | values)

    return make
