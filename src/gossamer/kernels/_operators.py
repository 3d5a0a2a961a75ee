"""The torch operators `gossamer::*`: kernels, shapes for tracing, derivatives and autocast."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from . import reference
from .cpu.library import Library, call, native, threads

LANES = 16
_COPIED = 2**18  # points of one channel that a native kernel may copy at a time whatever the image
_library = torch.library.Library("gossamer", "DEF")
_library.define("pack(Tensor x) -> Tensor")
_library.define("unpack(Tensor packed, SymInt batch) -> Tensor")
_library.define("linear(Tensor x, Tensor values, Tensor index, Tensor? bias, int rows) -> Tensor")
_library.define(
    "linear_backward(Tensor x, Tensor values, Tensor index, Tensor dy, bool to_x, bool to_values) -> (Tensor, Tensor)"
)
_GEOMETRY = "int[] shape, int[] stride, int[] padding, int[] dilation, int groups"
_library.define(f"conv(Tensor x, Tensor values, Tensor index, Tensor? bias, {_GEOMETRY}) -> Tensor")
_library.define(
    f"conv_backward(Tensor x, Tensor values, Tensor index, Tensor dy, {_GEOMETRY}, bool to_x, bool to_values) "
    "-> (Tensor, Tensor)"
)

pack: Callable[[Tensor], Tensor] = torch.ops.gossamer.pack.default
unpack: Callable[[Tensor, int], Tensor] = torch.ops.gossamer.unpack.default
linear: Callable[..., Tensor] = torch.ops.gossamer.linear.default
conv: Callable[..., Tensor] = torch.ops.gossamer.conv.default


def _native_for(*tensors: Tensor | None) -> Library | None:
    """The native library if it can compute with these tensors."""
    floats = [t for t in tensors if t is not None]
    if any(t.dtype != floats[0].dtype for t in floats):
        raise ConfigError(
            f"a sparse layer got {floats[0].dtype} activations and {floats[1].dtype} values; convert one of them, e.g. "
            "with layer.to(dtype)"
        )
    return native() if floats[0].dtype == torch.float32 else None


def _check_sizes(rows: int, bias: Tensor | None) -> None:
    """Kernels read as many biases as there are rows."""
    if bias is not None and bias.shape != (rows,):
        raise ConfigError(f"bias has shape {tuple(bias.shape)}, the sparse layer has {rows} outputs")


def _kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _library.impl(name, function, "CPU")
        return function

    return register


def _shapes(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return torch.library.register_fake(f"gossamer::{name}", lib=_library)


# -- packing --


@_kernel("pack")
def _pack(x: Tensor) -> Tensor:
    library = _native_for(x)
    if library is None:
        return reference.pack(x)
    out, batch = _packed_like(x), x.shape[0]
    if x.numel():
        call(library.pack, x, out, batch, x.numel() // batch, threads())
    return out


@_shapes("pack")
def _packed_like(x: Tensor) -> Tensor:
    return x.new_empty((-(-x.shape[0] // LANES), *x.shape[1:], LANES))


@_kernel("unpack")
def _unpack(packed: Tensor, batch: int) -> Tensor:
    library = _native_for(packed)
    if library is None:
        return reference.unpack(packed, batch)
    out = _unpacked_like(packed, batch)
    if out.numel():
        call(library.unpack, packed, out, batch, out.numel() // batch, threads())
    return out


@_shapes("unpack")
def _unpacked_like(packed: Tensor, batch: int) -> Tensor:
    return packed.new_empty((batch, *packed.shape[1:-1]))


def _keep_batch(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.batch = inputs[0].shape[0]


torch.library.register_autograd(
    "gossamer::pack", lambda ctx, grad: unpack(grad, ctx.batch), setup_context=_keep_batch, lib=_library
)
torch.library.register_autograd("gossamer::unpack", lambda ctx, grad: (pack(grad), None), lib=_library)


# -- linear --


@_kernel("linear")
def _linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    _check_sizes(rows, bias)
    library = _native_for(x, values, bias)
    if library is None:
        return reference.linear_forward(index, values, bias, x, rows)
    y = _linear_like(x, values, index, bias, rows)
    call(library.linear_forward, index, values, bias, x, y, x.shape[0], threads())
    return y


@_shapes("linear")
def _linear_like(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty((x.shape[0], rows, LANES))


@_kernel("linear_backward")
def _linear_backward(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    library = _native_for(x, values, dy)
    if library is None:
        return reference.linear_backward(index, values, x, dy, to_x, to_values)
    dx, dvalues = _backward_like(x, values, index, dy, to_x, to_values)
    if not x.shape[0]:
        return dx, dvalues.zero_()
    outputs = dx if to_x else None, dvalues if to_values else None
    call(library.linear_backward, index, values, x, dy, *outputs, x.shape[0], threads())
    return dx, dvalues


@_shapes("linear_backward")
def _backward_like(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, to_x: bool, to_values: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if to_x else (0,)), values.new_empty(values.shape if to_values else (0,))


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _linear_derivative(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, values, index = ctx.saved_tensors
    to_x, to_values, _, to_bias = ctx.needs_input_grad[:4]
    dx, dvalues = torch.ops.gossamer.linear_backward(x, values, index, dy, to_x, to_values)
    return dx if to_x else None, dvalues if to_values else None, None, dy.sum(0).sum(1) if to_bias else None, None


torch.library.register_autograd("gossamer::linear", _linear_derivative, setup_context=_keep_linear, lib=_library)


# -- convolution --


def _geometry(x: Tensor, shape: Sequence[int], how: Sequence[Any]) -> list[int]:
    """The fields of `Geometry` in cpu/native/kernels.h. how: stride, padding, dilation, groups."""
    stride, padding, dilation, groups = how
    out = [
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, taps, jump, pad, step in zip(x.shape[2:4], shape[2:], stride, padding, dilation, strict=True)
    ]
    return [*x.shape[:4], shape[0], *shape[2:], *stride, *padding, *dilation, groups, *out]


def spread(size: Sequence[int], taps: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether taps lie so far apart that what one row of output reads is too much for native kernels to copy.

    They cannot report that there is no memory for it. size, taps: heights and widths, of the image and of the kernel.
    """
    rows, columns = ((count - 1) * step + 1 for count, step in zip(taps, dilation, strict=True))
    return rows * (size[1] + 2 * padding[1] + columns) > max(_COPIED, 4 * size[0] * size[1])


