"""Algorithms are checked before they are timed, timings are kept, and a packed product is taken where it pays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.kernels.semi_structured import is_valid, pack, unpack
from gossamer.kernels.semi_structured.packs import Held, Pack, held
from gossamer.kernels.semi_structured.tuning import MARGIN, Problem, Shape, Table

SHAPE = Shape(32, 16, 64, torch.bfloat16)
SIDE = (torch.bfloat16, False, 0)
RIGHT, FAST, WRONG, FLICKERING, COUNT = 0, 1, 2, 3, 4


@dataclass
class Fake:
    """A device with four algorithms: one slow and right, one fast, one wrong, one wrong now and then."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    times: dict[str, float] = field(default_factory=lambda: {"dense": 10.0, "sparse": 4.0, "pack": 15.0})
    wrong_beyond: int = 10**9
    calls: list[int] = field(default_factory=list)
    timed: list[str] = field(default_factory=list)

    def identity(self) -> str:
        return "a device"

    def pack(self, matrix: Tensor) -> Pack:
        return Pack(*pack(matrix))

    def multiply(self, packed: Pack, x: Tensor, bias: Tensor | None, algorithm: int) -> Tensor:
        if not 0 <= algorithm < COUNT:
            raise RuntimeError("CUSPARSE_STATUS_INVALID_VALUE")
        assert packed.places is not None
        self.calls.append(algorithm)
        y = torch.nn.functional.linear(x, unpack(packed.values, packed.places), bias)
        flickers = algorithm == FLICKERING and self.calls.count(FLICKERING) % 3 == 0
        if algorithm == WRONG or flickers or len(x) > self.wrong_beyond:
            y[-1, -1] += 1.0
        return y

    def seconds(self, runs: Mapping[str, Callable[[], object]], rounds: int, *, graph: bool) -> dict[str, float]:
        self.timed += runs
        own = {str(RIGHT): 2.0, str(FAST): 1.0, str(WRONG): 0.1, str(FLICKERING): 0.1}
        return {name: own.get(name) or self.times[name] * (0.5 if graph else 1.0) for name in runs}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "semi-structured.json"


def fresh() -> Held:
    weight = torch.zeros(1)
    return held(weight)


def ask(table: Table, state: Held, shape: Shape = SHAPE, **how: bool) -> int | None:
    return table.choice(shape, state, SIDE, **{"capturing": False, "always": False, **how})


def test_problems_are_two_of_four_and_know_what_is_right() -> None:
    problem = Problem(SHAPE, torch.device("cpu"))
    first = problem.matrix
    assert is_valid(first)
    assert int((first != 0).sum()) == first.numel() // 2
    assert problem.is_right(problem.dense())
    off = problem.dense()
    off[5, 7] += 0.5
    assert not problem.is_right(off)
    assert not problem.is_right(torch.full_like(off, torch.nan))
    state = torch.get_rng_state()
    problem.draw()
    assert not torch.equal(problem.matrix, first)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are used"


def test_wrong_algorithms_are_never_taken_however_fast(path: Path) -> None:
    device = Fake()
    record = Table(device, path).record(SHAPE, measure=True)
    assert record == {
        "algorithm": FAST,
        "wrong": [WRONG, FLICKERING],
        "dense": [10.0, 5.0],
        "sparse": [4.0, 2.0],
        "pack": [15.0, 7.5],
    }
    assert not {str(WRONG), str(FLICKERING)} & set(device.timed)


def test_a_device_without_a_right_algorithm_is_dense(path: Path) -> None:
    table = Table(Fake(wrong_beyond=0), path)
    assert ask(table, fresh(), always=True) is None
    assert table.record(SHAPE, measure=False) == {
        **json.loads(path.read_text())["a device; 32x16, 64 samples, bfloat16"]
    }


def test_measurements_are_kept_for_other_processes(path: Path) -> None:
    Table(Fake(), path).record(SHAPE, measure=True)
    device = Fake()
    assert Table(device, path).record(SHAPE, measure=False)["algorithm"] == FAST  # type: ignore[index]
    assert device.calls == []


