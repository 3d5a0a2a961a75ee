"""Fast transforms equal the float64 products with their matrices: any length, any layout, on every path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.kernels import sparse
from gossamer.kernels.transforms import BlockCosine, Cosine, Hadamard, LinearMap, Product, cosine_map, faster
from gossamer.kernels.transforms.tables import factors_of

from .forcing import NATIVE, PATHS, distance, forced, numbers

CLOSE = 1e-6
# Powers of two, products of small primes, primes, twice a prime beyond the largest radix, and the shortest.
LENGTHS = (1, 2, 3, 4, 5, 8, 13, 16, 27, 61, 64, 67, 96, 134, 144, 147, 160, 256, 300)
LONG = (576, 784, 960, 1009, 1152, 1280, 2304, 4096)


def cosines(size: int) -> Tensor:
    """From the definition, angles reduced as whole numbers."""
    rows = []
    for k in range(size):
        scale = math.sqrt((2 if k else 1) / size)
        rows.append([scale * math.cos(math.pi * (k * (2 * i + 1) % (4 * size)) / (2 * size)) for i in range(size)])
    return torch.tensor(rows, dtype=torch.float64)


def walsh(size: int) -> Tensor:
    """(-1)^(bits that both indices have)."""
    entries = [[(-1) ** (i & k).bit_count() for i in range(size)] for k in range(size)]
    return torch.tensor(entries, dtype=torch.float64) / math.sqrt(size)


def signs_of(columns: int) -> Tensor:
    return numbers(columns, seed=columns).sign().float()


def shapes(length: int) -> set[tuple[int, int]]:
    """(rows, columns): square, and cut on either side."""
    return {(length, length), (length, -(-length // 3)), (length // 2 + 1, length)}


def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    return torch.tensordot(x.double().movedim(axis, -1), matrix.t(), 1).movedim(-1, axis)


def check(fast: LinearMap, matrix: Tensor, x: Tensor, axis: int) -> None:
    """Both directions, in float32, and <D x, g> = <x, D^T g>."""
    y, wanted = fast.apply(x.float(), axis), along(matrix, x, axis)
    assert y.shape == wanted.shape
    assert y.is_contiguous()
    assert distance(y, wanted) < CLOSE
    slope = numbers(*wanted.shape, seed=1)
    z = fast.transpose(slope.float(), axis)
    assert distance(z, along(matrix.t(), slope, axis)) < CLOSE
    size = (y.norm() * slope.norm()).double()
    assert abs((y.double() * slope).sum() - (x * z).sum()) <= CLOSE * size


LAYOUTS = (((37, -1), -1), ((5, -1), 1), ((2, 3, -1), 2), ((2, -1, 3, 16), 1), ((3, -1, 7, 7), 1), ((3, -1, 1, 2), 1))


def tensor(layout: tuple[int, ...], entries: int) -> Tensor:
    return numbers(*(entries if size < 0 else size for size in layout), seed=entries)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_cosine(length: int, path: str) -> None:
    full = cosines(length)
    with forced(path):
        for rows, columns in shapes(length):
            signs = signs_of(columns)
            for layout, axis in LAYOUTS:
                x = tensor(layout, columns)
                check(Cosine(rows, columns), full[:rows, :columns], x, axis)
                check(Cosine(rows, columns, signs), full[:rows, :columns] * signs, x, axis)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", LONG)
def test_long_cosine(length: int, path: str) -> None:
    """The reference in float64 is what the shorter ones hold to the definition."""
    with forced(path):
        for rows, columns in shapes(length):
            fast, x, slope = (
                Cosine(rows, columns, signs_of(columns)),
                numbers(16, columns, seed=2),
                numbers(rows, 16, seed=3),
            )
            assert distance(fast.apply(x.float(), -1), fast.apply(x, -1)) < CLOSE
            assert distance(fast.transpose(slope.float(), 0), fast.transpose(slope, 0)) < CLOSE


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 200), cut=st.integers(1, 200), turned=st.booleans(), inner=st.integers(1, 20))
def test_any_length(path: str, length: int, cut: int, turned: bool, inner: int) -> None:
    rows, columns = (min(cut, length), length) if turned else (length, min(cut, length))
    with forced(path):
        fast = Cosine(rows, columns)
        check(fast, fast.matrix(), numbers(3, columns, inner, seed=cut), 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 13, 16, 32, 64, 128, 300])
def test_hadamard(length: int, path: str) -> None:
    with forced(path):
        for rows, columns in shapes(length):
            signs, fast = signs_of(columns), Hadamard(rows, columns, signs_of(columns))
            full = walsh(fast.length)[:rows, :columns]
            for layout, axis in LAYOUTS:
                x = tensor(layout, columns)
                check(Hadamard(rows, columns), full, x, axis)
                check(fast, full * signs, x, axis)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sizes", [(300, 300, 16), (64, 32, 16), (32, 64, 16), (7, 70, 9), (70, 7, 9), (5, 5, 12)])
def test_block_cosine(sizes: tuple[int, int, int], path: str) -> None:
    rows, columns, block = sizes
    blocks = [cosines(block)] * -(-max(rows, columns) // block)
    matrix, signs = torch.block_diag(*blocks)[:rows, :columns], signs_of(columns)
    with forced(path):
        for layout, axis in LAYOUTS:
            x = tensor(layout, columns)
            check(BlockCosine(rows, columns, block), matrix, x, axis)
            check(BlockCosine(rows, columns, block, signs), matrix * signs, x, axis)


@pytest.mark.parametrize("length", LENGTHS)
def test_float64_is_exact(length: int) -> None:
    full = cosines(length)
    for rows, columns in shapes(length):
        torch.testing.assert_close(Cosine(rows, columns).matrix(), full[:rows, :columns], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("rows", "columns"), [(96, 300), (300, 96), (147, 147)])
def test_singular_values_are_one(rows: int, columns: int) -> None:
    values = torch.linalg.svdvals(Cosine(rows, columns, signs_of(columns)).matrix())
    torch.testing.assert_close(values, torch.ones(min(rows, columns), dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS)
def test_the_transpose_is_the_inverse(path: str) -> None:
    x = numbers(20, 784, seed=0).float()
    with forced(path):
        for fast in (Cosine(784, 784, signs_of(784)), Cosine(1000, 784)):
            assert distance(fast.transpose(fast.apply(x, -1), -1), x.double()) < CLOSE
    assert Cosine(1, 1).matrix().item() == pytest.approx(1)


@pytest.mark.parametrize("path", PATHS)
def test_layouts_agree(path: str) -> None:
    """Each vector by itself, wherever it lies: the same bits in a row, in a lane and in an image."""
    x = numbers(48, 30, 4, seed=0).float()
    with forced(path):
        for fast in (Cosine(50, 30), Hadamard(50, 30), BlockCosine(50, 30, 7)):
            images = fast.apply(x, 1)
            assert torch.equal(sparse.unpack(fast.apply(sparse.pack(x), 1), 48), images)
            assert torch.equal(fast.apply(x.transpose(1, 2), -1), images.transpose(1, 2))
            assert torch.equal(fast.apply(x[5:6, :, 1], -1), images[5:6, :, 1])


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("fast", [Cosine(300, 134), Hadamard(128, 100)])
def test_threads_give_the_same_bits(fast: LinearMap, path: str) -> None:
    x, before = numbers(150, fast.columns, seed=0).float(), torch.get_num_threads()
    with forced(path):
        try:
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                y = fast.apply(x, -1)
                found.append((y, fast.transpose(y, -1)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for each in found[1:] for a, b in zip(found[0], each, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_empty_and_strided(path: str) -> None:
    with forced(path):
        for fast in (Cosine(20, 30), Hadamard(20, 30)):
            assert fast.apply(torch.empty(0, 30), -1).shape == (0, 20)
            assert fast.transpose(torch.empty(2, 20, 0, 16), 1).shape == (2, 30, 0, 16)
            x = numbers(8, 60, 4, seed=0).float()
            for view in (x[:, ::2], x[::2, :30].flip(0), x[:, 5:35], x.transpose(0, 2)[:, 1:31].expand(4, 30, 8)):
                assert torch.equal(fast.apply(view, 1), fast.apply(view.contiguous(), 1))


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_finite_stays_in_its_vector(path: str) -> None:
    x = numbers(20, 27, seed=0).float()
    plain = Cosine(27, 27).apply(x, -1)
    x[3, 5] = math.nan
    with forced(path):
        y = Cosine(27, 27).apply(x, -1)
    assert y[3].isnan().all()
    kept = torch.arange(20) != 3
    torch.testing.assert_close(y[kept], plain[kept])


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_factors(length: int) -> None:
    factors = factors_of(length)
    primes = [p for p in range(2, length + 1) if length % p == 0 and all(p % d for d in range(2, math.isqrt(p) + 1))]
    assert (factors is None) == (max(primes, default=1) > 61)
    assert factors is None or math.prod(factors) == length


def test_the_faster_form() -> None:
    """Only which one; what it computes is above."""
    path = "reference" if not NATIVE else NATIVE[0]
    with forced(path):
        assert isinstance(cosine_map(4096, 4096), Cosine)
        assert isinstance(cosine_map(10, 4096), Product)
    with forced("reference"):
        assert isinstance(cosine_map(256, 256), Product)
    if NATIVE:
        with forced(NATIVE[0]):
            kept = [isinstance(cosine_map(n, n), Cosine) for n in (24, 32, 48, 63, 65, 134, 160)]
            assert kept == [False, False, True, False, True, False, True]
            assert isinstance(faster(Hadamard(50, 64)), Hadamard)
            assert isinstance(faster(BlockCosine(64, 64, 67)), Product)


@pytest.mark.parametrize("path", PATHS)
def test_the_product_is_the_same_map(path: str) -> None:
    signs = signs_of(27)
    with forced(path):
        chosen = cosine_map(30, 27, signs)
        check(chosen, cosines(30)[:, :27] * signs, numbers(4, 27, 3, 16, seed=0), 1)
        check(chosen, cosines(30)[:, :27] * signs, numbers(4, 27, seed=0), -1)


def test_bad_input() -> None:
    fast = Cosine(20, 30)
    with pytest.raises(
        ConfigError, match=r"a transform of 30 to 20 entries along axis 1 of .* \(4, 20\): that axis must"
    ):
        fast.apply(torch.zeros(4, 20), 1)
    with pytest.raises(ConfigError, match=r"20 to 30 entries along axis -1 of .* \(4, 30\): that axis must have 20"):
        fast.transpose(torch.zeros(4, 30), -1)
    with pytest.raises(ConfigError, match=r"along axis 2 of a tensor of shape \(4, 30\), which has none"):
        fast.apply(torch.zeros(4, 30), 2)
    with pytest.raises(ConfigError, match=r"a transform of torch.int64 numbers; convert .* x.float\(\)"):
        fast.apply(torch.zeros(4, 30, dtype=torch.int64), 1)
    for signs in (torch.ones(20), torch.zeros(30), torch.full((30,), 2.0)):
        with pytest.raises(ConfigError, match="signs of a transform must be 30 numbers, each 1 or -1; got"):
            Cosine(20, 30, signs)
    with pytest.raises(ConfigError, match="signs have shape"):
        torch.ops.gossamer.cosine(torch.zeros(4, 30), torch.ones(20), 20, 30, 30, 1, False)
    for make in (lambda: Cosine(0, 3), lambda: Hadamard(3, 0), lambda: BlockCosine(3, 3, 0)):
        with pytest.raises(ConfigError, match="each must be at least 1"):
            make()
