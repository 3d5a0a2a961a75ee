"""Exactly the ``count`` largest magnitudes of a weight, decided on the device: no host waits, a CUDA graph captures it.

Entries are ordered by magnitude, then active before inactive, then lower index, as in `topology.select_top`. The
position in that order is a whole number, the *key*; the key of the last chosen entry is all that selection has to find:

1. a sample gives two magnitudes that most likely enclose the wanted one;
2. one pass over the weight notes the positions of the entries between them, and counts those above;
3. if the sample misled, a second such pass takes everything;
4. passes over these few candidates settle the key, 10 bits at a time, by histograms;
5. `masked` compares each entry's key, in the pass that copies or casts the weight.

No result depends on the order in which programs run. Entries must not be NaN: it counts as the largest magnitude, for
finding out would make the host wait.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from .runtime import device_of, on_gpu

SAMPLE = 8192
BLOCK = 4096
PROGRAMS = 528  # of a pass over candidates: four on each multiprocessor of an H200
DIGIT = 10  # bits, as in device/threshold.py
DEVIATIONS = 4  # of the sample, on either side
MOST = 1 << 30  # entries
_NOTHING = torch.iinfo(torch.int64).max

_library = torch.library.Library("gossamer", "FRAGMENT")
_library.define("magnitude_key(Tensor weight, Tensor? active, int count) -> Tensor")
_library.define(
    "masked(Tensor weight, Tensor? active, Tensor key, ScalarType dtype, bool with_mask) -> (Tensor, Tensor)"
)


def magnitude_key(weight: Tensor, active: Tensor | None, count: int) -> Tensor:
    """Return the key of the last of the ``count`` largest magnitudes, int64 of shape (1,), on the weight's device.

    active: bool, of the weight's shape; of equal magnitudes those are chosen first.

    Raises:
        ConfigError: the weight is not contiguous floating point of up to 32 bits, the mask does not fit, or the count
            is out of range.

    >>> weight = torch.tensor([3.0, -1.0, 1.0, 0.5])
    >>> masked(weight, magnitude_key(weight, None, 2))[1]
    tensor([ True,  True, False, False])
    """
    key: Tensor = torch.ops.gossamer.magnitude_key(weight, active, count)
    return key


def masked(
    weight: Tensor, key: Tensor, active: Tensor | None = None, dtype: torch.dtype | None = None, with_mask: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the weight cast to ``dtype`` (default: its own) where it is chosen and +0 elsewhere, and the bool mask.

    key, active: of `magnitude_key`. Without ``with_mask`` the mask is empty: per entry of a float32 weight 4 bytes are
    then read and those of ``dtype`` written, what the cast alone would cost.

    Raises:
        ConfigError: as `magnitude_key`.
    """
    found: tuple[Tensor, Tensor] = torch.ops.gossamer.masked(weight, active, key, dtype or weight.dtype, with_mask)
    return found


def _check(weight: Tensor, active: Tensor | None, count: int = 0) -> None:
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16) or not weight.is_contiguous():
        raise ConfigError(
            f"selection by magnitude needs a contiguous weight of at most 32 bits, got {weight.dtype} of shape "
            f"{tuple(weight.shape)} and strides {weight.stride()}; use weight.float().contiguous()"
        )
    if active is not None and (
        active.shape != weight.shape or active.dtype != torch.bool or not active.is_contiguous()
    ):
        raise ConfigError(
            f"the active mask is {active.dtype} of shape {tuple(active.shape)}, the weight has {tuple(weight.shape)}; "
            "pass a contiguous bool mask of its shape"
        )
    if not 0 <= count <= weight.numel() or weight.numel() > MOST:
        raise ConfigError(f"cannot select {count} of {weight.numel()} entries (of at most {MOST})")


def _width(size: int) -> int:
    """Bits of an index."""
    return max(1, (size - 1).bit_length())


# -- reference --


def _keys(weight: Tensor, active: Tensor | None) -> Tensor:
    bits = weight.detach().float().view(torch.int32).view(-1).long() & 0x7FFFFFFF
    first = (bits << 1) | (0 if active is None else active.view(-1).long())
    size = weight.numel()
    return (first << _width(size)) + (size - 1 - torch.arange(size, device=weight.device))


def reference_key(weight: Tensor, active: Tensor | None, count: int) -> Tensor:
    """`magnitude_key` in plain torch, by sorting."""
    if not count:
        return torch.full((1,), _NOTHING, device=weight.device)
    return _keys(weight, active).sort(descending=True).values[count - 1 : count].clone()


