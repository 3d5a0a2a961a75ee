"""The best 2:4 patterns of a dense weight in one native pass: along inputs, along outputs, or along both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cpu import library
from .gpu.runtime import on_gpu
from .gpu.transposable import prune_into
from .select import built

GROUP = 4
ALONG = {"inputs": 0, "outputs": 1, "both": 2}
_EXACT = (torch.float32, torch.float16, torch.bfloat16)  # in float32


def best_patterns(
    scores: Tensor,
    n: int,
    along: str,
    active: Tensor | None = None,
    *,
    magnitudes: bool = False,
    view: Tensor | None = None,
) -> Tensor | None:
    """Return the bool mask of the ``n`` best of every four consecutive entries of a weight (out, in, *kernel).

    along: "inputs", "outputs" or "both", at a fixed kernel position; "both" is 2:4 alone. active: bool mask; ties are
    decided as `topology.NM` and `kernels.patterns` say, to the bit. magnitudes: compare ``|s|``.
    view: what is chosen of the scores is written there, +0 elsewhere.

    On the CPU float16 and bfloat16 scores, and strided ones, are copied to contiguous float32 first, which is exact. On
    a GPU it is for 2:4 along both of a matrix, by magnitude; then scores that are not finite are not found, for that
    would make the host wait.

    None: nothing was decided, and the view holds anything. So it is for other types and devices, without the native
    library, where four does not divide, and for scores that are not finite.
    """
    if along == "both" and magnitudes and on_gpu(scores, active) and _tiled(scores, active, view):
        mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
        prune_into(scores, active, torch.empty_like(scores) if view is None else view, mask)
        return mask
    native = library.native() if built() else None
    if native is None or not _on_cpu(scores, active, view) or scores.dim() < 2:
        return None
    if (along != "inputs" and scores.shape[0] % GROUP) or (along != "outputs" and scores.shape[1] % GROUP):
        return None
    values, known = scores.to(torch.float32).contiguous(), None if active is None else active.contiguous()
    in_the_pass = view if values is scores and view is not None and view.is_contiguous() else None
    mask = torch.empty(scores.shape, dtype=torch.bool)
    addresses = [None if each is None else each.data_ptr() for each in (values, known, mask, in_the_pass)]
    shape = (*scores.shape[:2], math.prod(scores.shape[2:]))
    if not native.patterns(*addresses, *shape, ALONG[along], n, magnitudes, library.threads()):
        return None
    if view is not None and in_the_pass is None:
        torch.where(mask, scores, scores.new_zeros(()), out=view)
    return mask


def _on_cpu(scores: Tensor, active: Tensor | None, view: Tensor | None) -> bool:
    """Whether the native code can be given the scores, and the others are what they should be beside them."""
    wanted = ((scores, scores.dtype), (active, torch.bool), (view, scores.dtype))
    return scores.dtype in _EXACT and all(
        each is None or (each.device.type == "cpu" and each.dtype == dtype and each.shape == scores.shape)
        for each, dtype in wanted
    )


def _tiled(scores: Tensor, *others: Tensor | None) -> bool:
    """Whether the GPU's kernel takes them."""
    plain_type = scores.dtype in _EXACT
    whole = scores.dim() == 2 and scores.shape[0] % GROUP == scores.shape[1] % GROUP == 0 and scores.numel() > 0
    return plain_type and whole and all(each is None or each.is_contiguous() for each in (scores, *others))