def _as_struct(geometry: Sequence[int]) -> Any:
    return ctypes.byref((ctypes.c_int64 * len(geometry))(*geometry))


@_kernel("conv")
def _conv(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, shape: list[int], *how: Any) -> Tensor:
    _check_sizes(shape[0], bias)
    library = _native_for(x, values, bias)
    if library is None or spread(x.shape[2:4], shape[2:], *how[1:3]):
        return reference.conv_forward(index, values, bias, x, shape, *how)
    y = _conv_like(x, values, index, bias, shape, *how)
    if y.numel():
        call(library.conv_forward, index, values, bias, x, y, _as_struct(_geometry(x, shape, how)), threads())
    return y


@_shapes("conv")
def _conv_like(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, shape: Sequence[int], *how: Any
) -> Tensor:
    geometry = _geometry(x, shape, how)
    return x.new_empty((x.shape[0], shape[0], *geometry[-2:], LANES))


@_kernel("conv_backward")
def _conv_backward(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, shape: list[int], *rest: Any
) -> tuple[Tensor, Tensor]:
    *how, to_x, to_values = rest
    library = _native_for(x, values, dy)
    if library is None or spread(x.shape[2:4], shape[2:], *how[1:3]):
        return reference.conv_backward(index, values, x, dy, shape, *how, to_x, to_values)
    dx, dvalues = _backward_like(x, values, index, dy, to_x, to_values)
    if not dy.numel():
        return dx.zero_(), dvalues.zero_()
    outputs = dx if to_x else None, dvalues if to_values else None
    geometry = _as_struct(_geometry(x, shape, how))
    call(library.conv_backward, index, values, x, dy, *outputs, geometry, threads())
    return dx, dvalues


@_shapes("conv_backward")
def _conv_backward_like(
    x: Tensor, values: Tensor, index: Tensor, dy: Tensor, shape: Sequence[int], *how: Any
) -> tuple[Tensor, Tensor]:
    return _backward_like(x, values, index, dy, *how[-2:])


def _keep_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[4:]


def _conv_derivative(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, index = ctx.saved_tensors
    to_x, to_values, _, to_bias = ctx.needs_input_grad[:4]
    dx, dvalues = torch.ops.gossamer.conv_backward(x, values, index, dy, *ctx.geometry, to_x, to_values)
    dbias = dy.sum((0, 2, 3, 4)) if to_bias else None
    return dx if to_x else None, dvalues if to_values else None, None, dbias, None, None, None, None, None


torch.library.register_autograd("gossamer::conv", _conv_derivative, setup_context=_keep_conv, lib=_library)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    raise RuntimeError("sparse products have no second derivative; compute it with the dense form of the layer")


for _name in ("linear_backward", "conv_backward"):
    torch.library.register_autograd(f"gossamer::{_name}", _no_second_derivative, lib=_library)
for _name in ("pack", "unpack", "linear", "conv"):
    torch.library.register_autocast(f"gossamer::{_name}", "cpu", torch.float32, lib=_library)
