"""What PyTorch's operators do to packed activations, below autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import pooling, sparse
from .packed import HANDLERS, Cell, Handler, PackedActivation, clear_padding

aten = torch.ops.aten
_LANES = sparse.LANES
_ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
    "tanh",
    "sigmoid",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "mish",
)
_ELEMENTWISE = (
    *_ACTIVATIONS,
    *(f"{name}_" for name in _ACTIVATIONS),
    *(f"{name}_backward" for name in _ACTIVATIONS if name != "relu"),
    *("threshold_backward", "softplus", "softplus_backward"),
    *("add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "neg_", "abs", "sgn", "pow"),
    *("exp", "log", "sqrt", "rsqrt", "sin", "cos", "clamp", "clamp_", "clamp_min", "clamp_max"),
    *("clone", "zeros_like", "ones_like", "full_like", "zero_", "fill_"),
)


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            packet = getattr(aten, name)
            for overload in packet.overloads():
                if "out" not in overload:
                    HANDLERS[getattr(packet, overload)] = handler
        return handler

    return register


def _like(packed: Tensor, x: PackedActivation) -> PackedActivation:
    """Wrap memory of another sample shape for the same batch."""
    shape = (*x.shape[: x.lead], *packed.shape[1:-1])
    return PackedActivation(Cell(packed.contiguous()), shape, x.lead)


def _is_packed(x: object) -> bool:
    return isinstance(x, PackedActivation) and x.cell.packed is not None


def _operand(value: Any, like: PackedActivation) -> Any:
    """An argument beside `like`, packed; NotImplemented if its entries do not lie beside those of `like`."""
    if not isinstance(value, Tensor) or (value.ndim == 0 and not isinstance(value, PackedActivation)):
        return value
    if value.shape != like.shape or value.dtype != like.dtype:
        return NotImplemented
    if isinstance(value, PackedActivation):
        return value.packed() if value.lead == like.lead else NotImplemented
    return sparse.pack(value.reshape(like.batch, *like.features))


@_handles(*_ELEMENTWISE)
def _elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    writes = func._schema.is_mutable
    like = args[0] if writes else next((a for a in args if _is_packed(a)), None)
    if like is None or not _is_packed(like):
        return NotImplemented
    operands = [_operand(value, like) for value in args]
    if any(value is NotImplemented for value in operands):
        return NotImplemented
    result = func(*operands, **{key: value for key, value in kwargs.items() if key != "memory_format"})
    if not writes:
        return _like(result, like)
    like.cell.plain = None
    if not like.cell.packed.is_inference():
        torch.autograd.graph.increment_version(like.cell.packed)  # kernels that saved it must notice
    return like


@_handles("detach", "alias")
def _alias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    return PackedActivation(x.cell, x.shape, x.lead)


@_handles("empty_like")
def _empty_like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Plain: what is drawn into it, by dropout, does not depend on the layout then."""
    settings = {"dtype": args[0].dtype, "device": args[0].device}
    return torch.empty(args[0].shape, **{key: kwargs.get(key) or value for key, value in settings.items()})


