"""The torch operator `gossamer::offset`, alpha D x: it is told what D is made of, so that no graph holds D."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import ConfigError
from ..kernels.transforms import LinearMap
from ..offsets import ConvolutionMap, ConvolutionShape, Offset
from ..offsets._registry import REGISTRY

_library = torch.library.Library("gossamer", "FRAGMENT")
_library.define(
    "offset(Tensor x, Tensor? alpha, Tensor? seed, str kind, int[] shape, int[] how, bool packed, bool transposed, "
    "SymInt[] size) -> Tensor"
)
_offset: Callable[..., Tensor] = torch.ops.gossamer.offset.default

_kinds: dict[str, Offset] = {}  # by what `kind_of` calls them
_maps: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
_kept: dict[tuple[Any, ...], LinearMap | ConvolutionMap] = {}  # those of compiled graphs, where no layer holds them


def kind_of(offset: Offset) -> str:
    """The name by which the operator knows an offset from now on."""
    kind, number = repr(offset), 1
    while _kinds.setdefault(kind, offset) != offset:  # another class of that name: a notebook's cell that was run again
        number += 1
        kind = f"{offset!r} #{number}"
    return kind


def map_of(kind: str, shape: Sequence[int], how: Sequence[int], seed: int) -> LinearMap | ConvolutionMap:
    """The map of an offset, which all who ask share as long as one of them holds it.

    shape: that of the weight. how: of a convolution the numbers of stride, padding, dilation and groups, else empty.

    Raises:
        ConfigError: the graph of another process names an offset that this one has not met.
    """
    key = (kind, *shape, *how, seed)
    made = _maps.get(key)
    if made is None:
        offset = _find(kind)
        with torch.device("cpu"):  # whatever the default is where a layer is first used
            made = (
                offset.convolution(convolution_shape(shape, how), seed)
                if how
                else offset.linear(shape[0], shape[1], seed)
            )
        _maps[key] = made
    return made


def _find(kind: str) -> Offset:
    if kind not in _kinds:
        for named in REGISTRY.values():
            kind_of(named())
    if kind not in _kinds:
        raise ConfigError(
            f"this graph has an offset {kind} that is not known here; make one offset layer with it first"
        )
    return _kinds[kind]


def convolution_shape(shape: Sequence[int], how: Sequence[int]) -> ConvolutionShape:
    """Of the weight's shape and the numbers that `map_of` takes."""
    weight: Any = tuple(shape)
    return ConvolutionShape(weight, (how[0], how[1]), (how[2], how[3]), (how[4], how[5]), how[6])


def scaled(
    x: Tensor, alpha: Tensor, seed: Tensor | None, kind: str, shape: Sequence[int], how: Sequence[int], packed: bool
) -> Tensor:
    """alpha D x; differentiable in x and alpha, twice and in forward mode too.

    x: (..., columns) or images (batch, channels, height, width); packed: with the batch in tiles and lanes.
    alpha: (1,). seed: what a seeded offset is drawn from. kind, shape, how: see `map_of`.

    Keeps x only: the gradient of alpha is <D^T g, x>, and D^T g is needed for that of x anyway.
    """
    rest: Any = (seed, kind, shape, how, packed, False, [])
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return _offset(x, alpha, *rest)
    value, tangent = forward_ad.unpack_dual(x)
    y = _offset(value, None, *rest)
    return (y if tangent is None else forward_ad.make_dual(y, _offset(tangent, None, *rest))) * alpha


@torch.library.impl(_library, "offset", "CPU")
def _compute(
    x: Tensor,
    alpha: Tensor | None,
    seed: Tensor | None,
    kind: str,
    shape: list[int],
    how: list[int],
    packed: bool,
    transposed: bool,
    size: list[int],
) -> Tensor:
    if not x.numel():
        return _like(x, alpha, seed, kind, shape, how, packed, transposed, size).zero_()
    number = 0 if seed is None else int(seed)
    key = (kind, *shape, *how, number)
    made: Any = _maps.get(key)
    if made is None:
        made = _kept[key] = map_of(kind, shape, how, number)
    given = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
    act = made.transpose if transposed else made.apply
    if how:
        y = act(given, torch.Size(size)) if transposed else act(given)
    else:
        y = act(given, 1 if packed else -1)
    if y.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():  # of an offset that only moves entries
        y = y.clone()
    if alpha is not None:
        y = y.mul_(alpha)
    return y.to(x.dtype).contiguous()


@torch.library.register_fake("gossamer::offset", lib=_library)
def _like(
    x: Tensor,
    alpha: Tensor | None,
    seed: Tensor | None,
    kind: str,
    shape: Sequence[int],
    how: Sequence[int],
    packed: bool,
    transposed: bool,
    size: Sequence[int],
) -> Tensor:
    if how and transposed:
        return x.new_empty(size)
    out = list(x.shape)
    if not how:
        out[1 if packed else -1] = shape[transposed]
        return x.new_empty(out)
    out[1] = shape[0]
    for i in range(2):
        span = how[4 + i] * (shape[2 + i] - 1) + 1
        out[2 + i] = (out[2 + i] + 2 * how[2 + i] - span) // how[i] + 1
    return x.new_empty(out)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, alpha, seed, *ctx.rest, ctx.transposed, _ = inputs
    ctx.size = x.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, alpha, seed)


def _derivative(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
    x, alpha, seed = ctx.saved_tensors
    back = _offset(slope, None, seed, *ctx.rest, not ctx.transposed, ctx.size)
    to_alpha = None if x is None else _inner(back, x).to(x.dtype).view(1)
    if alpha is not None:
        back = back * alpha if torch.is_grad_enabled() else back.mul_(alpha)
    return (back, to_alpha, *(None,) * 7)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in (torch.bfloat16, torch.float16):
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1))


torch.library.register_autograd("gossamer::offset", _derivative, setup_context=_keep, lib=_library)
torch.library.register_autocast("gossamer::offset", "cpu", torch.float32, lib=_library)