def reference_masked(
    weight: Tensor, active: Tensor | None, key: Tensor, dtype: torch.dtype, with_mask: bool
) -> tuple[Tensor, Tensor]:
    """`masked` in plain torch."""
    chosen = (_keys(weight, active) >= key).view(weight.shape)
    return torch.where(chosen, weight, 0.0).to(dtype), chosen if with_mask else chosen.new_empty(0)


# -- Triton --


def triton_key(weight: Tensor, active: Tensor | None, count: int, sample: int = SAMPLE, block: int = BLOCK) -> Tensor:
    """`magnitude_key` by Triton."""
    if not count:
        return torch.full((1,), _NOTHING, device=weight.device)
    with device_of(weight):
        return _settled(weight, active, count, sample, block)


def _settled(weight: Tensor, active: Tensor | None, count: int, sample: int, block: int) -> Tensor:
    from .device import threshold as device

    size, key = weight.numel(), torch.empty(1, dtype=torch.int64, device=weight.device)
    width = _width(size)
    passes = -(-(31 + 1 + width) // DIGIT)
    state = torch.zeros(6, dtype=torch.int64, device=weight.device)
    digits = torch.empty((passes, 4), dtype=torch.int64, device=weight.device)
    counters = torch.zeros(4 + passes * (1 << DIGIT), dtype=torch.int32, device=weight.device)
    counts, inside = counters[4:], torch.empty(size, dtype=torch.int32, device=weight.device)
    if size >= 2 * sample:
        low, high = _ranks(count / size, sample)
        device.bracket[(1,)](weight, state, size, low, high, SAMPLE=sample, num_warps=16)
    else:
        state[1] = 0x7FFFFFFF
    blocks = (-(-size // block),)
    for again in (False, True):
        device.gather[blocks](weight, state, counters, inside, size, count, AGAIN=again, BLOCK=block, num_warps=8)
    flags = None if active is None else active.view(torch.int8)
    grid = (min(PROGRAMS, *blocks),)
    for number in range(passes):
        given = (weight, flags, state, inside, digits, counts, size)
        device.narrow[grid](*given, width=width, PASS=number, BLOCK=block, num_warps=8)
    device.finish[(1,)](state, digits, counts, key, width=width, PASSES=passes)
    return key


def _ranks(share: float, sample: int) -> tuple[int, int]:
    """Of the sample's magnitudes, in falling order: the numbers of the bracket's lower and upper end."""
    margin = DEVIATIONS * (math.sqrt(sample * share * (1 - share)) + 1)
    return math.ceil(share * sample + margin), math.floor(share * sample - margin)


def triton_masked(
    weight: Tensor, active: Tensor | None, key: Tensor, dtype: torch.dtype, with_mask: bool
) -> tuple[Tensor, Tensor]:
    """`masked` by Triton."""
    out = torch.empty_like(weight, dtype=dtype)
    mask = torch.empty(weight.shape if with_mask else (0,), dtype=torch.bool, device=weight.device)
    masked_into(weight, active, key, out, mask)
    return out, mask


def masked_into(weight: Tensor, active: Tensor | None, key: Tensor, out: Tensor, mask: Tensor) -> None:
    """The same into given tensors; an empty ``mask`` is left out."""
    from .device import threshold as device

    size = weight.numel()
    flags = None if active is None else active.view(torch.int8)
    given = weight, flags, key, out, mask.view(torch.int8), size
    grid = (-(-size // BLOCK),)
    with device_of(weight):
        device.keep[grid](*given, width=_width(size), MASKED=mask.numel() > 0, BLOCK=BLOCK, num_warps=8)


# -- operators --


def _key(weight: Tensor, active: Tensor | None, count: int) -> Tensor:
    _check(weight, active, count)
    return (triton_key if on_gpu(weight, active) else reference_key)(weight, active, count)


def _masked(
    weight: Tensor, active: Tensor | None, key: Tensor, dtype: torch.dtype, with_mask: bool
) -> tuple[Tensor, Tensor]:
    _check(weight, active)
    run = triton_masked if on_gpu(weight, active, key) and weight.numel() else reference_masked
    return run(weight, active, key, dtype, with_mask)


def _key_like(weight: Tensor, active: Tensor | None, count: int) -> Tensor:
    return weight.new_empty((1,), dtype=torch.int64)


def _masked_like(weight: Tensor, active: Tensor | None, key: Tensor, dtype: Any, with_mask: bool) -> Any:
    mask = weight.new_empty(weight.shape if with_mask else (0,), dtype=torch.bool)
    return torch.empty_like(weight, dtype=dtype), mask


_library.impl("magnitude_key", _key, "CompositeExplicitAutograd")
_library.impl("masked", _masked, "CompositeExplicitAutograd")
torch.library.register_fake("gossamer::magnitude_key", _key_like, lib=_library)
torch.library.register_fake("gossamer::masked", _masked_like, lib=_library)
