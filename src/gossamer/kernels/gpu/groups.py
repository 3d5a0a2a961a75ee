"""Whether a matrix on a GPU is 2:4, in one read of it: what packing checks in every step must not cost one."""

from __future__ import annotations

import torch
from torch import Tensor

from .runtime import device_of

BLOCK = 1024  # groups of a program


def triton_overfull(matrix: Tensor) -> Tensor:
    """A bool without dimensions: whether a group of four along the columns has more than two that are not zero.

    matrix: contiguous (rows, columns) of floating point, columns divisible by 4; NaN is not zero.
    """
    from .device import groups as device

    flag, groups = torch.zeros((), dtype=torch.int32, device=matrix.device), matrix.numel() // 4
    if groups:
        with device_of(matrix):
            device.note_overfull[(-(-groups // BLOCK),)](matrix, flag, groups, BLOCK=BLOCK)
    return flag != 0
