"""Whether a matrix is 2:4, in one read of it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def note_overfull(matrix, flag, groups, BLOCK: tl.constexpr):
    """Set the flag where a group of four consecutive entries has more than two that are not zero."""
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    value = tl.load(matrix + at, mask=(group < groups)[:, None], other=0.0).to(tl.float32)
    held = tl.sum((value != 0.0).to(tl.int32), 1)
    if tl.max(held, 0) > 2:
        tl.store(flag, 1)
