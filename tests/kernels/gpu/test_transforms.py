"""The fused transforms equal the float64 definition: square, cut, in blocks, along any axis, and transposed."""

from __future__ import annotations

import pytest
import torch

from gossamer.kernels.gpu import transforms as gpu
from gossamer.kernels.transforms import Cosine, reference

from ..forcing import distance, numbers
from .interpreted import interpreted

CASES = [((256, 256), (5, -1), -1, 256), ((300, 512), (2, -1, 3), 1, 512), ((600, 520), (3, -1), -1, 256)]


@interpreted
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["cosine", "hadamard"])
@pytest.mark.parametrize(("size", "layout", "axis", "length"), CASES)
def test_the_kernel(
    name: str, size: tuple[int, int], layout: tuple[int, ...], axis: int, length: int, transposed: bool
) -> None:
    rows, columns = size
    entries = rows if transposed else columns
    x = numbers(*(entries if side < 0 else side for side in layout), seed=length)
    signs = numbers(columns, seed=1).sign()
    function = reference.cosine_transposed if transposed else reference.cosine
    function = reference.hadamard if name == "hadamard" else function
    wanted = reference.along(axis, x, function, signs, (rows, columns, length), transposed)
    for dtype, close in ((torch.float32, 1e-6), (torch.float16, 1e-3)):
        found = gpu.transform(name, x.to(dtype), signs.float(), (rows, columns, length), axis, transposed)
        assert found.shape == wanted.shape
        assert distance(found, wanted) < close


@pytest.mark.parametrize("length", [256, 512, 16384])
def test_tables_factor_the_transform(length: int) -> None:
    """The two products, in plain torch."""
    a, b = gpu.sides(length)
    assert a * b == length
    first, second, turns = gpu.tables("cosine", length, torch.float64, torch.device("cpu"))
    x = numbers(2, length, seed=1)
    ordered = torch.cat([x[:, ::2], x[:, 1::2].flip(-1)], -1).view(2, a, b).to(torch.complex128)
    inner = torch.einsum("tab,ak->tbk", ordered, torch.complex(*first)) * torch.complex(*turns.double())
    y = torch.einsum("tbk,bl->tlk", inner, torch.complex(*second)).real.reshape(2, length)
    y[:, 0] *= 0.5**0.5
    assert distance(y, Cosine(length, length).apply(x, -1)) < 1e-6  # turns are float32


def test_on_the_cpu_the_kernels_are_not_asked() -> None:
    assert not gpu.supported(torch.zeros(2, 256), 256)
