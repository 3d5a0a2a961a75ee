"""The summary of a study: means, paired differences and f, worked by hand; the tables."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from gossamer.experiments.study import print_lines
from gossamer.experiments.summary import Line, markdown, spread, summarise, table

from .studies import result


def _grid(dense: list[float], small: list[float], rewire: list[float], *, higher: bool = True) -> dict[Any, Any]:
    rows = {("dense", 1.0): ("dense", dense), ("SMALL", 0.1): ("small", small), ("re", 0.1): ("rewire", rewire)}
    return {
        key: [result(method, seed, value, higher=higher) for seed, value in enumerate(values)]
        for key, (method, values) in rows.items()
    }


def test_hand_worked_summary() -> None:
    dense, small, rewire = summarise(_grid([90, 92], [70, 74], [85, 91]))
    assert (dense.mean, dense.f, dense.against) == (91, 1.0, {"SMALL": None})
    assert (small.mean, small.f, small.against) == (72, 0.0, {"SMALL": None})
    assert rewire.mean == 88
    assert rewire.deviation == pytest.approx(18**0.5)
    assert rewire.against == {"SMALL": (16, pytest.approx(2**0.5))}  # 15 and 17 at equal seeds
    assert rewire.f == pytest.approx(16 / 19)
    assert rewire.seconds == 2.0


def test_other_rows_can_be_compared_with() -> None:
    grid = _grid([90, 92], [70, 74], [85, 91])
    _, small, rewire = summarise(grid, ["re", "dense"])
    assert small.against == {"re": (-16, pytest.approx(2**0.5)), "dense": (-19, pytest.approx(2**0.5))}
    assert rewire.against == {"re": None, "dense": (-3, pytest.approx(8**0.5))}  # a dense row serves all densities
    assert table([small, rewire])[0] == (
        "method",
        "density",
        "accuracy",
        "vs re",
        "vs dense",
        "f",
        "non-zeros",
        "bytes",
    )


def test_a_variant_is_compared_with_its_original_too() -> None:
    grid = _grid([90, 92], [70, 74], [85, 91])
    grid["re shuffled", 0.1] = [result("rewire", seed, value) for seed, value in enumerate([84, 92])]
    lines = summarise(grid, ["SMALL"], {"re shuffled": "re"})
    assert lines[2].original == ("", None)
    assert lines[3].original == ("re", (0, pytest.approx(2**0.5)))
    header, rows = table(lines)
    assert header[4] == "vs its original"
    assert [row[4] for row in rows] == ["", "", "", "+0.00 ± 1.41 (re)"]
    assert all(line.original is None for line in summarise(grid, ["SMALL"]))


def test_differences_are_paired_by_seed_and_density() -> None:
    grid = _grid([], [70, 74], [85, 91])
    grid["re", 0.1].reverse()
    assert summarise(grid)[-1].against["SMALL"] == (16, pytest.approx(2**0.5))
    grid["re", 0.2] = grid.pop(("re", 0.1))
    assert summarise(grid)[-1].against["SMALL"] is None


def test_f_does_not_mind_the_sign_of_the_metric() -> None:
    up = summarise(_grid([90, 92], [70, 74], [85, 91]))[-1].f
    down = summarise(_grid([-90, -92], [-70, -74], [-85, -91], higher=False))[-1].f
    assert up == pytest.approx(down)


def test_only_seeds_that_all_have_count_for_f() -> None:
    line = summarise(_grid([90], [70, 74], [85, 91]))[-1]
    assert line.mean == 88
    assert line.f == pytest.approx(15 / 20)


def _markdown(lines: list[Line]) -> str:
    return markdown(*table(lines))


def test_without_controls_there_is_no_f() -> None:
    (line,) = summarise({("re", 0.1): _grid([], [], [85])["re", 0.1]})
    assert (line.f, line.against, line.deviation) == (None, {}, None)
    assert "| re | 0.1 | 85.00 |  | 10 | 1,000 |" in _markdown([line])
    assert r"| a\|b | 0.1 |" in _markdown([replace(line, label="a|b")])


@pytest.mark.parametrize("width", [40, 80])
def test_tables_fit_80_columns_and_are_never_cut(width: int) -> None:
    sizes = {"counts": {"active": 266_200, "eligible": 266_200, "total": 266_710}, "checkpoint_bytes": 1_234_567}
    density = {"asked": 0.05, "achieved": 0.04932}
    groups = {
        (label, 0.05): [replace(result(method, s, v + s), density=density, **sizes) for s in (0, 2)]
        for label, method, v in (("SMALL", "small", 60.0), ("rewire Reset(1000)", "rewire", 70.52))
    }
    lines = summarise(groups)
    stream = io.StringIO()
    print_lines(Console(file=stream, width=width), "title", lines)
    shown = stream.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    for line in lines:
        (row,) = (text for text in shown if text.startswith(line.label))
        assert all(cell in row for cell in line.cells())
    assert lines[0].cells()[1] == "0.0493"


def test_spread_is_as_documented() -> None:
    assert (spread(1.005, 0.1), spread(-1.0, None, sign=True)) == ("1.00 ± 0.10", "-1.00")
