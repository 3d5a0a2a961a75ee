"""Offsets: maps equal their matrices and transposes in every layout, singular values are as stated, seeds decide."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from gossamer.errors import ConfigError
from gossamer.experiments.values import parse, spell
from gossamer.kernels import sparse
from gossamer.offsets import (
    DCT,
    REGISTRY,
    BlockDCT,
    ChannelSignedDCT,
    ConvolutionShape,
    DeltaDCT,
    Gaussian,
    Identity,
    Offset,
    Orthogonal,
    RandomRows,
    ShiftDCT,
    SignedDCT,
    SignedHadamard,
    TapSignedDCT,
    dct_matrix,
    find,
    named,
)
from gossamer.offsets.cost import convolution_multiplications, linear_multiplications

OFFSETS = [*(kind() for kind in REGISTRY.values()), Identity(wrap=True), SignedHadamard(3), BlockDCT(4)]
LINEAR = [(5, 8), (8, 5), (7, 7), (1, 1), (1, 13), (13, 1), (16, 16), (10, 37), (37, 10), (4, 33)]
CONVOLUTIONS = [
    ConvolutionShape((6, 4, 3, 3), padding=(1, 1)),
    ConvolutionShape((6, 2, 3, 3), (2, 2), (1, 1), groups=2),
    ConvolutionShape((4, 1, 3, 3), (2, 1), (0, 2), (2, 1), groups=4),
    ConvolutionShape((5, 3, 2, 4), (3, 2), (3, 0), (1, 2)),
    ConvolutionShape((7, 5, 1, 1)),
    ConvolutionShape((3, 2, 1, 1), (2, 2), (4, 5)),
    ConvolutionShape((20, 2, 3, 3), padding=(1, 1)),
    ConvolutionShape((12, 3, 3, 3), padding=(1, 1), groups=2),
]
SEED = 3
each_offset = pytest.mark.parametrize("offset", OFFSETS, ids=str)


def near(got: Tensor, expected: Tensor) -> None:
    tolerance = 1e-10 if got.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=tolerance)


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_offset
@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_linear_map_and_its_transpose_are_those_of_the_matrix(offset: Offset, shape: tuple[int, int]) -> None:
    rows, columns = shape
    matrix, made = offset.matrix(rows, columns, SEED), offset.linear(rows, columns, SEED)
    assert matrix.shape == (made.rows, made.columns) == shape
    assert matrix.dtype == torch.float64
    x, g = drawn(2, 3, columns), drawn(2, 3, rows, seed=1)
    forward, back = made.apply(x, -1), made.transpose(g, -1)
    near(forward, x @ matrix.t())
    near(back, g @ matrix)
    near((forward * g).sum(), (x * back).sum())
    packed, slope = drawn(2, columns, 3, 16).float(), drawn(2, rows, 3, 16).float()
    near(made.apply(packed, 1), torch.einsum("rc,tcpl->trpl", matrix, packed.double()))
    near(made.transpose(slope, 1), torch.einsum("rc,trpl->tcpl", matrix, slope.double()))


@each_offset
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=lambda shape: str(shape.weight))
def test_convolution_and_its_transpose_are_those_of_the_kernel(offset: Offset, shape: ConvolutionShape) -> None:
    kernel, made = offset.kernel(shape, SEED), offset.convolution(shape, SEED)
    assert kernel.shape == shape.weight
    x = drawn(3, shape.weight[1] * shape.groups, 9, 8)
    how = (shape.stride, shape.padding, shape.dilation, shape.groups)
    expected = functional.conv2d(x, kernel, None, *how)
    near(made.apply(x), expected)
    g = drawn(*expected.shape, seed=1)
    back = conv2d_input(list(x.shape), kernel, g, *how)
    near(made.transpose(g, x.shape), back)
    packed, slope = sparse.pack(x.float()), sparse.pack(g.float())
    near(made.apply(packed), sparse.pack(expected.float()))
    near(made.transpose(slope, packed.shape), sparse.pack(back.float()))


@each_offset
def test_what_goes_in_is_left_as_it_was(offset: Offset) -> None:
    shape = CONVOLUTIONS[0]
    x, vector = drawn(2, 4, 5, 5), drawn(2, 6)
    before = x.clone(), vector.clone()
    made = offset.convolution(shape, SEED)
    made.transpose(made.apply(x).mul_(2), x.shape).mul_(2)
    offset.linear(6, 6, SEED).apply(vector, -1).mul_(2)
    offset.linear(9, 6, SEED).apply(vector, -1).mul_(2)
    assert torch.equal(before[0], x)
    assert torch.equal(before[1], vector)


@each_offset
@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_singular_values_are_as_stated(offset: Offset, shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(offset.matrix(*shape, SEED))
    padded = max(shape) & (max(shape) - 1)
    if isinstance(offset, SignedHadamard) and padded:
        assert values.max() <= (2 * (1 << max(shape).bit_length() - 1) / max(shape)) ** 0.5 + 1e-9
        if offset.rounds == 1:
            near(values.square().mean(), torch.tensor(1.0))
    elif not isinstance(offset, Gaussian):
        assert offset.singular_values.startswith("all 1")
        near(values, torch.ones(min(shape)))


def test_a_gaussian_has_the_mean_square_of_the_others() -> None:
    assert Gaussian().matrix(100, 300).square().sum() == pytest.approx(100, rel=0.02)


@each_offset
def test_the_seed_decides_and_nothing_else(offset: Offset) -> None:
    state = torch.random.get_rng_state()
    first, shape = offset.matrix(5, 16, 1), CONVOLUTIONS[0]
    assert torch.equal(first, offset.matrix(5, 16, 1))
    assert torch.equal(offset.kernel(shape, 1), offset.kernel(shape, 1))
    assert torch.equal(first, offset.matrix(5, 16, 2)) != offset.seeded
    assert torch.equal(offset.kernel(shape, 1), offset.kernel(shape, 2)) != offset.seeded
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.slow
def test_the_same_in_another_process() -> None:
    code = (
        "import torch; from gossamer.offsets import REGISTRY, ConvolutionShape; torch.manual_seed(5)\n"
        "for kind in REGISTRY.values():\n"
        "    kernel = kind().kernel(ConvolutionShape((6, 4, 3, 3)), 1)\n"
        "    print(*kernel.flatten().tolist(), *kind().matrix(5, 16, 1).flatten().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for line, kind in zip(done.stdout.splitlines(), REGISTRY.values(), strict=True):
        here = kind().kernel(ConvolutionShape((6, 4, 3, 3)), 1), kind().matrix(5, 16, 1)
        there = torch.tensor([float(number) for number in line.split()], dtype=torch.float64)
        near(torch.cat([part.flatten() for part in here]), there)


def test_patches_are_read_tap_by_tap() -> None:
    kernel = DCT().kernel(ConvolutionShape((5, 2, 3, 3)))
    q = dct_matrix(18)
    assert kernel[3, 1, 2, 0] == q[3, (2 * 3 + 0) * 2 + 1]
    assert not torch.allclose(kernel, q[:5].view(5, 2, 3, 3)), "the order of torch.nn.functional.unfold"


@pytest.mark.parametrize("kind", [SignedDCT, ChannelSignedDCT, TapSignedDCT])
def test_signs_on_the_dct(kind: type[SignedDCT]) -> None:
    shape = ConvolutionShape((5, 4, 3, 3), groups=1)
    flips = kind().kernel(shape, SEED) / DCT().kernel(shape)
    near(flips.abs(), torch.ones(shape.weight))
    near(flips, flips[:1].expand(shape.weight))  # the same for every output
    flips = flips[0].view(4, 9)
    rank = int(torch.linalg.matrix_rank(flips))
    assert rank > 1 if kind is SignedDCT else rank == 1
    assert bool((flips == flips[:, :1]).all()) == (kind is ChannelSignedDCT)
    assert torch.equal(kind().matrix(5, 16, SEED), SignedDCT().matrix(5, 16, SEED))


def test_the_centre_tap_is_all_there_is() -> None:
    for offset in (DeltaDCT(), Identity(), BlockDCT(2)):
        kernel = offset.kernel(ConvolutionShape((6, 2, 3, 5), groups=2))
        near(kernel[:3, :, 1, 2], offset.matrix(3, 2))
        near(kernel[3:, :, 1, 2], offset.matrix(3, 2))
        assert kernel.count_nonzero() == kernel[:, :, 1, 2].count_nonzero()
    assert torch.equal(DeltaDCT().matrix(3, 7), DCT().matrix(3, 7))


def test_a_shift_reads_every_channel_at_taps_of_its_own() -> None:
    kernel = ShiftDCT().kernel(ConvolutionShape((8, 4, 3, 3)), SEED)  # two taps for each channel
    read = kernel.abs().amax(0).flatten(1) > 0
    assert read.sum(1).tolist() == [2, 2, 2, 2]
    depthwise = ShiftDCT().kernel(ConvolutionShape((16, 1, 3, 3), groups=16), SEED)
    assert set(depthwise.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert depthwise.abs().flatten(1).sum(1).tolist() == [1.0] * 16
    assert len(depthwise.abs().flatten(1).argmax(1).unique()) > 3


def test_identity_by_hand() -> None:
    assert Identity().matrix(2, 3).tolist() == [[1, 0, 0], [0, 1, 0]]
    half = 0.5**0.5
    near(Identity(wrap=True).matrix(2, 3), torch.tensor([[half, 0, half], [0, 1, 0]], dtype=torch.float64))
    near(Identity(wrap=True).matrix(3, 2), torch.tensor([[half, 0], [0, 1], [half, 0]], dtype=torch.float64))


def test_blocks_by_hand() -> None:
    pair = dct_matrix(2)
    by_frequency = torch.zeros(5, 5, dtype=torch.float64)
    by_frequency[0, 0:2], by_frequency[1, 2:4], by_frequency[2, 4] = pair[0], pair[0], 1
    by_frequency[3, 0:2], by_frequency[4, 2:4] = pair[1], pair[1]
    near(BlockDCT(2).matrix(5, 5), by_frequency)
    near(BlockDCT(2).matrix(3, 5), by_frequency[:3])
    near(BlockDCT(2).matrix(5, 3), BlockDCT(2).matrix(3, 5).t())
    near(BlockDCT(64).matrix(5, 5), DCT().matrix(5, 5))


def test_layers_mix_blocks() -> None:
    once = BlockDCT(4).matrix(16, 16)
    assert int((once != 0).sum(1).max()) == 4
    assert bool(((once @ once).abs() > 1e-12).sum(1).eq(16).any())


def test_hadamard_by_hand() -> None:
    signed = SignedHadamard().matrix(4, 4, SEED)
    plain = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    near(signed * signed[0].sign(), plain)
    near(SignedHadamard().matrix(3, 3, SEED).abs(), torch.full((3, 3), 3**-0.5, dtype=torch.float64))


def test_a_cut_hadamard_is_no_isometry() -> None:
    values = torch.linalg.svdvals(SignedHadamard().matrix(300, 300))
    assert values.max().item() == pytest.approx((512 / 300) ** 0.5)
    assert values.min().item() == pytest.approx(0.1155, abs=1e-4)


def test_random_rows_come_from_the_whole_spectrum() -> None:
    rows = RandomRows().matrix(8, 64, SEED)
    found = [int((dct_matrix(64) - row).abs().sum(1).argmin()) for row in rows]
    assert found == sorted(found)
    assert max(found) >= 32
    assert torch.equal(RandomRows().matrix(64, 8, SEED), DCT().matrix(64, 8))


def test_orthogonal_is_drawn_uniformly() -> None:
    corners = torch.stack([Orthogonal().matrix(3, 3, seed)[0, 0] for seed in range(400)])
    assert corners.mean().abs() < 0.1  # without the signs of the factorisation it is -0.5
    assert corners.square().mean() == pytest.approx(1 / 3, abs=0.05)


@each_offset
def test_costs_are_those_of_the_maps_or_less(offset: Offset) -> None:
    shape = ConvolutionShape((64, 64, 3, 3))
    assert offset.multiplications(64, 576) <= 64 * 576
    assert offset.kernel_multiplications(shape) <= 64 * 576
    assert linear_multiplications(offset.linear(64, 64)) <= 64 * 64 + 64
    assert convolution_multiplications(offset.convolution(shape), shape) <= 64 * 576 + 64
    if isinstance(offset, DeltaDCT | ShiftDCT):
        assert convolution_multiplications(offset.convolution(shape), shape) <= 64 * 64 + 64


@each_offset
def test_configs_spell_offsets(offset: Offset) -> None:
    assert parse(spell(offset), Offset, "offset") == offset


def test_offsets_are_frozen_and_named() -> None:
    for name, kind in REGISTRY.items():
        assert kind.name == name == kind().label
        assert find(name) is kind
        assert kind.summary
        assert kind.cost
        assert (kind.__doc__ or "").strip()
    with pytest.raises(FrozenInstanceError):
        BlockDCT().block = 3  # type: ignore[misc]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"unknown offset 'dst'; did you mean 'dct'"):
        find("dst")
    with pytest.raises(ConfigError, match=r"there are two offsets named 'dct'"):
        named(DCT)
    with pytest.raises(ConfigError, match=r"block = 0: expected a whole number of inputs, at least 1"):
        BlockDCT(0)
    with pytest.raises(ConfigError, match=r"rounds = 1.5: expected a whole number of transforms, at least 1"):
        SignedHadamard(1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"wrap='no': expected True or False"):
        Identity("no")  # type: ignore[arg-type]


def test_a_centre_tap_may_lie_outside_all_images() -> None:
    shape = ConvolutionShape((8, 8, 1, 1), (2, 4), (1, 1))
    made, x = BlockDCT(4).convolution(shape), drawn(2, 8, 3, 2)
    assert not made.apply(x).any()
    assert not made.transpose(drawn(2, 8, 3, 1), x.shape).any()
