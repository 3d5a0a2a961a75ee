"""Sparse layers compute what dense ones with zeros compute, and refuse what they cannot."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.nn import SparseConv1d, SparseConv2d, SparseLinear, SparseWeight
from gossamer.topology import Support

from .near import assert_equals_dense, assert_near


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- laws --


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 48, 130])
def test_linear_equals_dense(batch: int, bias: bool) -> None:
    assert_equals_dense(SparseLinear(70, 45, 0.2, bias), torch.randn(batch, 70))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 7), (7, 1), (300, 5), (5, 300), (513, 129)])
@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_linear_sizes(inputs: int, outputs: int, density: float) -> None:
    assert_equals_dense(SparseLinear(inputs, outputs, density), torch.randn(19, inputs))


CONVOLUTIONS = [
    {},
    {"padding": 1},
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "kernel_size": 2},
    {"padding": "same", "kernel_size": 4, "dilation": 3},
    {"stride": 2, "padding": 1},
    {"stride": 3},
    {"dilation": 2, "padding": 2},
    {"groups": 2, "padding": 1},
    {"groups": 8, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"bias": False},
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("batch", [1, 5, 16, 21])
@pytest.mark.parametrize("given", CONVOLUTIONS, ids=str)
def test_convolutions_equal_dense(given: dict[str, object], batch: int) -> None:
    arguments = {"kernel_size": 3, "density": 0.3, **given}
    assert_equals_dense(SparseConv2d(8, 16, **arguments), torch.randn(batch, 8, 11, 9))
    assert_equals_dense(SparseConv1d(8, 16, **arguments), torch.randn(batch, 8, 13))


def test_convolution_with_settings_per_axis() -> None:
    layer = SparseConv2d(6, 4, (3, 2), 0.4, (2, 1), (1, 0), (1, 2), 2)
    assert_equals_dense(layer, torch.randn(17, 6, 9, 10))
    assert_equals_dense(SparseConv2d(3, 4, (5, 7), 0.2), torch.randn(3, 3, 5, 7))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_linear_equals_dense_everywhere(inputs: int, outputs: int, batch: int, density: float, seed: int) -> None:
    torch.manual_seed(seed)
    assert_equals_dense(SparseLinear(inputs, outputs, density), torch.randn(batch, inputs))


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
    st.tuples(st.integers(5, 9), st.integers(5, 9), st.integers(1, 18)),
    st.floats(0.05, 1.0),
)
def test_convolution_equals_dense_everywhere(
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    how: tuple[int, int, int],
    image: tuple[int, int, int],
    density: float,
) -> None:
    groups, inputs, outputs = channels
    stride, padding, dilation = how
    layer = SparseConv2d(groups * inputs, groups * outputs, kernel, density, stride, padding, dilation, groups)
    *size, batch = image
    assert_equals_dense(layer, torch.randn(batch, groups * inputs, *size))


def test_empty_rows_columns_and_layers() -> None:
    mask = torch.rand(40, 30) < 0.3
    mask[3] = mask[17:25] = False
    mask[:, :5] = mask[:, 29] = False
    layer = SparseLinear(30, 40, support=Support.from_mask(mask))
    assert_equals_dense(layer, torch.randn(9, 30))
    assert_equals_dense(SparseLinear(30, 40, support=Support.from_mask(torch.zeros_like(mask))), torch.randn(9, 30))
    kernel = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    assert_equals_dense(SparseConv2d(3, 4, 3, support=Support.from_mask(kernel)), torch.randn(2, 3, 5, 5))


def test_leading_dimensions_strides_and_empty_batches() -> None:
    layer = SparseLinear(20, 12, 0.3)
    for x in (torch.randn(20), torch.randn(3, 4, 20), torch.randn(20, 7).T, torch.randn(5, 40)[:, ::2]):
        assert_equals_dense(layer, x)
    assert layer(torch.randn(0, 20)).shape == (0, 12)
    assert layer(torch.randn(3, 0, 20)).shape == (3, 0, 12)
    convolution = SparseConv2d(4, 6, 3, 0.3)
    assert_equals_dense(convolution, torch.randn(4, 8, 8))
    assert_equals_dense(convolution, torch.randn(5, 8, 8, 4).permute(0, 3, 1, 2))
    assert convolution(torch.randn(0, 4, 8, 8)).shape == (0, 6, 6, 6)
    assert_equals_dense(SparseConv1d(4, 6, 3, 0.3), torch.randn(4, 9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_the_outputs_connected_to_it(bad: float) -> None:
    mask = torch.rand(30, 20) < 0.3
    layer = SparseLinear(20, 30, support=Support.from_mask(mask))
    x = torch.randn(18, 20)
    clean = layer(x)
    x[4, 7] = bad
    y = layer(x)
    reached = torch.zeros(18, 30, dtype=torch.bool)
    reached[4] = mask[:, 7]
    assert torch.equal(~y.isfinite(), reached)
    assert torch.equal(y[~reached], clean[~reached])


# -- construction --


@pytest.mark.parametrize("density", [0.001, 0.03, 0.37, 0.5, 0.77, 1.0])
def test_counts_are_exact_and_entries_distinct(density: float) -> None:
    layer = SparseLinear(321, 123, density)
    assert layer.count == round(density * 321 * 123)
    assert layer.positions().unique().numel() == layer.count
    assert layer.support().count == layer.count
    assert abs(layer.density - density) < 1e-4


def test_positions_are_drawn_uniformly() -> None:
    hits = sum(SparseLinear(10, 5, 0.3, False).support().mask.float() for _ in range(1000)) / 1000
    assert isinstance(hits, Tensor)
    assert float((hits - 0.3).abs().max()) < 5 * math.sqrt(0.3 * 0.7 / 1000)


def test_the_global_generator_decides() -> None:
    def draw(seed: int) -> SparseLinear:
        torch.manual_seed(seed)
        return SparseLinear(50, 40, 0.1)

    one, same, other = draw(1), draw(1), draw(2)
    assert torch.equal(one.to_dense(), same.to_dense())
    assert one.support() != other.support()


def test_a_layer_is_made_without_its_dense_weight() -> None:
    layer = SparseLinear(32768, 32768, 1e-3)
    assert layer.count == round(1e-3 * 32768**2)
    assert layer.index.nbytes < 4 * layer.count


def test_values_scale_with_the_active_fan_in() -> None:
    mask = torch.zeros(4, 100, dtype=torch.bool)
    mask[0, :1], mask[1, :25], mask[2] = True, True, True  # and none in the last row
    layer = SparseLinear(100, 4, support=Support.from_mask(mask))
    largest = torch.zeros(4)
    for _ in range(200):
        layer.reset_parameters()
        largest = torch.maximum(largest, layer.to_dense().detach().abs().amax(1))
    assert torch.allclose(largest, torch.tensor([1.0, 1 / 5, 1 / 10, 0.0]), rtol=0.05)
    dense = SparseLinear(100, 4, support=Support.from_mask(mask), fan_in="dense")
    assert float(dense.values.detach().abs().max()) <= 0.1
    assert dense.bias is not None
    assert float(dense.bias.detach().abs().max()) <= 0.1


def test_coordinates_in_any_order() -> None:
    indices, values = torch.tensor([[2, 0, 1], [3, 1, 0]]), torch.tensor([5.0, 6.0, 7.0])
    layer = SparseLinear.from_coo(indices, values, (3, 4))
    expected = torch.zeros(3, 4)
    expected[2, 3], expected[0, 1], expected[1, 0] = values
    assert torch.equal(layer.to_dense(), expected)
    assert layer.bias is None
    flat = SparseLinear.from_coo(torch.tensor([11, 1, 4]), values.double(), (3, 4), torch.ones(3))
    assert torch.equal(flat.to_dense(), expected.double())
    assert_equals_dense(flat, torch.randn(5, 4, dtype=torch.float64))
    grouped = SparseConv2d.from_coo(torch.tensor([0, 20]), values[:2], (4, 1, 3, 3), groups=2, stride=2)
    assert (grouped.in_channels, grouped.stride) == (2, (2, 2))
    assert_equals_dense(grouped, torch.randn(2, 2, 7, 7))


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        (SparseLinear, nn.Linear(30, 20)),
        (SparseLinear, nn.Linear(30, 20, bias=False).double()),
        (SparseConv1d, nn.Conv1d(4, 6, 3, 2, 1, 2, 2)),
        (SparseConv2d, nn.Conv2d(4, 6, (3, 2), 1, "same", 1, 2)),
    ],
)
def test_there_and_back_is_bit_for_bit(layer: type[SparseWeight], module: nn.Module) -> None:
    weight = module.get_parameter("weight")
    support = Support.from_mask(torch.rand_like(weight) < 0.3)
    state = torch.get_rng_state()
    made = layer.from_dense(module.eval(), support)  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), state)
    assert made.support() == support
    assert not made.training
    assert made.bias is module.bias
    zeroed = torch.where(support.mask, weight.detach(), 0.0)
    assert torch.equal(made.to_dense(), zeroed)
    back = made.dense_module()
    assert type(back) is type(module)
    assert torch.equal(back.get_parameter("weight"), zeroed)
    assert repr(back) == repr(module)


def test_to_dense_is_differentiable() -> None:
    layer = SparseLinear(6, 5, 0.5)
    weights = torch.randn(5, 6)
    (layer.to_dense() * weights).sum().backward()
    assert_near(layer.values.grad, weights.reshape(-1)[layer.positions()])


# -- other number formats --


def test_double_passes_gradcheck() -> None:
    layer = SparseLinear(7, 5, 0.4, dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.values, layer.bias))
    convolution = SparseConv2d(2, 4, 3, 0.4, padding="same", groups=2, dtype=torch.float64)
    image = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: convolution(x), (image, convolution.values, convolution.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats_compute_in_float32(dtype: torch.dtype) -> None:
    layer = SparseLinear(40, 30, 0.2)
    low = SparseLinear.from_coo(layer.positions(), layer.values.detach(), (30, 40), layer.bias).to(dtype)
    x = torch.randn(9, 40).to(dtype)
    y = low(x)
    assert y.dtype == dtype
    assert torch.equal(y, low.float()(x.float()).to(dtype))
    low.to(dtype)(x).sum().backward()
    assert low.values.grad is not None
    assert low.values.grad.dtype == dtype


def test_autocast_computes_in_float32() -> None:
    layer, x = SparseLinear(40, 30, 0.2), torch.randn(9, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        rounded = layer(x.bfloat16())
    assert y.dtype == rounded.dtype == torch.float32
    assert torch.equal(y, layer(x))
    assert torch.equal(rounded, layer(x.bfloat16().float()))
    y.sum().backward()
    assert layer.values.grad is not None


# -- refusals --


def message(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arguments_that_cannot_be() -> None:
    support = Support.full((4, 5))
    assert "above 0 and at most 1" in message(SparseLinear, 5, 4, 0.0)
    assert "needs a density" in message(SparseLinear, 5, 4)
    assert "shape (4, 5), the weight has (5, 4)" in message(SparseLinear, 4, 5, support=support)
    assert "pass density=None" in message(SparseLinear, 5, 4, 0.5, support=support)
    assert "is a Tensor" in message(SparseLinear, 5, 4, support=support.mask)
    assert "fan_in is 'out'" in message(SparseLinear, 5, 4, 0.5, fan_in="out")
    assert "1 or more" in message(SparseLinear, 0, 4, 0.5)
    assert "torch.float32" in message(SparseLinear, 5, 4, 0.5, dtype=torch.complex64)
    assert "pad with zeros only" in message(SparseConv2d, 3, 4, 3, 0.5, padding_mode="reflect")
    assert "multiples" in message(SparseConv2d, 3, 4, 3, 0.5, groups=2)
    assert '"same" (with stride 1 only)' in message(SparseConv1d, 3, 4, 3, 0.5, padding="same", stride=2)
    assert "stride=0" in message(SparseConv2d, 3, 4, 3, 0.5, stride=0)
    assert "2 of them" in message(SparseConv2d, 3, 4, (3, 3, 3), 0.5)


def test_coordinates_that_cannot_be() -> None:
    make, values, shape = SparseLinear.from_coo, torch.ones(2), (3, 4)
    assert "0..12 is out of range 0..11" in message(make, torch.tensor([0, 12]), values, shape)
    assert "-1..0 is out of range 0..2" in message(make, torch.tensor([[0, -1], [0, 0]]), values, shape)
    assert "position 5 occurs more than once" in message(make, torch.tensor([5, 5]), values, shape)
    assert "expected integers" in message(make, torch.tensor([0.0, 1.0]), values, shape)
    assert "expected integers" in message(make, torch.tensor([True, False]), values, shape)
    assert "expected (n,)" in message(make, torch.zeros(3, 2, dtype=torch.long), values, shape)
    assert "expected (2,) floating" in message(make, torch.tensor([0, 1]), torch.ones(3), shape)
    assert "expected (2,) floating" in message(make, torch.tensor([0, 1]), torch.ones(2).long(), shape)
    assert "expected integers on the CPU" in message(make, torch.tensor([0, 1], device="meta"), values, shape)
    assert "on meta" in message(make, torch.tensor([0, 1]), values.to("meta"), shape)
    assert "bias has shape (4,)" in message(make, torch.tensor([0, 1]), values, shape, torch.ones(4))
    assert "2 dimensions" in message(make, torch.tensor([0]), values[:1], (2, 2, 2))
    assert "4 dimensions" in message(SparseConv2d.from_coo, torch.tensor([0]), values[:1], (2, 2))


def test_inputs_that_do_not_fit() -> None:
    layer, convolution = SparseLinear(20, 10, 0.3), SparseConv2d(3, 4, 3, 0.3)
    assert "shape (2, 21); expected (..., 20)" in message(layer, torch.randn(2, 21))
    assert "expected (..., 20)" in message(layer, torch.tensor(1.0))
    assert "torch.float64, the values of the layer are torch.float32" in message(layer, torch.randn(2, 20).double())
    assert "torch.int64" in message(layer, torch.ones(2, 20, dtype=torch.long))
    assert "on meta, the layer on cpu" in message(layer, torch.randn(2, 20, device="meta"))
    assert "(batch, 3, height, width)" in message(convolution, torch.randn(2, 4, 8, 8))
    assert "(batch, 3, height, width)" in message(convolution, torch.randn(3, 8))
    assert "smaller than the kernel" in message(convolution, torch.randn(2, 3, 8, 2))


def test_repr_tells_the_sizes() -> None:
    told = [repr(SparseConv2d(4, 6, 3, 0.5, padding=1)), repr(SparseLinear(10, 20, 0.1, False))]
    assert told == [
        "SparseConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), count=108, density=0.5, bias=True)",
        "SparseLinear(in_features=10, out_features=20, count=20, density=0.1, bias=False)",
    ]


def test_row_tiles_of_grouped_convolutions() -> None:
    layer = SparseConv2d(6, 9, 3, 0.4, groups=3)
    x = torch.randn(5, 6, 6, 6)
    layer.capture = []
    layer(x).square().sum().backward()
    layer(x).sum().backward()
    assert len(layer.capture) == 2
    whole = layer.dense_gradient(slice(None), layer.capture)
    for first, last in itertools.combinations(range(10), 2):
        assert_near(layer.dense_gradient(slice(first, last), layer.capture), whole[first:last])
    assert_near(layer.values.grad, whole.reshape(-1)[layer.positions()])
