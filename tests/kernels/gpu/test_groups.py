"""The device's look at a matrix finds what the plain one finds."""

from __future__ import annotations

import pytest
import torch

from gossamer.kernels.gpu.groups import triton_overfull
from gossamer.kernels.semi_structured.layout import overfull

from .interpreted import interpreted


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_more_than_two_of_four_are_found_wherever_they_are(dtype: torch.dtype) -> None:
    mask = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0]).repeat(70, 17).bool()  # 2380 groups: the last program is not full
    matrix = torch.where(mask, torch.randn(70, 136), -0.0).to(dtype)
    assert not triton_overfull(matrix)
    for row, column, value in ((0, 1, 1.0), (69, 135, float("nan")), (33, 60, -1e-3)):
        wrong = matrix.clone()
        wrong[row, column // 4 * 4 : column // 4 * 4 + 4] = value
        assert triton_overfull(wrong)
        assert overfull(wrong)
    assert triton_overfull(matrix[:0]).shape == overfull(matrix).shape == ()
