"""The sparse convolution equals torch's with zeros off the support, along every path."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import sparse

from .forcing import NATIVE, PATHS, Pair, distance, forced, geometries, numbers, some_positions

CLOSE = 1e-5


@dataclass(frozen=True)
class Case:
    """A convolution and its input; in, out: channels of one group."""

    inputs: int
    outputs: int
    kernel: Pair
    size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    batch: int = 5
    density: float = 0.2
    bias: bool = True

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.groups * self.outputs, self.inputs, *self.kernel)

    def flat(self) -> Tensor:
        rows, columns = self.weight_shape[0], self.inputs * self.kernel[0] * self.kernel[1]
        return some_positions(rows, columns, self.density, seed=rows + columns)

    def x(self) -> Tensor:
        return numbers(self.batch, self.groups * self.inputs, *self.size, seed=1)

    def weight(self) -> Tensor:
        return numbers(*self.weight_shape, seed=2)

    def shift(self) -> Tensor | None:
        return numbers(self.weight_shape[0], seed=3) if self.bias else None

    def how(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups


def slope_like(out: Tensor) -> Tensor:
    return numbers(*out.shape, seed=4)


def sparse_products(case: Case, dtype: torch.dtype = torch.float32, wanted: str = "xvb") -> dict[str, Tensor]:
    """Output and the gradients of input, values (in flat order) and bias; wanted: the letters of those to compute."""
    flat, shape = case.flat(), case.weight_shape
    index, order = sparse.build(flat, (shape[0], shape[1] * shape[2] * shape[3]), shape[2] * shape[3])
    x = case.x().to(dtype).requires_grad_("x" in wanted)
    values = case.weight().flatten()[flat][order].to(dtype).requires_grad_("v" in wanted)
    shift = case.shift()
    bias = None if shift is None else shift.to(dtype).requires_grad_("b" in wanted)
    packed = sparse.conv(sparse.pack(x), values, index, bias, shape, *case.how())
    out = sparse.unpack(packed, case.batch)
    out.backward(slope_like(out).to(dtype))
    found = {"out": out.detach()}
    if x.grad is not None:
        found["x"] = x.grad
    if values.grad is not None:
        found["values"] = torch.empty_like(values.grad)
        found["values"][order] = values.grad
    if bias is not None and bias.grad is not None:
        found["bias"] = bias.grad
    return found


def dense_products(case: Case) -> dict[str, Tensor]:
    flat = case.flat()
    masked = torch.zeros(case.weight_shape, dtype=torch.float64)
    masked.view(-1)[flat] = case.weight().flatten()[flat]
    x, weight, shift = case.x().requires_grad_(), masked.requires_grad_(), case.shift()
    bias = None if shift is None else shift.requires_grad_()
    out = functional.conv2d(x, weight, bias, *case.how())
    out.backward(slope_like(out))
    assert x.grad is not None
    assert weight.grad is not None
    found = {"out": out.detach(), "x": x.grad, "values": weight.grad.flatten()[flat]}
    if bias is not None and bias.grad is not None:
        found["bias"] = bias.grad
    return found


def compare(path: str, case: Case) -> None:
    with forced(path):
        found = sparse_products(case)
    wanted = dense_products(case)
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        assert one.shape == wanted[name].shape
        # A single number may be the small remainder of large ones: one more stands for the size of the terms.
        extra = wanted[name].new_ones(1)
        assert distance(torch.cat([one.flatten(), extra]), torch.cat([wanted[name].flatten(), extra])) < CLOSE, name


SHAPES = {
    "3x3": Case(6, 10, (3, 3), (9, 9), padding=(1, 1), batch=20),
    "3x3, several strips, column blocks and tiles": Case(
        40, 24, (3, 3), (40, 37), padding=(1, 1), batch=33, density=0.05
    ),
    "1x1, read in place": Case(90, 30, (1, 1), (7, 7), batch=17),
    "1x1, copied": Case(90, 30, (1, 1), (4, 4), batch=17),
    "1x1, 5 rows of 11": Case(9, 7, (1, 1), (5, 11)),
    "1x1, padded": Case(9, 7, (1, 1), (3, 4), padding=(1, 2)),
    "1x1, stride 2": Case(9, 7, (1, 1), (9, 8), stride=(2, 2)),
    "stride 2": Case(6, 10, (3, 3), (15, 16), stride=(2, 2), padding=(1, 1)),
    "stride beyond the kernel": Case(3, 4, (2, 1), (14, 13), stride=(3, 4)),
    "dilation": Case(3, 4, (3, 2), (11, 12), dilation=(2, 3), padding=(2, 1)),
    "dilation and stride": Case(3, 4, (3, 3), (19, 17), stride=(2, 3), dilation=(4, 2), padding=(3, 3)),
    "each axis its own": Case(3, 5, (1, 4), (6, 21), stride=(3, 1), padding=(0, 2), dilation=(1, 2)),
    "one row": Case(5, 6, (1, 3), (1, 50), padding=(0, 1)),
    "one output": Case(5, 6, (4, 4), (4, 4)),
    "outputs in the padding alone": Case(2, 3, (1, 1), (1, 1), padding=(2, 3)),
    "small images": Case(40, 40, (3, 3), (2, 2), padding=(1, 1), batch=40),
    "4x4": Case(12, 12, (3, 3), (4, 4), padding=(1, 1)),
    "3x5": Case(12, 12, (3, 3), (5, 3), padding=(1, 1)),
    "large kernel": Case(2, 3, (7, 7), (12, 12), padding=(3, 3)),
    "groups": Case(3, 4, (3, 3), (6, 7), padding=(1, 1), groups=5),
    "groups across row blocks": Case(2, 500, (1, 2), (3, 3), groups=3, batch=2),
    "groups of 1x1": Case(6, 20, (1, 1), (5, 5), groups=7),
    "depthwise": Case(1, 1, (3, 3), (8, 8), padding=(1, 1), groups=70, density=0.6),
    "depthwise, stride 2, two each": Case(1, 2, (3, 3), (9, 9), stride=(2, 2), padding=(1, 1), groups=33, density=0.6),
    "more rows than a block": Case(4, 1100, (1, 1), (2, 3), batch=2),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_dense(name: str, path: str) -> None:
    compare(path, SHAPES[name])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("name", ["3x3", "1x1, read in place", "stride 2", "groups"])
def test_equals_dense_at_any_density(name: str, density: float, path: str) -> None:
    for batch in (1, 16, 37):
        compare(path, replace(SHAPES[name], density=density, batch=batch, bias=batch != 16))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        inputs=draw(st.integers(1, 9)),
        outputs=draw(st.integers(1, 9)),
        **draw(geometries(groups=5, extra=(12, 30))),
        batch=draw(st.integers(1, 40)),
        density=draw(st.sampled_from([0.05, 0.2, 0.7, 1.0])),
        bias=draw(st.booleans()),
    )


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_equals_dense_for_any_geometry(path: str, case: Case) -> None:
    compare(path, case)


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("name", SHAPES)
def test_threads_do_not_change_a_bit(name: str, path: str) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with forced(path):
                found.append(sparse_products(SHAPES[name]))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for part in ("out", "x", "values"):  # torch adds up the bias
            assert torch.equal(found[0][part], other[part])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("letter", "part"), [("x", "x"), ("v", "values"), ("b", "bias")])
def test_each_gradient_alone(letter: str, part: str, path: str) -> None:
    for case in (SHAPES["stride 2"], SHAPES["1x1, read in place"], SHAPES["depthwise"]):
        with forced(path):
            alone, all_ = sparse_products(case, wanted=letter), sparse_products(case)
        assert alone.keys() == {"out", part}
        assert distance(alone[part], all_[part].double()) < CLOSE


@pytest.mark.parametrize("path", PATHS)
def test_worked_by_hand(path: str) -> None:
    # The kernel (1, ., 10) over 1 2 3 4 padded by one: 10*2, 1*1 + 10*3, 1*2 + 10*4, 1*3; plus .5.
    with forced(path):
        index, order = sparse.build(torch.tensor([0, 2]), (1, 3), taps=3)
        values = torch.tensor([1.0, 10.0])[order].requires_grad_()
        x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]).requires_grad_()
        packed = sparse.conv(
            sparse.pack(x), values, index, torch.tensor([0.5]), (1, 1, 1, 3), (1, 1), (0, 1), (1, 1), 1
        )
        out = sparse.unpack(packed, 1)
        out.sum().backward()
    assert out.tolist() == [[[[20.5, 31.5, 42.5, 3.5]]]]
    assert x.grad is not None
    assert x.grad.tolist() == [[[[1.0, 11.0, 11.0, 10.0]]]]
    assert values.grad is not None
    assert values.grad[order.argsort()].tolist() == [6.0, 9.0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_where_the_support_leads(broken: float, path: str) -> None:
    # Channel 1 is broken at one position; only output 0 reads it, with the tap above that position.
    with forced(path):
        index, _ = sparse.build(torch.tensor([9 + 1, 18]), (2, 18), taps=9)
        x = torch.ones(1, 2, 5, 5)
        x[0, 1, 2, 2] = broken
        packed = sparse.conv(sparse.pack(x), torch.ones(2), index, None, (2, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1)
        out = sparse.unpack(packed, 1)
    assert (~out.isfinite()).nonzero().tolist() == [[0, 0, 3, 2]]


def test_gradients_of_the_reference() -> None:
    case = Case(2, 3, (2, 3), (4, 5), stride=(1, 2), padding=(1, 0), groups=2, density=0.6, batch=2)
    flat, shape = case.flat(), case.weight_shape
    index, order = sparse.build(flat, (shape[0], shape[1] * 6), 6)

    def out(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse.unpack(sparse.conv(sparse.pack(x), values, index, bias, shape, *case.how()), case.batch)

    shift = case.shift()
    assert shift is not None
    leaves = [part.requires_grad_() for part in (case.x(), case.weight().flatten()[flat][order], shift)]
    assert torch.autograd.gradcheck(out, leaves)