@_handles("view", "_unsafe_view")
def _view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same memory, as long as some leading dimensions hold the batch."""
    x, size = args[0], args[1]
    if not _is_packed(x) or not isinstance(size, list | tuple):
        return NotImplemented
    known = -math.prod(size) if -1 in size else 1
    size = [x.numel() // known if length == -1 else length for length in size]
    lead = next((i for i in range(1, len(size)) if math.prod(size[:i]) == x.batch), None)
    return NotImplemented if lead is None else PackedActivation(x.cell, size, lead)


def _padded(args: tuple[Any, ...], *defaults: Any) -> tuple[Any, ...]:
    """The arguments, those left out by their defaults."""
    return (*args, *defaults[len(args) :])


def _within_samples(x: Any, dims: Any) -> list[int] | None:
    """The dimensions of packed memory that `dims` of the activation are; None if they are not all of a sample."""
    if not _is_packed(x) or not dims:
        return None
    places = [dim % x.ndim - x.lead + 1 for dim in ([dims] if isinstance(dims, int) else dims)]
    return places if min(places) >= 1 else None


@_handles("mean", "sum")
def _reduce(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dims, keepdim = _padded(args, None, None, False)
    places = _within_samples(x, dims)
    if places is None or (not keepdim and len(places) == len(x.features)):
        return NotImplemented
    return _like(func(x.packed(), places, keepdim, **kwargs), x)


@_handles("expand")
def _expand(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, size = args[0], args[1]
    if not _is_packed(x) or len(size) != x.ndim or tuple(size[: x.lead]) != tuple(x.shape[: x.lead]):
        return NotImplemented
    return _like(x.packed().expand(-1, *size[x.lead :], -1), x)


def _normalisable(x: Any, training: bool) -> bool:
    """Whether batch norm may look at the packed memory: missing samples would count among those it averages."""
    return _is_packed(x) and x.lead == 1 and not (training and x.batch % _LANES)


@_handles("native_batch_norm")
def _batch_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, training = args[0], args[5]
    if not _normalisable(x, training):
        return NotImplemented
    out, *saved = func(x.packed(), *args[1:], **kwargs)
    return _like(out, x), *saved


@_handles("native_batch_norm_backward")
def _batch_norm_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    grad, x, training = args[0], args[1], args[7]
    if not _normalisable(x, training):
        return NotImplemented
    packed = _operand(grad, x)
    if packed is NotImplemented:
        return NotImplemented
    dx, *others = func(clear_padding(packed, x.batch), clear_padding(x.packed(), x.batch), *args[2:], **kwargs)
    return None if dx is None else _like(dx, x), *others


def _volume(sizes: Any, lane: int) -> list[int]:
    """A setting per axis of an image as one of a volume whose last axis are the lanes."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return [*(sizes * 2)[:2], lane] if sizes else []


def _window(kernel: Any, stride: Any = (), padding: Any = 0, *_: Any) -> tuple[list[int], list[int], list[int]]:
    return _volume(kernel, 1), _volume(stride, 1), _volume(padding, 0)


def _is_image(x: Any) -> bool:
    return _is_packed(x) and x.lead == 1 and x.ndim == 4


def _packed_gradient(grad: Tensor) -> Tensor:
    return grad.packed() if isinstance(grad, PackedActivation) else sparse.pack(grad)


def _pool_settings(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> list[Any]:
    """Two numbers each; torch takes the kernel where no stride is given."""
    pairs = [([each] * 2 if isinstance(each, int) else (list(each) * 2)[:2]) for each in (kernel, padding, dilation)]
    steps = [stride] * 2 if isinstance(stride, int) else (list(stride) * 2)[:2]
    return [pairs[0], steps or pairs[0], *pairs[1:], ceil]


@_handles("max_pool2d_with_indices")
def _max_pool(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *window = _padded(args, None, None, (), 0, 1, False)
    if not _is_image(x) or kwargs:
        return NotImplemented
    out, places = pooling.max_pool(x.packed(), *_pool_settings(*window))
    return _like(out, x), _like(places, x)


@_handles("max_pool2d_with_indices_backward")
def _max_pool_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    grad, x, *window, places = args
    if not _is_image(x) or not _is_packed(places):
        return NotImplemented
    settings = _pool_settings(*window)
    return _like(pooling.max_pool_backward(_packed_gradient(grad), x.packed(), places.packed(), *settings), x)


@_handles("avg_pool2d")
def _avg_pool(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *window = args
    if not _is_image(x) or kwargs:
        return NotImplemented
    return _like(aten.avg_pool3d(x.packed(), *_window(*window), *window[3:]), x)


@_handles("avg_pool2d_backward")
def _avg_pool_backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    grad, x, *window = args
    if not _is_image(x) or kwargs:
        return NotImplemented
    return _like(aten.avg_pool3d_backward(_packed_gradient(grad), x.packed(), *_window(*window), *window[3:]), x)
