"""The largest magnitudes of dense weights, and their sparse view, in one native pass."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .cpu import library
from .gpu import threshold
from .gpu.runtime import on_gpu


def split(
    weights: Sequence[Tensor], active: Sequence[Tensor], views: Sequence[Tensor], count: int
) -> list[Tensor] | None:
    """Write the sparse view of the ``count`` largest ``|w|`` of all ``weights``, and return the masks of them.

    active: bool masks; of equal magnitudes those are chosen first. views: what is chosen of a weight is copied there,
    the rest becomes +0. All tensors of a weight have its shape; the masks returned are new, and exactly those of
    ``topology.rules.select_alive`` over the magnitudes. Per weight 4 bytes are read and 5 written, in one pass.

    A single weight on a CUDA device is split there, see `gpu.threshold`; then a value that is not finite counts as
    the largest, for finding one would make the host wait.

    None: nothing was decided, and the views hold anything. So it is where other tensors are not contiguous float32 on
    the CPU, without the native library, for values that are not finite, where very many magnitudes are equal, where one
    of several weights would be left without any and, rarely, when a sample of the weights misleads.
    """
    if len(weights) == 1 and on_gpu(*weights):
        return _split_on_gpu(weights[0], active[0], views[0], count)
    found = _split(weights, active, views, count)
    return None if found is None else found[0]


def _split_on_gpu(weight: Tensor, active: Tensor, view: Tensor, count: int) -> list[Tensor] | None:
    """The same without waiting for the device, so that a CUDA graph can capture it; what is not finite is not found."""
    plain = weight.dtype == view.dtype and weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
    together = all(tensor.is_contiguous() for tensor in (weight, active, view))
    if not plain or not together or not 0 < count <= weight.numel() <= threshold.MOST:
        return None
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    threshold.masked_into(weight, active, threshold.triton_key(weight, active, count), view, mask)
    return [mask]


def largest(values: Tensor, count: int, first: int | None = None) -> Tensor | None:
    """Return the mask of the ``count`` largest magnitudes of a vector; ties go to the ``first`` values (default: all).

    None: as `split`; or there are ties among the first that only an order of theirs could break. Of the others the
    lower number wins.
    """
    active = torch.zeros(values.shape, dtype=torch.bool)
    active[:first] = True
    found = _split([values], [active], [torch.empty_like(values)], count)
    return None if found is None or found[1] else found[0][0]


def _split(
    weights: Sequence[Tensor], active: Sequence[Tensor], views: Sequence[Tensor], count: int
) -> tuple[list[Tensor], bool] | None:
    """See `split`; and whether active entries of equal magnitudes were told apart by their positions."""
    native = library.native() if built() else None
    if native is None or not all(map(plain, (*weights, *views))) or not all(mask.is_contiguous() for mask in active):
        return None
    masks = [torch.empty(weight.shape, dtype=torch.bool) for weight in weights]
    sizes = (ctypes.c_int64 * len(weights))(*[weight.numel() for weight in weights])
    given = [_addresses(tensors) for tensors in (weights, active, views, masks)]
    outcome = native.split(len(weights), *given, sizes, count, native.isa.encode(), library.threads())
    return None if outcome < 0 else (masks, outcome > 0)


@functools.cache
def built() -> bool:
    """Without the library nobody is told that it is missing: this is only a faster way."""
    return library.path() is not None


def plain(tensor: Tensor) -> bool:
    """Whether the native code can take the tensor as it lies."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
