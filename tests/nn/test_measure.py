"""Measurements: what they hold, what they keep, and what follows from them. No test depends on how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer._timing import ROUNDS, faster_half
from gossamer.errors import ConfigError
from gossamer.nn import _measurements, measure
from gossamer.nn.layer_shape import LayerShape
from gossamer.nn.measure import VARIANTS, Measured, Timing, break_even, pays, verdict_of

LINEAR = LayerShape("linear", (24, 40), 8)
CONV = LayerShape("conv", (8, 4, 3, 3), 4, (6, 6), (1, 1), (1, 1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gossamer" / "measurements.json"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The variants of every measurement that was really made; each is told to take its place in the list + 1 ms."""
    made: list[tuple[str, ...]] = []

    def time(shape: LayerShape, density: float, variants: list[str], budget: float) -> dict[str, Any]:
        made.append(tuple(variants))
        seconds = {name: [1e-3 * (i + 1), 1e-3] for i, name in enumerate(variants)}
        return {"variants": seconds, "rounds": ROUNDS, "pinned": False, "index_bytes": 9}

    monkeypatch.setattr(measure, "_time", time)
    return made


def _measured(**milliseconds: float) -> Measured:
    timings = {name.replace("_", " "): Timing(ms / 2e3, ms / 2e3) for name, ms in milliseconds.items()}
    return Measured(LINEAR, 0.1, timings, ROUNDS, 1, True, 0)


# -- the statistic and what follows from figures -------------------------------------------------------------------


def test_the_statistic_ignores_the_slower_half() -> None:
    assert faster_half([3.0, 1.0, 2.0, 100.0, 200.0]) == faster_half([3.0, 1.0, 2.0, 7.0, 8.0]) == 2.0
    assert faster_half([4.0]) == 4.0


def test_break_even_is_interpolated() -> None:
    assert break_even({0.01: 16.0, 0.1: 4.0, 0.4: 0.25}) == pytest.approx(0.2)
    assert break_even({0.1: 0.9, 0.01: 0.5}) is None
    assert break_even({0.5: 1.0}) is None
    assert break_even({0.5: 1.0, 0.6: 1.0}) == 0.6


def test_verdicts_say_what_was_measured() -> None:
    wins = verdict_of(_measured(dense_fp32=4.0, sparse=1.0))
    assert wins.sparse
    assert wins.speedup == pytest.approx(4.0)
    assert wins.why.startswith("4.00x dense fp32")
    loses = verdict_of(_measured(dense_fp32=0.83, sparse=1.0))
    assert not loses.sparse
    assert loses.why.startswith("no speed-up here: 0.83x dense fp32")
    assert not verdict_of(_measured(dense_fp32=1.01, sparse=1.0)).sparse  # within what measurements scatter
    assert verdict_of(_measured(sparse=1.0)).why == "dense fp32 does not fit in half of the free memory"


def test_a_hybrid_layer_is_charged_its_rewirings() -> None:
    measured = _measured(dense_fp32=4.0, hybrid=1.0, hybrid_rewired=9.0)
    assert verdict_of(measured, "hybrid").speedup == pytest.approx(4.0)
    assert verdict_of(measured, "hybrid", every=8).speedup == pytest.approx(2.0)
    assert not verdict_of(measured, "hybrid", every=1).sparse


def test_nothing_kept_pays_and_needs_no_measurement(timed: list[Any]) -> None:
    assert pays("linear", (24, 40), 0, 8).sparse
    assert not pays("conv", (2, 2, 1, 1, 1), 3, 8, size=(2, 2, 2)).sparse
    assert not timed


# -- the cache -----------------------------------------------------------------------------------------------------


def test_a_measurement_is_made_once(timed: list[Any], own_cache: Path) -> None:
    first = measure.measure(LINEAR, 0.1)
    again = measure.measure(LINEAR, 0.1004)  # the same to two digits
    assert first == again
    assert len(timed) == 1
    assert measure.measure(LINEAR, 0.1, ("sparse", "dense fp32")).timings == first.timings  # a part of it will do
    assert len(timed) == 1
    measure.measure(LINEAR, 0.1, cached=False)
    measure.measure(LINEAR, 0.2)
    measure.measure(LayerShape("linear", (24, 40), 9), 0.1)
    assert len(timed) == 4
    assert own_cache.exists()


