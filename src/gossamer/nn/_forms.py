"""What sparse and hybrid layers refuse alike: other modules, supports, places and tracers than they are made for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..errors import ConfigError
from ..topology import Support

Layer = TypeVar("Layer", bound=nn.Module)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_module(layer: type[nn.Module], module: object, dense: type[nn.Module]) -> None:
    """A layer takes over a dense module of exactly one class: a subclass may compute something else."""
    if type(module) is not dense:
        raise ConfigError(
            f"{layer.__name__} takes the place of a torch.nn.{dense.__name__}, of no subclass and of no other module; "
            f"got a {type(module).__name__}"
        )


def same_as(module: nn.Module, kind: type[Layer], without: Sequence[str] = ()) -> Layer:
    """A module of another class with the same Parameters, hooks and mode, and all attributes but some."""
    layer = kind.__new__(kind)
    state = {name: value for name, value in module.__dict__.items() if name not in without}
    layer.__dict__ = {name: copy.copy(value) if isinstance(value, dict) else value for name, value in state.items()}
    return layer


def check_support(support: object, shape: torch.Size) -> None:
    """A Support or a bool mask, of a weight of `shape`."""
    mask = isinstance(support, Tensor) and support.dtype == torch.bool
    if isinstance(support, Tensor) and not mask:
        raise ConfigError(f"the mask of a support is bool, got {support.dtype}; use mask.bool()")
    if not mask and not isinstance(support, Support):
        raise ConfigError(f"support is a {type(support).__name__}; expected a Support or a bool mask of shape {shape}")
    given = tuple(support.shape)  # type: ignore[attr-defined]
    if given != tuple(shape):
        raise ConfigError(f"the support has shape {given}, the weight has {tuple(shape)}")


def check_dtype(dtype: Any) -> None:
    """What values were asked to be; None is torch's default."""
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r}: a sparse layer holds floating point values; use e.g. torch.float32")


def check_place(device: Any, dtype: Any) -> None:
    """What a constructor or `from_coo` was asked for, before a tensor is made of it; None is torch's default."""
    check_dtype(dtype)
    try:
        kind = "cpu" if device is None else torch.device(device).type
    except (RuntimeError, TypeError):
        raise ConfigError(f"device={device!r} is no device; sparse layers are for the CPU, leave it out") from None
    if kind not in ("cpu", "meta"):
        raise ConfigError(
            f"device={str(device)!r}: a sparse layer cannot be there, its kernels are for the CPU; leave it out"
        )


def recorded(x: object) -> bool:
    """Whether a tracer of torch's older kinds writes down what is done with an input."""
    return not torch.compiler.is_compiling() and (torch.jit.is_tracing() or isinstance(x, fx.Proxy))


def refuse_tracers(x: object) -> None:
    """A trace would record the sizes of one batch as constants; compiling and exporting know better."""
    if recorded(x):
        raise ConfigError(
            "sparse layers cannot be recorded by torch.jit.trace, torch.fx.symbolic_trace or torch.onnx.export; use "
            'torch.export or torch.compile, or go back with gossamer.convert(model, layout="dense") first'
        )
