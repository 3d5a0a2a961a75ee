"""Keeping entries is a select, whatever the type and layout."""

from __future__ import annotations

import pytest
import torch

from gossamer.masking import keep_on


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "slice"])
@pytest.mark.parametrize("in_place", [True, False])
def test_select_not_product(dtype: torch.dtype, layout: str, in_place: bool) -> None:
    g = torch.Generator().manual_seed(0)
    value = torch.randn(6, 4, 3, 5, generator=g).to(dtype)
    value = {
        "contiguous": lambda v: v,
        "transposed": lambda v: v.transpose(0, 1),
        "channels_last": lambda v: v.to(memory_format=torch.channels_last),
        "slice": lambda v: v[::2],
    }[layout](value)
    mask = torch.rand(value.shape, generator=g) < 0.4
    value[~mask] = (
        torch.tensor([torch.nan, torch.inf, -1.0, -0.0]).to(dtype).repeat(int((~mask).sum()))[: int((~mask).sum())]
    )
    expected = torch.where(mask, value, 0.0)
    out = value if in_place else torch.full_like(value, 7.0)
    keep_on(mask, value, out=out)
    assert torch.equal(out, expected)
    assert not torch.signbit(out[~mask]).any()
