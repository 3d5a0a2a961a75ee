"""The exact transposable 2:4 mask of a weight and the pruned weight, in one pass.

The pattern of every 4 x 4 tile is that of `kernels.patterns` over the magnitudes in float32, bit for
bit on every device: the same additions in the same order, the same ties. Weights must be finite, magnitudes below 4e37.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ..patterns import best_patterns
from .runtime import device_of, on_gpu

BLOCK = 128  # tiles of a program, one to a thread

_library = torch.library.Library("gossamer", "FRAGMENT")
_library.define(
    "transposable_prune(Tensor weight, Tensor? active, ScalarType dtype, bool with_mask) -> (Tensor, Tensor)"
)


def transposable_prune(
    weight: Tensor, active: Tensor | None = None, dtype: torch.dtype | None = None, with_mask: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the weight cast to ``dtype`` (default: its own) with +0 off the best mask, and the mask.

    weight: (out, in), both divisible by 4; active: bool of that shape, which stays in tiles where it is as good.
    Without ``with_mask`` the mask is empty. `torch._cslt_compress` packs what is returned, and its transpose.

    Raises:
        ConfigError: the weight is no contiguous matrix of floating point of up to 32 bits whose sides divide by 4, or
            the active mask does not fit.

    >>> transposable_prune(torch.arange(16.0).view(4, 4))[1].sum(0)
    tensor([2, 2, 2, 2])
    """
    found: tuple[Tensor, Tensor] = torch.ops.gossamer.transposable_prune(
        weight, active, dtype or weight.dtype, with_mask
    )
    return found


def _check(weight: Tensor, active: Tensor | None) -> None:
    fits = weight.dim() == 2 and not weight.shape[0] % 4 and not weight.shape[1] % 4 and weight.is_contiguous()
    if not fits or weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ConfigError(
            "transposable 2:4 needs a contiguous matrix of at most 32 bits whose sides divide by 4, got "
            f"{weight.dtype} of shape {tuple(weight.shape)}; leave such weights out with targets"
        )
    if active is not None and (
        active.shape != weight.shape or active.dtype != torch.bool or not active.is_contiguous()
    ):
        raise ConfigError(
            f"the active mask is {active.dtype} of shape {tuple(active.shape)}, the weight has {tuple(weight.shape)}; "
            "pass a contiguous bool mask of its shape"
        )


def _tiles(matrix: Tensor) -> Tensor:
    return matrix.view(matrix.shape[0] // 4, 4, -1, 4).transpose(1, 2).reshape(-1, 4, 4)


def reference_prune(
    weight: Tensor, active: Tensor | None, dtype: torch.dtype, with_mask: bool
) -> tuple[Tensor, Tensor]:
    """`transposable_prune` in plain torch."""
    down, across = (side // 4 for side in weight.shape)
    patterns = best_patterns(_tiles(weight.detach().float().abs()), None if active is None else _tiles(active))
    mask = patterns.view(down, across, 4, 4).transpose(1, 2).reshape(weight.shape)
    return torch.where(mask, weight, 0.0).to(dtype), mask if with_mask else mask.new_empty(0)


def triton_prune(weight: Tensor, active: Tensor | None, dtype: torch.dtype, with_mask: bool) -> tuple[Tensor, Tensor]:
    """`transposable_prune` by Triton."""
    pruned = torch.empty_like(weight, dtype=dtype)
    mask = torch.empty(weight.shape if with_mask else (0,), dtype=torch.bool, device=weight.device)
    prune_into(weight, active, pruned, mask)
    return pruned, mask


def prune_into(weight: Tensor, active: Tensor | None, pruned: Tensor, mask: Tensor) -> None:
    """The same into given tensors; an empty ``mask`` is left out."""
    from .device import transposable as device

    tiles = weight.numel() // 16
    flags = None if active is None else active.view(torch.int8)
    given = weight, flags, pruned, mask.view(torch.int8), tiles, weight.shape[1]
    with device_of(weight):
        device.prune[(-(-tiles // BLOCK),)](*given, MASKED=mask.numel() > 0, BLOCK=BLOCK)


def _prune(weight: Tensor, active: Tensor | None, dtype: torch.dtype, with_mask: bool) -> tuple[Tensor, Tensor]:
    _check(weight, active)
    run = triton_prune if on_gpu(weight, active) and weight.numel() else reference_prune
    return run(weight, active, dtype, with_mask)


def _like(weight: Tensor, active: Tensor | None, dtype: Any, with_mask: bool) -> tuple[Tensor, Tensor]:
    mask = weight.new_empty(weight.shape if with_mask else (0,), dtype=torch.bool)
    return torch.empty_like(weight, dtype=dtype), mask


_library.impl("transposable_prune", _prune, "CompositeExplicitAutograd")
torch.library.register_fake("gossamer::transposable_prune", _like, lib=_library)