def test_threads_and_forced_kernels_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = _measurements.key_of(LINEAR, 0.1)
    assert f"torch {torch.__version__}" in key
    monkeypatch.setenv("GOSSAMER_CPU", "portable")
    other = _measurements.key_of(LINEAR, 0.1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert len({key, other, _measurements.key_of(LINEAR, 0.1)}) == 3


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"KEY": 3}',
        '{"KEY": [3]}',
        '{"KEY": [{"variants": {"sparse": [1]}}]}',
        "\x00\xff",
        "[" * 100_000,
    ],
)
def test_a_damaged_cache_is_measured_anew(timed: list[Any], own_cache: Path, damage: str) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text(damage.replace("KEY", _measurements.key_of(LINEAR, 0.1)), encoding="utf-8")
    measure.measure(LINEAR, 0.1)
    assert len(timed) == 1
    measure.measure(LINEAR, 0.1)
    assert len(timed) == 1
    assert json.loads(own_cache.read_text())


def test_a_time_that_is_no_time_is_damage(timed: list[Any], own_cache: Path) -> None:
    measure.measure(LINEAR, 0.1)
    own_cache.write_text(own_cache.read_text().replace("0.001", "-0.001"))
    measure.measure(LINEAR, 0.1)
    assert len(timed) == 2


def test_without_a_place_to_write_it_still_measures(
    timed: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measure.measure(LINEAR, 0.1).rounds == ROUNDS


def test_without_a_home_it_still_measures(timed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert _measurements.cache_file() is None
    assert measure.measure(LINEAR, 0.1).rounds == ROUNDS
    assert len(timed) == 1


# -- what does not fit or cannot be --------------------------------------------------------------------------------


def test_dense_variants_that_do_not_fit_are_left_out(timed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_free_bytes", lambda: 1000)
    measured = measure.measure(LINEAR, 0.1)
    assert set(measured.timings) == {"sparse", "packed"}
    assert measured.speedup("sparse") is None
    assert pays("linear", (24, 40), 96, 8).sparse


def test_bad_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"density=1\.5"):
        measure.measure(LINEAR, 1.5)
    with pytest.raises(ConfigError, match="variant is 'dence'"):
        measure.measure(LINEAR, 0.5, ("dence",))
    with pytest.raises(ConfigError, match="keeps none of the 960 weights"):
        measure.measure(LINEAR, 1e-5)
    with pytest.raises(ConfigError, match="a kernel of 33124 entries"):
        measure.measure(LayerShape("conv", (2, 1, 182, 182), 1, (182, 182)), 0.5)
    with pytest.raises(ConfigError, match="no sparse layer has a kernel of 3 axes"):
        measure.measure(LayerShape("conv", (2, 2, 1, 1, 1), 1, (2, 2, 2)), 0.5)


@pytest.mark.parametrize(
    "text", ["4096", "4096x", "conv:3x3@8", "conv:8x8x3x3", "conv:8x8x3@4x4", "0x4", "-1x4", "4x4@2"]
)
def test_texts_that_are_no_layers(text: str) -> None:
    with pytest.raises(ConfigError, match="write linear weights as OUTxIN"):
        LayerShape.parse(text, 8)


def test_texts_of_layers() -> None:
    assert LayerShape.parse("24x40", 8) == LINEAR
    assert LayerShape.parse("conv:8x4x3x3@6", 4) == CONV
    assert LayerShape.parse("conv:8x4x3x5@6x7", 4).size == (6, 7)
    assert LayerShape.parse("conv:8x4x5@9", 4).out_size == (9,)
    assert str(LINEAR) == "24x40"
    assert str(CONV) == "conv:8x4x3x3@6"
    with pytest.raises(ConfigError, match="does not fit an input"):
        LayerShape("conv", (2, 2, 5, 5), 1, (3, 3))


# -- smoke ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [LINEAR, CONV, LayerShape("conv", (6, 3, 3), 4, (9,), groups=2)], ids=str)
def test_every_variant_is_measured(shape: LayerShape) -> None:
    random = torch.get_rng_state()
    measured = measure.measure(shape, 0.25, budget=0)
    assert set(measured.timings) == set(VARIANTS)
    assert measured.rounds >= ROUNDS
    assert measured.index_bytes > 0
    assert torch.equal(random, torch.get_rng_state())
    assert measured == measure.measure(shape, 0.25, budget=0)  # from the cache


@pytest.mark.parametrize("shape", [LINEAR, CONV], ids=str)
def test_hybrid_layers_are_measured(shape: LayerShape) -> None:
    verdict = pays(
        shape.kind, shape.weight, shape.numel // 4, shape.batch, size=shape.size, padding=shape.padding, layout="hybrid"
    )
    assert verdict.speedup > 0
