"""The torch operator `gossamer::semi_structured`: it takes the dense weight, so that no graph holds a packed one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import cusparselt
from .layout import pack, unpack
from .packs import Pack, pack_of

_library = torch.library.Library("gossamer", "FRAGMENT")
_library.define(
    "semi_structured(Tensor x, Tensor weight, Tensor? bias, int axis, bool transposed, bool both, bool always) "
    "-> Tensor"
)
product: Callable[..., Tensor] = torch.ops.gossamer.semi_structured.default
"""x W^T + b along an axis of x, which has `columns` entries there and the result `rows`; transposed: x W, from `rows`
entries to `columns`.

weight: (rows, columns, *ones), 2:4 along its rows, of any floating point type; the product is of the type of x.
both: 2:4 along its columns too; otherwise transposed products are dense. always: do so even where it does not pay.

Derivatives, of any order: of x the other product, of the weight the dense one, at zeros too (straight through).

Raises ConfigError where the weight is not 2:4; on a CUDA device the result is NaN then, since nobody waits for it.
"""


def pays(samples: int, dtype: torch.dtype, weight: Tensor) -> bool:
    """Whether x W^T with a weight on a CUDA device is expected to be faster packed, packing included.

    samples, dtype: of x.
    """
    return cusparselt.choice(samples, dtype, weight.detach(), False, always=False) is not None


def _along(product_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a function of (samples, entries) one of any shape.

    Its result is no view to autograd: in-place operations on a view would lose the hooks of FSDP2.
    """

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, axis: int, *how: bool) -> Tensor:
        lead = x.movedim(axis, -1).shape[:-1]
        y = product_of(_rows(x, axis), weight.detach(), bias, *how)
        seen = y.view(*lead, y.shape[-1]).movedim(-1, axis)
        return y.new_empty(0).set_(y.untyped_storage(), y.storage_offset(), seen.shape, seen.stride())

    return compute


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    matrix = weight.flatten(1).to(x.dtype)
    return x @ matrix if transposed else functional.linear(x, matrix, bias)


def _emulated(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, both: bool, always: bool) -> Tensor:
    if transposed and not both:
        return _dense(x, weight, bias, transposed)

    def make() -> Pack:
        matrix = weight.flatten(1).to(x.dtype)
        return Pack(*pack(matrix.t() if transposed else matrix))

    packed = pack_of(weight, (x.dtype, transposed, 0), make)
    assert packed.places is not None
    return functional.linear(x, unpack(packed.values, packed.places), bias)


def _real(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, both: bool, always: bool) -> Tensor:
    fits = both or not transposed
    with torch.cuda.device(x.device):
        algorithm = cusparselt.choice(len(x), x.dtype, weight, transposed, always=always) if fits else None
        if algorithm is None:
            return _dense(x, weight, bias, transposed)
        return cusparselt.product(x, weight, bias, transposed, algorithm)


_library.impl("semi_structured", _along(_emulated), "CPU")
_library.impl("semi_structured", _along(_real), "CUDA")


@torch.library.register_fake("gossamer::semi_structured", lib=_library)
def _like(x: Tensor, weight: Tensor, bias: Tensor | None, axis: int, transposed: bool, *how: bool) -> Tensor:
    lead = x.movedim(axis, -1).shape[:-1]
    return x.new_empty(*lead, weight.shape[transposed]).movedim(-1, axis)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.axis, ctx.transposed, *ctx.how = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
    ctx.biased = bias is not None


def _derivative(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
    dx = product(slope, weight, None, ctx.axis, not ctx.transposed, *ctx.how) if to_x else None
    rows, dweight = _rows(slope, ctx.axis), None
    if to_weight:
        given = _rows(x, ctx.axis)
        dweight = given.t() @ rows if ctx.transposed else rows.t() @ given
        dweight = dweight.reshape(weight.shape).to(weight.dtype)
    return dx, dweight, rows.sum(0) if to_bias and ctx.biased else None, *(None,) * 4


def _rows(x: Tensor, axis: int) -> Tensor:
    """(samples, entries along the axis)."""
    last = x.movedim(axis, -1)
    return last.reshape(-1, last.shape[-1])


torch.library.register_autograd("gossamer::semi_structured", _derivative, setup_context=_keep, lib=_library)
