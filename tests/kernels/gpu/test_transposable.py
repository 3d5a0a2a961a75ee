"""Transposable 2:4 on the GPU equals the definition of the structure, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.kernels.gpu import transposable
from gossamer.kernels.gpu.transposable import reference_prune, transposable_prune, triton_prune
from gossamer.kernels.patterns import patterns

from .interpreted import interpreted


def weights(kind: str, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    if kind == "ties":
        return torch.randint(-2, 3, (rows, columns), generator=generator).float()
    if kind == "zeros":
        return -torch.zeros(rows, columns)
    scale = 1e-42 if kind == "tiny" else 1.0
    return scale * torch.randn(rows, columns, generator=generator)


def test_it_is_the_best_of_the_90_patterns() -> None:
    weight = weights("ties", 32, 48)
    pruned, mask = transposable_prune(weight)
    kept = pruned.abs().view(8, 4, 12, 4).sum((1, 3))
    by_pattern = torch.einsum("aibj,pij->abp", weight.abs().view(8, 4, 12, 4), patterns().float())
    assert torch.equal(kept, by_pattern.amax(2))
    assert torch.equal(pruned, torch.where(mask, weight, 0.0))
    for view in (mask, mask.t().contiguous()):
        assert bool((view.reshape(-1, 4).sum(1) == 2).all())


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "tiny"])
def test_the_kernel_gives_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    for rows, columns in ((4, 4), (20, 12), (64, 128)):
        weight = weights(kind, rows, columns).to(dtype)
        some = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        for active in (None, some, reference_prune(weights("normal", rows, columns), None, dtype, True)[1]):
            wanted, mask = reference_prune(weight, active, dtype, True)
            found, chosen = triton_prune(weight, active, dtype, True)
            assert torch.equal(chosen, mask)
            assert torch.equal(found, wanted)
    assert triton_prune(weight, None, dtype, False)[1].numel() == 0


def test_registration() -> None:
    weight = weights("normal", 8, 12)
    operator = torch.ops.gossamer.transposable_prune.default
    torch.library.opcheck(operator, (weight, weight > 0, torch.bfloat16, True))


@pytest.mark.parametrize(
    ("weight", "active", "message"),
    [
        (torch.zeros(4, 6), None, "sides divide by 4"),
        (torch.zeros(4, 8).t(), None, "contiguous matrix"),
        (torch.zeros(4, 4, dtype=torch.float64), None, "at most 32 bits"),
        (torch.zeros(4, 4), torch.zeros(4, 8, dtype=torch.bool), "active mask is torch.bool of shape \\(4, 8\\)"),
    ],
)
def test_what_does_not_fit_is_refused(weight: Tensor, active: Tensor | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transposable.transposable_prune(weight, active)
