"""Convolutions by small factors equal torch's with the weight that the factors make, along every path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gossamer.kernels import sparse
from gossamer.kernels.taps import Taps

from .forcing import NATIVE, PATHS, Pair, distance, forced, geometries, numbers

CLOSE = 1e-5


@dataclass(frozen=True)
class Case:
    """rows: outputs of a group."""

    rows: int
    parts: int
    rank: int
    kernel: Pair
    size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    batch: int = 3

    def taps(self) -> Taps:
        outputs = self.rows * self.groups
        mix = numbers(outputs, self.parts, self.rank, seed=1)
        filters = numbers(outputs, self.parts, *self.kernel, seed=2)
        filters[:, :, 0, 0] = 0.0
        return Taps(mix, filters, self.groups, self.stride, self.padding, self.dilation)

    def z(self) -> Tensor:
        return numbers(self.batch, self.groups * self.parts * self.rank, *self.size, seed=3)

    def dense(self, z: Tensor) -> Tensor:
        """With z for the image: its weight is the product of both factors."""
        taps = self.taps()
        weight = torch.einsum("osk,osij->oskij", taps.mix, taps.filters).flatten(1, 2)
        return functional.conv2d(z, weight, None, self.stride, self.padding, self.dilation, self.groups)


def products(case: Case, dtype: torch.dtype, *, packed: bool) -> tuple[Tensor, Tensor]:
    taps, z = case.taps(), case.z().to(dtype)
    slope = numbers(*case.dense(case.z()).shape, seed=4).to(dtype)
    if not packed:
        return taps.apply(z), taps.transpose(slope, case.size)
    y, dz = taps.apply(sparse.pack(z)), taps.transpose(sparse.pack(slope), case.size)
    return sparse.unpack(y, case.batch), sparse.unpack(dz, case.batch)


def compare(case: Case, dtype: torch.dtype = torch.float32, *, packed: bool = True) -> None:
    z = case.z().requires_grad_()
    y = case.dense(z)
    y.backward(numbers(*y.shape, seed=4))
    assert z.grad is not None
    for found, wanted in zip(products(case, dtype, packed=packed), (y, z.grad), strict=True):
        assert found.shape == wanted.shape
        assert distance(found, wanted) < (CLOSE if dtype == torch.float32 else 1e-12)


CASES = {
    "3x3": Case(10, 2, 5, (3, 3), (9, 9), padding=(1, 1), batch=17),
    "several windows, chunks and jobs": Case(37, 2, 3, (3, 3), (50, 45), padding=(1, 1)),
    "many ranks": Case(12, 2, 60, (3, 3), (8, 8), padding=(1, 1)),
    "many parts": Case(9, 9, 4, (3, 3), (34, 20), padding=(1, 1)),
    "one part, depthwise": Case(1, 1, 1, (3, 3), (20, 20), (2, 2), (1, 1), groups=21),
    "groups of several outputs": Case(6, 2, 3, (3, 3), (8, 8), padding=(1, 1), groups=4),
    "strided past its own kernel": Case(5, 2, 2, (2, 1), (11, 12), (3, 4)),
    "dilated": Case(5, 2, 2, (3, 2), (13, 14), (1, 2), (2, 3), (3, 2)),
    "larger than the image": Case(5, 2, 2, (7, 5), (2, 3), (1, 2), (4, 3)),
    "only padding read": Case(3, 2, 2, (1, 1), (1, 1), (3, 3), (1, 1)),
    "one point": Case(3, 1, 2, (1, 1), (1, 1)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_known_shapes(case: Case, path: str) -> None:
    with forced(path):
        compare(case)


@pytest.mark.parametrize("packed", [True, False])
def test_plain_images_and_double_precision(packed: bool) -> None:
    compare(CASES["3x3"], packed=packed)
    compare(CASES["dilated"], torch.float64, packed=packed)


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 20),
    parts=st.integers(1, 3),
    rank=st.integers(1, 6),
    geometry=geometries(),
    batch=st.integers(1, 18),
)
def test_any_geometry(path: str, rows: int, parts: int, rank: int, geometry: dict[str, Any], batch: int) -> None:
    with forced(path):
        compare(Case(rows, parts, rank, **geometry, batch=batch))


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("name", ["several windows, chunks and jobs", "one part, depthwise", "many parts"])
def test_threads_change_nothing(name: str, path: str) -> None:
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with forced(path):
                found.append(products(CASES[name], torch.float32, packed=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_no_images(path: str) -> None:
    taps = CASES["3x3"].taps()
    for lanes in ([], [16]):
        z = torch.zeros(0, taps.channels, 9, 9, *lanes)
        with forced(path):
            assert taps.apply(z).shape == (0, 10, 9, 9, *lanes)
            assert taps.transpose(taps.apply(z), (9, 9)).shape == z.shape
