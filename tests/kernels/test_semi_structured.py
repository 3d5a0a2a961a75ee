"""The packed form of 2:4 matrices, the operator that computes from it, and how long packs are kept."""

from __future__ import annotations

import gc
import itertools
import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gossamer.errors import ConfigError
from gossamer.kernels import semi_structured
from gossamer.kernels.semi_structured import cusparselt, forget, is_valid, operator, pack, packs, product, unpack
from gossamer.topology import NM

FITTING = [code for code in range(16) if code.bit_count() <= 2]  # which of a group's four entries are not zero


def two_four(
    rows: int, columns: int, seed: int = 0, *, transposable: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    (mask,) = NM(2, 4, transposable=transposable).select([scores.abs()], rows * columns // 2)
    return torch.where(mask, scores, 0.0).to(dtype or torch.float32)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Grows by the shape of every matrix that is packed."""
    seen: list[tuple[int, ...]] = []

    def spy(matrix: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(tuple(matrix.shape))
        return pack(matrix)

    monkeypatch.setattr(operator, "pack", spy)
    return seen


# -- the packed form --


@given(st.lists(st.sampled_from([*range(16), *FITTING]), min_size=8, max_size=8))
def test_packing_keeps_every_value_or_refuses(codes: list[int]) -> None:
    groups = [[(place + 1.0) * (code >> place & 1) for place in range(4)] for code in codes]
    groups[0] = [math.inf if value == 1.0 else -value for value in groups[0]]
    matrix = torch.tensor(groups).view(2, 16)
    fits = all(sum(value != 0 for value in group) <= 2 for group in groups)
    assert is_valid(matrix) == fits
    if fits:
        values, places = pack(matrix)
        assert values.shape == (2, 8)
        assert (places.shape, places.dtype) == ((2, 2), torch.uint8)
        assert torch.equal(unpack(values, places), matrix)
    else:
        with pytest.raises(ConfigError, match=r"2 x 16 here, is not 2:4: \d of 8 groups"):
            pack(matrix)


def test_every_pattern_of_a_group_has_its_code() -> None:
    for first, second in itertools.combinations(range(4), 2):
        matrix = torch.zeros(1, 16)
        matrix[0, 4 + first], matrix[0, 4 + second] = 1.0, 2.0
        values, places = pack(matrix)
        assert values[0].tolist() == [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0]
        assert places[0].tolist() == [0b0100 | first << 4 | second << 6, 0b0100_0100]


def test_a_packed_matrix_has_nine_sixteenths_of_the_bytes() -> None:
    matrix = two_four(64, 32, dtype=torch.bfloat16)
    assert sum(part.nbytes for part in pack(matrix)) / matrix.nbytes == 9 / 16


def test_validity_is_that_of_the_structure() -> None:
    matrix = two_four(16, 16)
    assert (is_valid(matrix), is_valid(matrix, axis=0)) == (True, False)
    assert is_valid(two_four(16, 16, transposable=True), axis=0)
    assert not is_valid(torch.zeros(4, 6))
    with pytest.raises(ConfigError, match=r"shape \(4, 8\) cannot be packed; its columns must divide by 16"):
        pack(torch.zeros(4, 8))


# -- the operator --


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [0, 1, 13])
def test_products_are_those_of_the_dense_matrix(
    packed: list[tuple[int, ...]], dtype: torch.dtype, samples: int
) -> None:
    weight, bias = two_four(32, 16, transposable=True), torch.randn(32, dtype=dtype)
    x, slope = torch.randn(samples, 16, dtype=dtype), torch.randn(samples, 32, dtype=dtype)
    expected = functional.linear(x, weight.to(dtype), bias)
    torch.testing.assert_close(product(x, weight, bias, -1, False, True, True), expected)
    torch.testing.assert_close(product(slope, weight, None, -1, True, True, True), slope @ weight.to(dtype))
    assert packed == [(32, 16), (16, 32)]


def test_a_transposed_product_is_dense_where_columns_are_not_two_of_four(packed: list[tuple[int, ...]]) -> None:
    weight, slope = two_four(32, 16), torch.randn(3, 32)
    torch.testing.assert_close(product(slope, weight, None, -1, True, False, True), slope @ weight)
    assert packed == []


def test_what_packing_would_lose_is_an_error() -> None:
    weight, x = two_four(16, 16), torch.randn(2, 16)
    weight[3, 4:8] = 1.0
    with pytest.raises(ConfigError, match=r"16 x 16 here, is not 2:4: 1 of 64 groups"):
        product(x, weight, None, -1, False, False, True)


def test_derivatives_of_any_order_are_right() -> None:
    weight = two_four(16, 16, transposable=True, dtype=torch.float64).requires_grad_()
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(16, dtype=torch.float64, requires_grad=True)

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x @ weight.t() + bias

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return product(x, weight, bias, -1, False, True, True)

    found = []
    for function in (dense, ours):
        first = torch.autograd.grad(function(x, weight, bias).square().sum(), (x, weight, bias), create_graph=True)
        second = torch.autograd.grad(sum(part.square().sum() for part in first), (x, weight, bias))  # type: ignore[arg-type]
        found.append([*first, *second])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_the_operator_passes_the_checks_of_torch() -> None:
    for transposed in (False, True):
        weight = two_four(32, 16, transposable=True).requires_grad_()
        x = torch.randn(3, 32 if transposed else 16, requires_grad=True)
        bias = None if transposed else torch.randn(32, requires_grad=True)
        torch.library.opcheck(torch.ops.gossamer.semi_structured.default, (x, weight, bias, 1, transposed, True, True))


# -- how long packs are kept --


def test_a_weight_is_packed_once_until_it_changes(packed: list[tuple[int, ...]]) -> None:
    weight, x = two_four(16, 16), torch.randn(2, 16)
    for _ in range(3):
        product(x, weight, None, -1, False, False, True)
    assert len(packed) == 1
    weight *= 2
    torch.testing.assert_close(product(x, weight, None, -1, False, False, True), x @ weight.t())
    assert len(packed) == 2
    product(x.double(), weight, None, -1, False, False, True)
    assert len(packed) == 3, "of another type"


def test_views_share_packs_and_other_storages_do_not(packed: list[tuple[int, ...]]) -> None:
    weight, x = torch.nn.Parameter(two_four(16, 16)), torch.randn(2, 16)
    product(x, weight, None, -1, False, False, True)
    product(x, weight.detach(), None, -1, False, False, True)
    assert len(packed) == 1
    weight.data = two_four(16, 16, seed=1)
    torch.testing.assert_close(product(x, weight, None, -1, False, False, True), x @ weight.t())
    assert len(packed) == 2


def test_tied_weights_that_are_other_views_of_one_storage_have_packs_of_their_own() -> None:
    first, x = nn.Parameter(two_four(16, 16, transposable=True)), torch.randn(2, 16)
    turned, part = nn.Parameter(first.detach().t()), nn.Parameter(first.detach()[:12])
    for _ in range(2):
        for weight in (first, turned, part):
            torch.testing.assert_close(product(x, weight, None, -1, False, False, True), x @ weight.t())


def test_a_new_weight_at_an_old_address_is_another_one(packed: list[tuple[int, ...]]) -> None:
    gc.collect()
    x, addresses, before = torch.randn(2, 16), set(), set(packs._held)
    for seed in range(50):
        weight = two_four(16, 16, seed)
        addresses.add(weight.data_ptr())
        torch.testing.assert_close(product(x, weight, None, -1, False, False, True), x @ weight.t())
        del weight
    assert len(packed) == 50
    assert len(addresses) < 50, "the test needs an address to come back"
    gc.collect()
    other = two_four(16, 16)
    product(x, other, None, -1, False, False, True)
    assert len(set(packs._held) - before) <= 1, "what is gone is not held"


def test_writes_that_leave_no_trace_are_for_forget(packed: list[tuple[int, ...]]) -> None:
    weight, x = two_four(16, 16), torch.randn(2, 16)
    product(x, weight, None, -1, False, False, True)
    weight.data.mul_(2)
    forget(weight)
    torch.testing.assert_close(product(x, weight, None, -1, False, False, True), x @ weight.t())
    assert len(packed) == 2


def test_weights_of_inference_mode_and_captured_ones_are_packed_each_time(packed: list[tuple[int, ...]]) -> None:
    x = torch.randn(2, 16)
    with torch.inference_mode():
        weight = two_four(16, 16)
        for _ in range(2):
            product(x, weight, None, -1, False, False, True)
    assert len(packed) == 2
    weight, side = two_four(16, 16), (torch.float32, False, 0)
    made = [packs.pack_of(weight, side, lambda: packs.Pack(weight), capturing=capturing) for capturing in (True, False)]
    assert made[0] is not made[1]
    assert semi_structured.packs.held(weight).packs == {}


def test_what_a_graph_captured_stays_so_when_it_is_forgotten() -> None:
    weight, side = two_four(16, 16), (torch.float32, False, 0)
    packs.pack_of(weight, side, lambda: packs.Pack(weight), capturing=True)
    forget(weight)
    made = [packs.pack_of(weight, side, lambda: packs.Pack(weight)) for _ in range(2)]
    assert made[0] is not made[1]


# -- before cuSPARSELt --


def test_operands_lie_at_addresses_that_are_multiples_of_sixteen_bytes() -> None:
    whole = torch.randn(2 * 16 + 8, dtype=torch.bfloat16)
    for start in (0, 1, 8):
        view = whole[start : start + 32].view(2, 16)
        made = cusparselt.aligned(view)
        assert torch.equal(made, view)
        assert made.data_ptr() % 16 == 0
        assert (made.data_ptr() == view.data_ptr()) == (start != 1)
    turned = whole[:32].view(2, 16).t()
    assert cusparselt.aligned(turned).is_contiguous()


def test_a_thread_keeps_to_the_device_of_its_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(cusparselt, "usable", lambda index: index != 7)
    monkeypatch.setattr(cusparselt, "_make_handle", made.append)
    monkeypatch.setattr(cusparselt, "_thread", threading.local())
    assert not cusparselt._is_ready(1, capturing=True), "no handle is made during a capture"
    assert not cusparselt._is_ready(7, capturing=False)
    assert [cusparselt._is_ready(index, capturing=False) for index in (1, 0, 1)] == [True, False, True]
    assert cusparselt._is_ready(1, capturing=True)
    other = threading.Thread(target=cusparselt._is_ready, args=(0,), kwargs={"capturing": False})
    other.start()
    other.join()
    assert made == [1, 0]
