"""Selection by magnitude on the device: exactly count, in the order of `select_top`, wherever the sample lies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.kernels.gpu.threshold import magnitude_key, masked, reference_key, triton_key, triton_masked
from gossamer.topology import select_top

from .interpreted import interpreted

SAMPLE, BLOCK = 64, 256  # small, so that every step is taken
KINDS = ("normal", "ties", "zeros", "misleading", "half")


def weights(kind: str, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "ties":
        return torch.randint(-2, 3, (size,), generator=generator).float()
    if kind == "zeros":
        return torch.zeros(size)
    weight = torch.randn(size, generator=generator)
    if kind == "misleading":  # what is sampled says nothing of the rest
        weight[: size // 2] = 0.0
        weight[::7] = 1e9
    return weight.half() if kind == "half" else weight


def cases(size: int, kind: str, seed: int) -> tuple[Tensor, Tensor]:
    return weights(kind, size, seed), torch.rand(size, generator=torch.Generator().manual_seed(seed + 1)) < 0.4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(KINDS), st.booleans(), st.integers(0, 99))
def test_it_selects_what_select_top_selects(size: int, share: float, kind: str, known: bool, seed: int) -> None:
    weight, some = cases(size, kind, seed)
    active, count = some if known else None, round(share * size)
    (wanted,) = select_top([weight.abs()], count, None if active is None else [active])
    out, mask = masked(weight, magnitude_key(weight, active, count), active, torch.float32)
    assert torch.equal(mask, wanted)
    assert torch.equal(out, torch.where(wanted, weight, 0.0).float())


@interpreted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 100, 1500])
def test_the_kernels_select_the_same(size: int, kind: str) -> None:
    weight, some = cases(size, kind, 3)
    for count in {0, 1, size // 3, size - 1, size}:
        for active in (None, some):
            (wanted,) = select_top([weight.abs()], count, None if active is None else [active])
            key = triton_key(weight, active, count, SAMPLE, BLOCK)
            out, mask = triton_masked(weight, active, key, torch.float32, True)
            assert torch.equal(mask, wanted)
            assert torch.equal(out, torch.where(wanted, weight, 0.0).float())
    assert triton_masked(weight, None, key, torch.float32, False)[1].numel() == 0


@interpreted
def test_a_sample_that_misleads_costs_a_pass_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights("normal", 1500, 5)
    monkeypatch.setattr("gossamer.kernels.gpu.threshold._ranks", lambda share, sample: (3, 1))  # around the largest
    key = triton_key(weight, None, 700, SAMPLE, BLOCK)
    assert torch.equal(triton_masked(weight, None, key, weight.dtype, True)[1], select_top([weight.abs()], 700)[0])


def test_keys_are_those_of_the_last_entry() -> None:
    weight = torch.tensor([1.0, -2.0, 2.0, 0.0])
    keys = [int(reference_key(weight, None, count)) for count in range(5)]
    assert keys == sorted(keys, reverse=True)
    assert not bool(masked(weight, magnitude_key(weight, None, 0))[1].any())
    assert masked(weight, magnitude_key(weight, None, 1))[1].tolist() == [False, True, False, False]


def test_registration() -> None:
    weight, active = cases(20, "normal", 1)
    torch.library.opcheck(torch.ops.gossamer.magnitude_key.default, (weight, active, 7))
    key = magnitude_key(weight, active, 7)
    torch.library.opcheck(torch.ops.gossamer.masked.default, (weight, active, key, torch.bfloat16, True))


@pytest.mark.parametrize(
    ("weight", "active", "count", "message"),
    [
        (torch.zeros(3), None, 4, "cannot select 4 of 3 entries"),
        (torch.zeros(3, dtype=torch.float64), None, 1, "at most 32 bits, got torch.float64"),
        (torch.zeros(3, 2).t(), None, 1, "strides \\(1, 2\\)"),
        (torch.zeros(3), torch.zeros(3), 1, "active mask is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(weight: Tensor, active: Tensor | None, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        magnitude_key(weight, active, count)
