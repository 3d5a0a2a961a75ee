"""Spectra of offsets: the published table, laws, a circular convolution in full, and the command that prints them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gossamer import cli
from gossamer.analysis.offsets import offset_spectrum, operator_spectrum
from gossamer.errors import ConfigError
from gossamer.kernels.cpu.library import native
from gossamer.offsets import (
    DCT,
    REGISTRY,
    ChannelSignedDCT,
    ConvolutionShape,
    DeltaDCT,
    Gaussian,
    Offset,
    Orthogonal,
    RandomRows,
    ShiftDCT,
    SignedDCT,
    TapSignedDCT,
    dct_matrix,
)

PAGE = Path(__file__).parents[2] / "docs" / "offsets.md"
SQUARE = (64, 64, 3, 3)


@pytest.mark.parametrize(
    ("offset", "passed", "rank"),
    [
        (DCT(), 0.14, 7.4),
        (RandomRows(), 0.57, 19),
        (SignedDCT(), 0.90, 35),
        (Gaussian(), 0.88, 32),
        (DeltaDCT(), 1.0, 64),
    ],
    ids=str,
)
def test_operators_of_the_reference_table(offset: Offset, passed: float, rank: float) -> None:
    found = offset_spectrum(offset, SQUARE).operator
    random = 0.03 if offset.seeded else 0.005
    assert found.passed == pytest.approx(passed, abs=random)
    assert found.effective_rank == pytest.approx(rank, rel=0.07 if offset.seeded else 0.01)


def test_the_order_of_unfold_gives_another_operator() -> None:
    """The reference table has 67 % and 40, which are those at 4 x 4 frequencies."""
    kernel = dct_matrix(576)[:64].reshape(64, 64, 3, 3)
    coarse, fine = operator_spectrum(kernel, frequencies=4), operator_spectrum(kernel)
    assert (round(coarse.passed, 2), round(coarse.effective_rank)) == (0.67, 40)
    assert (round(fine.passed, 2), round(fine.effective_rank)) == (0.61, 38)


@pytest.mark.parametrize(("channels", "rank"), [(16, 2.0), (128, 14.5)])
def test_effective_rank_at_other_widths(channels: int, rank: float) -> None:
    kernel = DCT().kernel(ConvolutionShape((channels, channels, 3, 3)))
    assert operator_spectrum(kernel, frequencies=5).effective_rank == pytest.approx(rank, abs=0.06)


def circular(kernel: Tensor, side: int) -> Tensor:
    """The matrix of a circular convolution of side x side images."""
    outputs, inputs, height, width = kernel.shape
    matrix = torch.zeros(outputs, side, side, inputs, side, side, dtype=torch.float64)
    for y in range(side):
        for x in range(side):
            for i in range(height):
                for j in range(width):
                    matrix[:, y, x, :, (y + i) % side, (x + j) % side] += kernel[:, :, i, j]
    return matrix.view(outputs * side * side, -1)


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (2, 3, 2, 1)], ids=str)
def test_singular_values_are_those_of_the_circular_convolution(shape: tuple[int, int, int, int]) -> None:
    kernel = Gaussian().kernel(ConvolutionShape(shape))
    side = 4
    values = torch.linalg.svdvals(circular(kernel, side))[: side**2 * min(shape[:2])]
    found = operator_spectrum(kernel, frequencies=side)
    assert found.max == pytest.approx(values[0].item())
    assert found.min == pytest.approx(values[-1].item())
    assert found.passed == pytest.approx((values > 0.1 * values[0]).double().mean().item())


def test_groups_are_operators_side_by_side() -> None:
    kernel = Gaussian().kernel(ConvolutionShape((6, 2, 3, 3), groups=2))
    whole = torch.zeros(6, 4, 3, 3, dtype=torch.float64)
    whole[:3, :2], whole[3:, 2:] = kernel[:3], kernel[3:]
    apart, together = operator_spectrum(kernel, groups=2), operator_spectrum(whole)
    assert apart.max == pytest.approx(together.max)
    assert apart.effective_rank == pytest.approx(together.effective_rank)


def test_signs_of_channels_leave_the_singular_values_of_the_operator() -> None:
    """K(w) diag(s) has those of K(w): only signs that differ from tap to tap, channel by channel, raise the rank."""
    plain, signed = (offset_spectrum(offset, SQUARE) for offset in (DCT(), ChannelSignedDCT()))
    assert signed.operator.effective_rank == pytest.approx(plain.operator.effective_rank)
    assert signed.operator.passed == plain.operator.passed
    assert signed.largest_output < plain.largest_output / 3
    assert offset_spectrum(TapSignedDCT(), SQUARE).operator.effective_rank < 10
    assert offset_spectrum(SignedDCT(), SQUARE).operator.effective_rank > 30


@pytest.mark.parametrize(("shape", "value"), [(SQUARE, 1.0), ((16, 32, 3, 3), 1.0), ((64, 16, 3, 3), 2.0)], ids=str)
def test_shifts_are_an_isometry_of_images(shape: tuple[int, ...], value: float) -> None:
    found = offset_spectrum(ShiftDCT(), shape)
    assert found.min == pytest.approx(1)
    assert found.max == pytest.approx(1)
    assert found.operator.min == pytest.approx(value)
    assert found.operator.max == pytest.approx(value)
    assert found.operator.effective_rank == pytest.approx(min(shape[:2]))


def test_a_linear_layer() -> None:
    found = offset_spectrum(DCT(), (30, 80))
    assert (found.rank, found.executed) == (30, 30 * 80)
    assert found.theoretical == pytest.approx(1.25 * 80 * math.log2(80))
    assert found.frobenius == pytest.approx(30**0.5)
    assert found.operator.effective_rank == pytest.approx(30)


def test_a_third_of_the_energy_of_a_square_dct_is_in_output_0() -> None:
    share = offset_spectrum(DCT(), (256, 256)).largest_output
    assert share == pytest.approx(1 / math.pi, abs=3e-3)
    x = torch.randn(20000, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64).relu()
    energy = (x @ DCT().matrix(256, 256).t()).square().sum(0)
    assert share == pytest.approx((energy[0] / energy.sum()).item(), abs=1e-3)
    assert offset_spectrum(Orthogonal(), (256, 256)).largest_output < 0.03


@pytest.mark.parametrize(
    ("shape", "groups", "message"),
    [
        ((3,), 1, r"shape \(3,\) is none of a layer"),
        ((3, 0), 1, r"shape \(3, 0\) is none of a layer"),
        ((4, 2, 3, 3), 3, r"groups=3 with a weight of shape"),
        ((4, 2), 2, r"groups=2 with a weight of shape"),
    ],
)
def test_refused_shapes(shape: tuple[int, ...], groups: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        offset_spectrum(DCT(), shape, groups)


def offsets_command(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["offsets", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_lists_them() -> None:
    listed = json.loads(offsets_command("--json"))
    assert [row["name"] for row in listed] == sorted(REGISTRY)
    assert all(row["summary"] and "spectrum" not in row for row in listed)
    assert "lowest `rows` kept" in offsets_command("block-dct")
    one = json.loads(offsets_command("block-dct:4", "--json", "--shape", "8,8,3,3"))[0]
    assert one["options"] == {"block": "4"}
    assert one["spectrum"]["operator"]["effective_rank"] == pytest.approx(8)
    assert "effective rank" in offsets_command("dct", "--shape", "8,2,3,3", "--groups", "4")


def test_the_command_refuses() -> None:
    done = CliRunner().invoke(cli.app, ["offsets", "dst"])
    assert done.exit_code == 1
    assert "unknown 'dst'; did you mean 'dct'" in done.output


def test_the_tables_of_the_page_are_what_the_command_prints() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"^<!-- gossamer offsets (.*?) -->\n(.*?)^<!-- /offsets -->$", text, re.M | re.S)
    assert len(shown) == 2
    for arguments, table in shown:
        printed = offsets_command(*arguments.split())
        assert comparable(table) == comparable(printed), f"put this between the marks:\n{printed}"


def comparable(table: str) -> list[list[str]]:
    """Cells; without native kernels not those of the last column, which says what is executed with them."""
    rows = [line.split("|")[1:-1] for line in table.splitlines()]
    return [row[:-1] if "executed" in rows[0][-1] and native() is None else row for row in rows]
