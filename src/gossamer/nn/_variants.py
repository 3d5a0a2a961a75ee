"""The ways to run one layer that measurements compare: each a forward and a backward pass on the same kind of input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..topology import Support
from ._checks import unindexable
from .layer_shape import LayerShape

DENSE = ("dense fp32", "dense bf16", "masked", "hybrid", "hybrid rewired")  # those that hold the dense weight
_CHANNELS_LAST = ", channels_last"
_MODULES: dict[int, Any] = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d}


@dataclass(frozen=True)
class Pass:
    """forward() -> output; backward(output) computes the gradients of weight, bias and, in an inner layer, input."""

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], object]


def passes(shape: LayerShape, density: float, variants: Sequence[str]) -> tuple[dict[str, Pass], int]:
    """The named variants of a layer with random weights, and the bytes of the sparse index (0 without a sparse one).

    A convolution's dense variants come in both memory formats, the second one's name ending in ", channels_last".
    """
    if len(shape.weight) not in _MODULES:
        raise ConfigError(f"layer {shape}: no sparse layer has a kernel of {len(shape.size)} axes; leave it dense")
    if unfit := unindexable(shape.weight):
        raise ConfigError(f"layer {shape}: {unfit}")
    made: dict[str, Pass] = {}
    x, dense = torch.randn(shape.input_shape), None
    if set(variants) & set(DENSE):
        dense = _dense(shape)
    for name in variants:
        if name in ("dense fp32", "dense bf16"):
            assert dense is not None
            made |= _dense_passes(name, dense, x, shape)
        elif name == "masked":
            assert dense is not None
            made[name] = _masked(dense, x, shape, density)
        elif name in ("hybrid", "hybrid rewired"):
            assert dense is not None
            made[name] = _hybrid(dense, x, shape, density, rewired=name != "hybrid")
    layer = None
    if {"sparse", "packed"} & set(variants):
        layer = _sparse(shape, density)
        if "sparse" in variants:
            made["sparse"] = _module_pass(layer, x, shape)
        if "packed" in variants:
            made["packed"] = _packed(layer, x, shape)
    return made, 0 if layer is None else layer.index.nbytes


def base_name(name: str) -> str:
    """The variant that a name of `passes` belongs to."""
    return name.removesuffix(_CHANNELS_LAST)


def _dense(shape: LayerShape) -> nn.Module:
    rows, columns, *kernel = shape.weight
    if not kernel:
        return nn.Linear(columns, rows)
    return _MODULES[len(shape.weight)](columns * shape.groups, rows, tuple(kernel), **_geometry(shape))


def _geometry(shape: LayerShape) -> dict[str, Any]:
    given: dict[str, Any] = {key: getattr(shape, key) for key in ("stride", "padding", "dilation")}
    return {**given, "groups": shape.groups}


def _pass(call: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor], shape: LayerShape) -> Pass:
    """x is cloned, so that every variant has an input of its own and of its own memory format."""
    x = x.clone().requires_grad_(shape.inner)
    leaves = [*parameters, *([x] if shape.inner else [])]
    slope: list[Tensor] = []

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        if not slope:
            slope.append(torch.randn_like(y))
        return torch.autograd.grad(y, leaves, slope[0])

    return Pass(lambda: call(x), backward)


def _module_pass(module: nn.Module, x: Tensor, shape: LayerShape) -> Pass:
    return _pass(module, x, list(module.parameters()), shape)


def _dense_passes(name: str, dense: nn.Module, x: Tensor, shape: LayerShape) -> dict[str, Pass]:
    """In both memory formats where there are two; in bfloat16 throughout for "dense bf16"."""
    dtype = torch.bfloat16 if name == "dense bf16" else torch.float32
    module = _copy(dense, shape).to(dtype)
    made = {name: _module_pass(module, x.to(dtype), shape)}
    if len(shape.size) == 2:
        other = _copy(dense, shape).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        made[name + _CHANNELS_LAST] = _module_pass(other, x, shape)
    return made


def _copy(dense: nn.Module, shape: LayerShape) -> nn.Module:
    module = _dense(shape)
    module.load_state_dict(dense.state_dict())
    return module


def _mask(shape: LayerShape, density: float) -> Tensor:
    return torch.rand(shape.weight) < density


def _masked(dense: nn.Module, x: Tensor, shape: LayerShape, density: float) -> Pass:
    """What masked execution does in a layer: dense kernels on a weight with zeros, and the gate of its gradient."""
    module, mask = _copy(dense, shape), _mask(shape, density)
    weight = module.get_parameter("weight")
    with torch.no_grad():
        weight.masked_fill_(~mask, 0.0)
    weight.register_hook(lambda gradient: torch.where(mask, gradient, 0.0))
    return _module_pass(module, x, shape)


def _hybrid(dense: nn.Module, x: Tensor, shape: LayerShape, density: float, *, rewired: bool) -> Pass:
    """rewired: the support is a new one in every forward pass, so that its index is made anew."""
    from .hybrid import HybridConv2d, HybridLinear

    kind: Any = {2: HybridLinear, 4: HybridConv2d}.get(len(shape.weight))
    if kind is None:
        raise ConfigError(f"layer {shape}: there is no hybrid layer with a kernel of one axis; leave it masked")
    module, mask = _copy(dense, shape), _mask(shape, density)
    with torch.no_grad():
        module.get_parameter("weight").masked_fill_(~mask, 0.0)
    layer = kind.from_dense(module, Support.from_mask(mask))

    def call(x: Tensor) -> Tensor:
        if rewired:
            layer.set_support(mask)
        return layer(x)

    return _pass(call, x, list(layer.parameters()), shape)


def _sparse(shape: LayerShape, density: float) -> Any:
    from . import SparseConv1d, SparseConv2d, SparseLinear

    rows, columns, *kernel = shape.weight
    if not kernel:
        return SparseLinear(columns, rows, density)
    kind: Any = SparseConv1d if len(kernel) == 1 else SparseConv2d
    return kind(columns * shape.groups, rows, tuple(kernel), density, **_geometry(shape))


def _packed(layer: Any, x: Tensor, shape: LayerShape) -> Pass:
    """The kernel alone, its input and output packed as they are between consecutive sparse layers."""
    from ..kernels import sparse

    rows = shape.weight[0]
    if not shape.size:
        return _pass(
            lambda packed: sparse.linear(packed, layer.values, layer.index, layer.bias, rows),
            sparse.pack(x),
            list(layer.parameters()),
            shape,
        )
    flat = len(shape.size) == 1  # a convolution of one axis is one of two axes of height 1
    weight = torch.Size((*shape.weight[:2], 1, shape.weight[2]) if flat else shape.weight)
    stride, padding, dilation = shape.stride, shape.padding, shape.dilation
    if flat:
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)

    def call(packed: Tensor) -> Tensor:
        return sparse.conv(
            packed, layer.values, layer.index, layer.bias, weight, stride, padding, dilation, shape.groups
        )

    return _pass(call, sparse.pack(x.unsqueeze(2) if flat else x), list(layer.parameters()), shape)
