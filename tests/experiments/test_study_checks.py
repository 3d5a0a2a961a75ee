"""Before its first run a study builds every model with its method, so that none fails hours later."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import ConfigError
from gossamer.experiments.study import Agenda, Row, agenda

from .studies import tiny


@pytest.mark.parametrize(
    ("method", "args", "settings", "message"),
    [
        ("static", {}, {"targets": "nothing.*"}, "target 'nothing.*' matches no parameter"),
        ("static", {}, {"device": "meta"}, "device = 'meta' cannot compute here"),
        ("static", {}, {"batch_size": 9999}, "batch_size = 9999: expected 1 to 1437"),
        ("cs", {"finalize": 99}, {}, "finalize=99 is after the last of 4 steps"),
        ("rigl", {"every": 1}, {}, "would rewire instead of every single update"),
        (
            "snfs",
            {},
            {"momentum": 0, "optimizer": "sgd"},
            "looks at the momentum of linear1.weight, but SGD keeps none",
        ),
        ("lottery", {"rewind": 99}, {}, "rewind=99 is a step after the last one, 4"),
        ("lottery", {"rewind": 4}, {}, "leaves none to train the ticket"),
        ("str", {}, {"optimizer": "muon"}, "Muon steps matrices only"),
        ("one-shot", {"at": 99}, {}, "would end at density 1, not 0.1"),
        ("gmp", {"stop": 99}, {}, "would end at density 1, not 0.1"),
    ],
)
def test_runs_that_cannot_be_built_are_named_before_any_training(
    method: str, args: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    study = tiny(rows=(Row("a", "static"), Row("b", method, args, settings)), densities=(0.1,), seeds=(0,))
    with pytest.raises(ConfigError, match=f"^b d=0.1 seed=0: .*{re.escape(message)}") as caught:
        Agenda(study, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_density_too_small_for_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^RigL d=1e-06 seed=0: density 1e-06 of 1184 weights is 0, fewer than one"):
        Agenda(tiny(rows=(Row("RigL", "rigl"),), densities=(1e-6,)), tmp_path)


def test_a_model_is_built_once_for_all_seeds_and_learning_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = list[int]()
    real = agenda.build_parts
    monkeypatch.setattr(agenda, "build_parts", lambda plan: (built.append(plan.config.seed), real(plan)))
    rows = (Row("a", "set", {"every": 2}), Row("b", "set", {"every": 2}, {"lr": 0.01}), Row("c", "set", {"every": 3}))
    assert len(Agenda(tiny(rows=rows, densities=(0.1,), seeds=(0, 1)), tmp_path).first) == 6
    assert built == [0, 0]


def test_a_variant_needs_its_original() -> None:
    rows = (*tiny().rows, Row("RigL shuffled", "rigl", {"every": 2}, {"control": "shuffle"}, variant_of="Rigl"))
    with pytest.raises(
        ConfigError, match="'RigL shuffled' is a variant of 'Rigl', which is no other row; did you mean"
    ):
        tiny(rows=rows)
    assert tiny(rows=(*rows[:-1], Row("again", "rigl", {"every": 2}, variant_of="RigL"))).rows[-1].variant_of == "RigL"
