"""Support: one set of coordinates, whatever its storage."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from gossamer.errors import CheckpointError, ConfigError
from gossamer.topology import Support

DIGEST = 8055968290763653419  # blake2b of b"(2, 4)" and the byte 0b01000100, halved
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> Tensor:
    shape = draw(SHAPES) if shape is None else shape
    return torch.from_numpy(draw(hnp.arrays(bool, shape)).copy()).view(shape)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    first = draw(masks())
    return first, draw(masks(tuple(first.shape)))


def storages(mask: Tensor) -> list[Support]:
    made = Support.from_mask(mask)
    bits = Support.from_state({"shape": list(mask.shape), "count": made.count, "bits": bits_of(mask)})
    return [made, Support.from_index(made.index, mask.shape), bits, made.compact()]


def bits_of(mask: Tensor) -> Tensor:
    padded = torch.zeros((mask.numel() + 7) // 8 * 8, dtype=torch.int64)
    padded[: mask.numel()] = mask.reshape(-1)
    powers = 2 ** torch.arange(7, -1, -1)
    return (padded.view(-1, 8) * powers).sum(1).to(torch.uint8)


@given(mask=masks())
def test_every_storage_is_the_same_set(mask: Tensor) -> None:
    first = Support.from_mask(mask)
    for support in storages(mask):
        assert torch.equal(support.mask, mask)
        assert torch.equal(support.index, mask.reshape(-1).nonzero().view(-1))
        assert (support.count, support.numel, support.shape) == (int(mask.sum()), mask.numel(), mask.shape)
        assert support == first
        assert support.digest() == first.digest() == hash(support)
        assert support.nbytes >= first.compact().nbytes
        assert Support.from_state(support.state()) == first


@given(pair=pairs())
def test_set_algebra(pair: tuple[Tensor, Tensor]) -> None:
    a, b = map(Support.from_mask, pair)
    x, y = (set(s.index.tolist()) for s in (a, b))
    everything = set(range(a.numel))
    for made, expected in [(a & b, x & y), (a | b, x | y), (a ^ b, x ^ y), (a - b, x - y), (~a, everything - x)]:
        assert set(made.index.tolist()) == expected
        assert made.count == len(expected)
    assert a.issubset(b) == (x <= y)
    assert (a == b) == (x == y)
    assert (a.digest() == b.digest()) == (x == y)


def test_compact_takes_the_fewest_bytes() -> None:
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[0, :156] = True
    sparse = Support.from_mask(mask)
    assert sparse.compact().nbytes == 8 * 100  # index: 100 * 8 < 10000 / 8
    mask = torch.ones(100, 100, dtype=torch.bool)
    assert Support.from_mask(mask).compact().nbytes == 1250  # bits
    assert Support.from_mask(mask).nbytes == 10000


def test_digest_depends_on_shape() -> None:
    mask = torch.ones(6, dtype=torch.bool)
    assert Support.from_mask(mask.view(2, 3)).digest() != Support.from_mask(mask.view(3, 2)).digest()


def test_digest_is_stable() -> None:
    assert Support.from_index(torch.tensor([1, 5]), (2, 4)).digest() == DIGEST
    assert 0 <= DIGEST < 2**63


def test_full() -> None:
    support = Support.full((3, 4))
    assert (support.count, support.density, support.device.type) == (12, 1.0, "cpu")


def test_from_mask_keeps_the_mask() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    assert Support.from_mask(mask).mask is mask


def test_from_index_sorts_and_removes_repetitions() -> None:
    support = Support.from_index(torch.tensor([5, 1, 5, 0], dtype=torch.int32), (2, 3))
    assert support.index.tolist() == [0, 1, 5]
    assert support.index.dtype == torch.int64


def test_strided_mask() -> None:
    mask = (torch.arange(12).view(3, 4) % 5 == 0).t()
    assert Support.from_mask(mask).index.tolist() == mask.flatten().nonzero().view(-1).tolist()


def test_immutable_and_copyable() -> None:
    support = Support.from_index(torch.tensor([1]), (3,))
    with pytest.raises(AttributeError, match="immutable"):
        support.count = 2
    assert copy.deepcopy(support) == pickle.loads(pickle.dumps(support)) == support


def test_repr_is_short() -> None:
    assert repr(Support.from_index(torch.tensor([1]), (3, 1))) == "Support(shape=(3, 1), count=1, density=0.3333)"


def test_not_equal_to_other_things() -> None:
    assert Support.full((2,)) != "x"
    assert Support.full((2,)) != Support.full((2, 1))


@pytest.mark.parametrize(("index", "text"), [([6], "0..5"), ([-1, 2], "-1..2 is out of range")])
def test_index_out_of_range(index: list[int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Support.from_index(torch.tensor(index), (2, 3))


def test_wrong_types() -> None:
    with pytest.raises(ConfigError, match="must hold integers"):
        Support.from_index(torch.tensor([True]), (2,))
    with pytest.raises(ConfigError, match="must be a bool tensor"):
        Support.from_mask(torch.ones(3))


def test_algebra_of_different_weights() -> None:
    with pytest.raises(ConfigError, match=r"\(2,\) and \(3,\)"):
        Support.full((2,)) & Support.full((3,))


GOOD = {"shape": [3], "count": 2, "bits": torch.tensor([0b11000000], dtype=torch.uint8)}
INDEX = {"shape": [3], "count": 2}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({**GOOD, "count": 1}, "2 bits are set"),
        ({**GOOD, "bits": torch.tensor([0b11010000], dtype=torch.uint8)}, "beyond its last"),
        ({**GOOD, "bits": torch.zeros(2, dtype=torch.uint8)}, "expected 1 bytes"),
        ({**GOOD, "bits": torch.zeros(1)}, "expected 1 bytes"),
        ({**GOOD, "shape": [-3]}, "shape and a count"),
        ({**GOOD, "count": True}, "shape and a count"),
        ({"bits": GOOD["bits"]}, "shape and a count"),
        (INDEX, "either 'bits' or 'index'"),
        ({**GOOD, "index": torch.tensor([0, 1])}, "either 'bits' or 'index'"),
        ({**INDEX, "index": [0, 1]}, "either 'bits' or 'index'"),
        ({**INDEX, "index": torch.tensor([0, 3])}, "out of range"),
        ({**INDEX, "index": torch.tensor([-1, 1])}, "out of range"),
        ({**INDEX, "index": torch.tensor([1, 1])}, "not increasing"),
        ({**INDEX, "index": torch.tensor([0])}, "expected 2 int64"),
        ({**INDEX, "index": torch.tensor([0.0, 1.0])}, "expected 2 int64"),
    ],
)
def test_damaged_state(state: dict[str, object], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        Support.from_state(state)
