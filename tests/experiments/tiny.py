"""What the tests of runs share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossamer.experiments.config import RunConfig
from gossamer.experiments.runs import Result
from gossamer.experiments.train import Interrupted, Update, train

Make = Callable[..., RunConfig]


def rows_of(config: RunConfig) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, without the wall time."""
    lines = (Path(str(config.out)) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def model_of(config: RunConfig) -> bytes:
    """The bytes of the trained model's file."""
    return (Path(str(config.out)) / "model.safetensors").read_bytes()


def signal_at(step: int, number: int = signal.SIGINT) -> Callable[[Update], None]:
    """As `progress`: the process gets a signal after a step."""

    def progress(update: Update) -> None:
        if update.step == step:
            os.kill(os.getpid(), number)

    return progress


def interrupt(config: RunConfig, *steps: int, number: int = signal.SIGINT) -> list[str]:
    """Train from the start until the run is stopped after each of these steps in turn; return what it says then."""
    said: list[str] = []
    for step in steps:
        with pytest.raises(Interrupted) as stop:
            train(config, resume=bool(said), progress=signal_at(step, number))
        assert stop.value.folder == Path(str(config.out))
        said.append(str(stop.value))
    return said


def assert_alike(one: RunConfig, other: RunConfig) -> None:
    """Both runs wrote the same rows and the same model, bit for bit."""
    assert rows_of(one) == rows_of(other)
    assert model_of(one) == model_of(other)


def assert_continues_exactly(
    make: Make,
    values: dict[str, Any],
    *steps: int,
    number: int = signal.SIGINT,
    meantime: Callable[[], object] = lambda: None,
) -> tuple[Result, Result]:
    """A run and one that is stopped after these steps and goes on are alike; return the results of both.

    meantime: what happens before the last part.
    """
    whole, cut = make("whole", **values), make("cut", **values)
    expected = train(whole)
    said = interrupt(cut, *steps, number=number)
    assert said == [f"stopped after step {step} of {expected.steps}, checkpoint written" for step in steps]
    meantime()
    result = train(cut, resume=True)
    assert_alike(cut, whole)
    assert (result.metric, result.steps) == (expected.metric, expected.steps)
    return expected, result
