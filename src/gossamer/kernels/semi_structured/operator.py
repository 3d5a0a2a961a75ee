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
    "semi_structured(Tensor x, Tensor weight, Tensor? bias, bool transposed, bool both, bool always) -> Tensor"
)
product: Callable[..., Tensor] = torch.ops.gossamer.semi_structured.default
"""x (samples, columns) -> (samples, rows): x W^T + b; transposed: (samples, rows) -> (samples, columns): x W.

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


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    matrix = weight.flatten(1).to(x.dtype)
    return x @ matrix if transposed else functional.linear(x, matrix, bias)


@torch.library.impl(_library, "semi_structured", "CPU")
def _emulated(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, both: bool, always: bool) -> Tensor:
    weight = weight.detach()
    if transposed and not both:
        return _dense(x, weight, bias, transposed)

    def make() -> Pack:
        matrix = weight.flatten(1).to(x.dtype)
        return Pack(*pack(matrix.t() if transposed else matrix))

    packed = pack_of(weight, (x.dtype, transposed), make)
    assert packed.places is not None
    return functional.linear(x, unpack(packed.values, packed.places), bias)


@torch.library.impl(_library, "semi_structured", "CUDA")
def _real(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, both: bool, always: bool) -> Tensor:
    weight = weight.detach()
    fits = both or not transposed
    algorithm = cusparselt.choice(len(x), x.dtype, weight, transposed, always=always) if fits else None
    if algorithm is None:
        return _dense(x, weight, bias, transposed)
    return cusparselt.product(x, weight, bias, transposed, algorithm)


@torch.library.register_fake("gossamer::semi_structured", lib=_library)
def _like(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, both: bool, always: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[transposed])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.transposed, *ctx.how = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
    ctx.biased = bias is not None


def _derivative(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
    dx = product(slope, weight, None, not ctx.transposed, *ctx.how) if to_x else None
    dweight = None
    if to_weight:
        dweight = x.t() @ slope if ctx.transposed else slope.t() @ x
        dweight = dweight.reshape(weight.shape).to(weight.dtype)
    return dx, dweight, slope.sum(0) if to_bias and ctx.biased else None, None, None, None


torch.library.register_autograd("gossamer::semi_structured", _derivative, setup_context=_keep, lib=_library)