def test_what_a_file_says_is_checked_once_in_every_process(path: Path) -> None:
    record = Table(Fake(), path).record(SHAPE, measure=True)
    device = Fake()
    table = Table(device, path)
    assert ask(table, fresh(), capturing=True, always=True) is None, "nothing can be checked then"
    assert [ask(table, fresh(), always=True) for _ in range(3)] == [FAST] * 3
    assert device.calls == [FAST] * 3, "on three draws"
    for odd in (WRONG, COUNT, -1):
        key = "a device; 32x16, 64 samples, bfloat16"
        path.write_text(json.dumps({key: {**record, "algorithm": odd}}))  # type: ignore[dict-item]
        assert ask(Table(Fake(), path), fresh(), always=True) is None


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"KEY": 3}',
        '{"KEY": {"algorithm": 1, "wrong": [], "dense": [1.0], "sparse": [1.0, 1.0], "pack": []}}',
    ],
)
def test_a_damaged_file_is_measured_again(path: Path, damage: str) -> None:
    path.write_text(damage.replace("KEY", "a device; 32x16, 64 samples, bfloat16"))
    record = Table(Fake(), path).record(SHAPE, measure=True)
    assert record is not None
    assert record["algorithm"] == FAST


def test_a_device_that_cannot_be_measured_is_dense(path: Path) -> None:
    class Broken(Fake):
        def seconds(self, *args: Any, **how: Any) -> dict[str, float]:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    assert ask(Table(Broken(), path), fresh(), always=True) is None
    assert not path.exists()


def test_nothing_is_measured_while_a_graph_is_captured(path: Path) -> None:
    device = Fake()
    table = Table(device, path)
    assert ask(table, fresh(), capturing=True, always=True) is None
    assert device.calls == []
    assert ask(table, fresh(), always=True) == FAST
    assert ask(table, fresh(), capturing=True, always=True) == FAST


def test_packing_is_paid_for_by_what_products_lost(path: Path) -> None:
    table, state = Table(Fake(), path), fresh()
    saving, cost = 10.0 / MARGIN - 4.0, 15.0
    dense = 0
    while ask(table, state) is None:
        dense += 1
        assert state.foregone[SIDE] == pytest.approx(dense * saving)
    assert dense == int(cost / saving)
    assert ask(table, state) == FAST, "asking again changes nothing"
    state.packs[SIDE] = Pack(torch.zeros(1))
    state.foregone.clear()
    assert ask(table, state) == FAST, "it is packed already"
    assert ask(table, fresh()) is None, "another state of the weight"


def test_captured_products_pay_for_their_own_pack(path: Path) -> None:
    cheap = Table(Fake(times={"dense": 10.0, "sparse": 4.0, "pack": 5.0}), path)
    assert ask(cheap, fresh()) == FAST
    assert ask(cheap, fresh(), capturing=True) == FAST
    dear, state = Table(Fake(), None), fresh()
    assert ask(dear, state) is None
    assert [ask(dear, state, capturing=True) for _ in range(5)] == [None] * 5
    state.captured, state.packs[SIDE] = True, Pack(torch.zeros(1))
    assert [ask(dear, state) for _ in range(5)] == [None] * 5, "packs of before are not trusted"


def test_dense_is_taken_where_packed_does_not_win_by_more_than_noise(path: Path) -> None:
    state = fresh()
    state.packs[SIDE] = Pack(torch.zeros(1))
    assert ask(Table(Fake(times={"dense": 10.0, "sparse": 9.6, "pack": 0.1}), path), state) is None
    assert ask(Table(Fake(times={"dense": 10.0, "sparse": 9.4, "pack": 0.1}), None), state) == FAST


def test_each_number_of_samples_is_checked_by_itself(path: Path) -> None:
    device = Fake(wrong_beyond=70)
    table = Table(device, path)
    near, far = Shape(32, 16, 70, torch.bfloat16), Shape(32, 16, 72, torch.bfloat16)
    assert near.bucket == far.bucket == SHAPE
    assert ask(table, fresh(), near, always=True) == FAST
    assert ask(table, fresh(), far, always=True) is None
    known = len(device.calls)
    assert ask(table, fresh(), near, always=True) == FAST
    assert len(device.calls) == known


def test_buckets_are_powers_of_two_within_limits() -> None:
    sizes = [Shape(16, 16, n, torch.float16).bucket.samples for n in (1, 9, 4095, 4096, 10**6)]
    assert sizes == [8, 8, 2048, 4096, 16384]


def test_without_a_folder_nothing_is_kept() -> None:
    assert Table(Fake(), None).record(SHAPE, measure=True) is not None
