"""The offset of a convolution is that of its kernel, whichever way it is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gossamer.kernels import sparse
from gossamer.nn.offset import OffsetConv2d
from gossamer.offsets import DCT, ConvolutionMap, ConvolutionShape
from gossamer.offsets.convolution import Factored, Pointwise, cosine_convolution

from .kernels.forcing import PATHS, Pair, distance, forced, geometries, numbers

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-6}


@dataclass(frozen=True)
class Case:
    """A convolution and its image."""

    weight: tuple[int, int, int, int]
    size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    batch: int = 18

    @property
    def shape(self) -> ConvolutionShape:
        return ConvolutionShape(self.weight, self.stride, self.padding, self.dilation, self.groups)

    @property
    def length(self) -> int:
        return max(self.weight[0], math.prod(self.weight[1:]))

    def image(self) -> Tensor:
        return numbers(self.batch, self.weight[1] * self.groups, *self.size, seed=1)


CASES = {
    "3x3": Case((40, 24, 3, 3), (9, 9), padding=(1, 1)),
    "first layer": Case((32, 3, 3, 3), (12, 12), padding=(1, 1)),
    "5x5 of few": Case((16, 6, 5, 5), (14, 14)),
    "strided": Case((24, 16, 3, 3), (11, 10), (2, 2), (1, 1)),
    "not square": Case((9, 8, 3, 2), (9, 7), (2, 3), (1, 2), (2, 1)),
    "dilated": Case((8, 8, 3, 3), (12, 12), (1, 1), (2, 2), (2, 2)),
    "groups": Case((12, 4, 3, 3), (8, 8), (1, 1), (1, 1), (1, 1), 3),
    "depthwise": Case((16, 1, 3, 3), (8, 8), (1, 1), (1, 1), (1, 1), 16),
    "depthwise, two each": Case((16, 1, 3, 3), (8, 8), (2, 2), (1, 1), (1, 1), 8),
    "1x1": Case((12, 20, 1, 1), (5, 6)),
    "1x1, strided": Case((12, 20, 1, 1), (5, 6), (2, 3)),
    "1x1, padded": Case((12, 20, 1, 1), (5, 6), (2, 3), (1, 2)),
    "1x1, groups": Case((12, 5, 1, 1), (5, 6), (1, 1), (0, 0), (1, 1), 4),
    "larger than the image": Case((7, 5, 7, 5), (3, 2), (1, 1), (3, 2)),
    "a single sample": Case((32, 32, 3, 3), (8, 8), padding=(1, 1), batch=1),
}


def both_ways(case: Case, made: ConvolutionMap, kernel: Tensor, dtype: torch.dtype) -> None:
    """Images, channels_last ones and packed ones; the map and its transpose."""
    x = case.image().requires_grad_()
    y = functional.conv2d(x, kernel, None, case.stride, case.padding, case.dilation, case.groups)
    slope = numbers(*y.shape, seed=2)
    y.backward(slope)
    assert x.grad is not None
    image, given = x.detach().to(dtype), slope.to(dtype)
    found = [
        (made.apply(image), made.transpose(given, image.shape)),
        (
            made.apply(image.contiguous(memory_format=torch.channels_last)),
            made.transpose(given.contiguous(memory_format=torch.channels_last), image.shape),
        ),
    ]
    packed = sparse.pack(image)
    forth, back = made.apply(packed), made.transpose(sparse.pack(given), packed.shape)
    found.append((sparse.unpack(forth, case.batch), sparse.unpack(back, case.batch)))
    for out, gradient in found:
        assert out.shape == y.shape
        assert out.dtype == gradient.dtype == dtype
        assert distance(out, y) < CLOSE[dtype]
        assert distance(gradient, x.grad) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_convolution_with_the_kernel(case: Case, path: str, dtype: torch.dtype) -> None:
    with forced(path):
        both_ways(case, DCT().convolution(case.shape), DCT().kernel(case.shape), dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_transpose_is_one(case: Case) -> None:
    made, x = DCT().convolution(case.shape), case.image()
    y = made.apply(x)
    g = numbers(*y.shape, seed=3)
    assert torch.allclose((y * g).sum(), (x * made.transpose(g, x.shape)).sum(), rtol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    outputs=st.integers(1, 20),
    inputs=st.integers(1, 12),
    geometry=geometries(extra=(6, 6)),
)
def test_any_geometry(outputs: int, inputs: int, geometry: dict[str, Any]) -> None:
    weight = (outputs * geometry["groups"], inputs, *geometry.pop("kernel"))
    case = Case(weight, **geometry, batch=5)
    both_ways(case, DCT().convolution(case.shape), DCT().kernel(case.shape), torch.float32)


@pytest.mark.parametrize("name", ["3x3", "strided", "groups", "depthwise", "first layer", "1x1, groups"])
@pytest.mark.parametrize("kind", ["none", "by channel", "by tap and channel", "each", "each, of the group"])
def test_other_rows_and_signs(name: str, kind: str) -> None:
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    outputs, inputs, height, width = case.weight
    taps, groups = height * width, case.groups

    def signs(*shape: int) -> Tensor:
        return torch.randint(2, shape, generator=generator) * 2 - 1

    rows = torch.randperm(case.length, generator=generator)[:outputs]
    scale = torch.rand(outputs, generator=generator, dtype=torch.float64) + 0.5
    drawn = {
        "none": None,
        "by channel": signs(1, inputs),
        "by tap and channel": signs(groups, taps, 1) * signs(groups, 1, inputs),
        "each": signs(taps, inputs),
        "each, of the group": signs(groups, taps, inputs),
    }[kind]
    made = cosine_convolution(case.shape, rows, case.length, scale, drawn)
    angle = rows.double()[:, None] * (2 * torch.arange(taps * inputs) + 1) * math.pi / (2 * case.length)
    kernel = (scale[:, None] * torch.cos(angle)).view(groups, -1, taps, inputs)
    if drawn is not None:
        kernel = kernel * drawn.expand(groups, taps, inputs)[:, None]
    kernel = kernel.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    both_ways(case, made, kernel, torch.float32)
    assert isinstance(made, Factored)
    made.gain = math.inf  # not left to torch, however little it saves
    both_ways(case, made, kernel, torch.float32)


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_no_images(name: str) -> None:
    case = CASES[name]
    made, x = DCT().convolution(case.shape), case.image().float()
    for image in (x[:0], sparse.pack(x)[:0]):
        y = made.apply(image)
        assert y.shape[:2] == (0, case.weight[0])
        assert made.transpose(y, image.shape).shape == image.shape


def test_few_waves_carry_few_outputs_of_many_channels() -> None:
    made = DCT().convolution(ConvolutionShape((256, 256, 3, 3)))
    assert isinstance(made, Factored)
    assert made.mixer is not None
    assert made.mixer.shape[1] < 50
    assert made.gain > 20
    held = made.mixer.numel() + made.taps.mix.numel() + made.taps.filters.numel()
    assert held < 0.05 * 256 * 256 * 9


def test_a_single_tap_is_a_transform_along_the_channels() -> None:
    assert isinstance(DCT().convolution(CASES["1x1, strided"].shape), Pointwise)


def test_a_depthwise_filter_begins_a_row_of_the_transform() -> None:
    """Output o of 16 has the first nine samples of the o-th cosine of length 16."""
    x = torch.zeros(1, 16, 3, 3, dtype=torch.float64)
    x[..., 1, 2] = 1.0  # tap 5
    y = DCT().convolution(ConvolutionShape((16, 1, 3, 3), groups=16)).apply(x)
    wanted = torch.cos(math.pi * torch.arange(16.0, dtype=torch.float64) * 11 / 32) * math.sqrt(2 / 16)
    wanted[0] = 1 / 4
    torch.testing.assert_close(y.flatten(), wanted)


def test_the_patch_order_of_unfold_would_be_another_offset() -> None:
    case = CASES["3x3"]
    x, made = case.image(), DCT().convolution(case.shape)
    patches = functional.unfold(x, 3, padding=1)  # channel slowest
    as_unfolded = DCT().matrix(40, 24 * 9) @ patches
    reordered = DCT().matrix(40, 24 * 9) @ patches.view(case.batch, 24, 9, -1).transpose(1, 2).flatten(1, 2)
    y = made.apply(x).flatten(2)
    assert distance(y, reordered) < 1e-6
    assert distance(y, as_unfolded) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_torch_with_the_kernel(dtype: torch.dtype) -> None:
    case = CASES["3x3"]
    y = DCT().convolution(case.shape).apply(case.image().to(dtype))
    assert y.dtype == dtype
    wanted = functional.conv2d(case.image(), DCT().kernel(case.shape), padding=1)
    assert distance(y, wanted) < 2e-2


@pytest.mark.parametrize("name", ["strided", "groups", "depthwise", "1x1, strided"])
def test_gradients_through_the_layer(name: str) -> None:
    case = CASES[name]
    plain = nn.Conv2d(
        case.weight[1] * case.groups, case.weight[0], case.weight[2:], case.stride, case.padding, groups=case.groups
    ).double()
    layer = OffsetConv2d.from_dense(plain, DCT()).double()
    with torch.no_grad():
        layer.sparse.weight.normal_(generator=torch.Generator().manual_seed(0))
    x = case.image()[:1, :, :4, :3].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
