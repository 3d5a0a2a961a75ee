"""Maximum pooling of packed images equals torch's on plain ones, bit for bit, its positions too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels import pooling, sparse

from .forcing import PATHS, forced

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


def both(x: Tensor, *window: object) -> None:
    plain = x.clone().requires_grad_()
    out, places = F.max_pool2d(plain, *window, return_indices=True)
    slope = torch.randn_like(out)
    out.backward(slope)
    packed, found = pooling.max_pool(sparse.pack(x), *window)
    dx = pooling.max_pool_backward(sparse.pack(slope), sparse.pack(x), found, *window)
    torch.testing.assert_close(sparse.unpack(packed, len(x)), out.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.movedim(-1, 1).flatten(0, 1)[: len(x)], places)
    torch.testing.assert_close(sparse.unpack(dx, len(x)), plain.grad)


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None)
@given(
    batch=st.integers(1, 20),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=pair,
    stride=pair,
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil=st.booleans(),
    pad=st.booleans(),
)
def test_any_window(
    path: str,
    batch: int,
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    ceil: bool,
    pad: bool,
) -> None:
    if any(d * (k - 1) >= s for d, k, s in zip(dilation, kernel, size, strict=True)):
        return
    x = torch.randint(-3, 3, (batch, channels, *size)).float()  # many ties
    with forced(path):
        both(x, kernel, stride, tuple(k // 2 if pad else 0 for k in kernel), dilation, ceil)


@pytest.mark.parametrize("path", PATHS)
def test_nan_wins_and_minus_infinity_loses_to_nothing(path: str) -> None:
    x = torch.randn(17, 2, 6, 6)
    x[3, 1, 2, 2], x[5], x[16, 0, 5, 5] = math.nan, -math.inf, math.inf
    with forced(path):
        both(x, (2, 2), (2, 2), (0, 0), (1, 1), False)
        both(x, (3, 3), (2, 2), (1, 1), (1, 1), True)
