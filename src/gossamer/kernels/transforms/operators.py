"""The torch operators of the transforms: kernels, shapes for tracing, derivatives and autocast."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ..cpu.library import Library, call, native, threads
from ..gpu import transforms as gpu
from . import reference
from .tables import tables

_REDUCED = (torch.float16, torch.bfloat16)
_library = torch.library.Library("gossamer", "FRAGMENT")
for _name in ("cosine", "hadamard"):
    _library.define(
        f"{_name}(Tensor x, Tensor? signs, int rows, int columns, int length, int axis, bool transposed) -> Tensor"
    )


def _shape(x: Tensor, signs: Tensor | None, sizes: tuple[int, int, int], axis: int, transposed: bool) -> list[Any]:
    """Shape of what comes out.

    Raises:
        ConfigError: axis, its length or the signs do not fit, or ``x`` is not of floating point.
    """
    rows, columns, _ = sizes
    if not -x.ndim <= axis < x.ndim:
        raise ConfigError(f"a transform along axis {axis} of a tensor of shape {tuple(x.shape)}, which has none")
    entries, results = (rows, columns) if transposed else (columns, rows)
    if x.shape[axis] != entries:
        raise ConfigError(
            f"a transform of {entries} to {results} entries along axis {axis} of a tensor of shape {tuple(x.shape)}: "
            f"that axis must have {entries}"
        )
    if not x.dtype.is_floating_point:
        raise ConfigError(f"a transform of {x.dtype} numbers; convert them to floating point, e.g. with x.float()")
    if signs is not None and signs.shape != (columns,):
        raise ConfigError(f"signs have shape {tuple(signs.shape)}, the transform has {columns} columns")
    shape = list(x.shape)
    shape[axis] = results
    return shape


def _like(x: Tensor, signs: Tensor | None, rows: int, columns: int, length: int, axis: int, transposed: bool) -> Tensor:
    return x.new_empty(_shape(x, signs, (rows, columns, length), axis, transposed))


def _plain(
    name: str, x: Tensor, signs: Tensor | None, sizes: tuple[int, int, int], axis: int, transposed: bool
) -> Tensor:
    if name == "hadamard":
        function = reference.hadamard
    else:
        function = reference.cosine_transposed if transposed else reference.cosine
    return reference.along(axis, x, function, None if signs is None else signs.to(x), sizes, transposed)


def _native(
    library: Library, name: str, x: Tensor, signs: Tensor | None, sizes: tuple[int, int, int], axis: int, back: bool
) -> Tensor:
    rows, columns, length = sizes
    y = x.new_empty(_shape(x, signs, sizes, axis, back))
    lead = axis % x.ndim
    outer, inner = math.prod(x.shape[:lead]), math.prod(x.shape[lead + 1 :])
    known = tables(length) if name == "cosine" else None
    numbers = (outer, inner, rows, columns, length, back, 0 if known is None else known.convolution)
    struct = ctypes.byref((ctypes.c_int64 * len(numbers))(*numbers))
    given = x, None if signs is None else signs.to(x), y, struct
    if known is None:
        call(library.hadamard, *given, threads())
    else:
        call(library.cosine, *given, known.factors, known.numbers, threads())
    return y


def _register(name: str) -> None:
    def compute(
        x: Tensor, signs: Tensor | None, rows: int, columns: int, length: int, axis: int, transposed: bool
    ) -> Tensor:
        sizes = rows, columns, length
        shape = _shape(x, signs, sizes, axis, transposed)
        if not x.numel():
            return x.new_empty(shape)
        if gpu.supported(x, length):
            return gpu.transform(name, x, signs, sizes, axis, transposed)
        if x.dtype in _REDUCED:
            return compute(x.float(), signs, *sizes, axis, transposed).to(x.dtype)
        library = native() if x.dtype == torch.float32 and x.device.type == "cpu" else None
        if library is None:
            return _plain(name, x, signs, sizes, axis, transposed)
        return _native(library, name, x, signs, sizes, axis, transposed)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.signs, *ctx.sizes, ctx.axis, ctx.transposed = inputs[1:]

    def derivative(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        operator = getattr(torch.ops.gossamer, name).default
        return operator(slope, ctx.signs, *ctx.sizes, ctx.axis, not ctx.transposed), *[None] * 6

    _library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gossamer::{name}", _like, lib=_library)
    torch.library.register_autograd(f"gossamer::{name}", derivative, setup_context=keep, lib=_library)
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"gossamer::{name}", device, torch.float32, lib=_library)


for _name in ("cosine", "hadamard"):
    _register(_name)
