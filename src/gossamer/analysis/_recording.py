"""One forward pass through a float64 copy of a model, with what its modules receive and return."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from .. import distributed
from ..errors import ConfigError, GossamerError

Statistics = Literal["running", "batch"]


@dataclass
class Call:
    """One call of a module: the tensor it received and the one it returned, joined by an autograd graph."""

    name: str
    x: Tensor
    y: Tensor = field(init=False)


@dataclass(frozen=True)
class Recording:
    """The calls in the order in which they began, the inputs of the model and its output."""

    calls: list[Call]
    x: Tensor
    y: Tensor


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile.

    Raises:
        ConfigError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def frozen_copy(model: nn.Module, statistics: Statistics) -> nn.Module:
    """A copy in float64 and evaluation mode, whose batch norms use constants."""
    if any(distributed.is_sharded(tensor) for tensor in model.parameters()):
        raise ConfigError("the model is sharded (FSDP2): Jacobians need whole weights; measure an unsharded copy")
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be copied ({error}); Jacobians are taken on a copy, so that the model "
            "itself does not change"
        ) from error
    twin = twin.double().eval().requires_grad_(False)
    for module in twin.modules():
        if isinstance(module, _BatchNorm) and (statistics == "batch" or module.running_mean is None):
            module.register_forward_pre_hook(_take_statistics)
    return twin


def _take_statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Make the statistics of this batch the constants that an evaluating batch norm uses."""
    x = args[0].detach()
    over = [dim for dim in range(x.ndim) if dim != 1]
    module.running_mean, module.running_var = x.mean(over), x.var(over, correction=0)


@contextmanager
def apart() -> Iterator[None]:
    """Autograd on, whatever the caller has set, and the caller's random numbers, on every device, untouched."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # The fused attention kernels cannot be differentiated twice.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(cuda), sdpa_kernel(SDPBackend.MATH):
        yield


def record(model: nn.Module, inputs: Tensor, names: Mapping[nn.Module, str], statistics: Statistics) -> Recording:
    """Run a copy of `model` once and record the modules of `names`; to be called, and used, inside `apart`.

    Raises:
        ConfigError: the model does not take the inputs; they or what a module receives or returns cannot be
            differentiated; sharded weights.
    """
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"inputs is {type(inputs).__name__}; expected one tensor, (examples, ...); wrap a model that takes several"
        )
    if statistics not in ("running", "batch"):
        raise ConfigError(
            f"statistics={statistics!r}: expected 'running' (as in evaluation) or 'batch' (of the inputs)"
        )
    paths = {path: names[module] for path, module in model.named_modules() if module in names}
    twin = frozen_copy(model, statistics)
    calls: list[Call] = []
    for path, name in paths.items():
        _watch(name, twin.get_submodule(path), calls)
    x = inputs.detach().clone()
    if x.is_floating_point():
        x = x.double().requires_grad_()
    try:
        output = twin(x.clone())
    except (GossamerError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"{type(model).__name__} cannot run on one tensor of shape {tuple(inputs.shape)} and type {inputs.dtype}: "
            f"{why}"
        ) from error
    return Recording(calls, x, first_float(output, type(model).__name__))


def _watch(name: str, module: nn.Module, calls: list[Call]) -> None:
    """Append a Call per call of the module; from the second on, its name carries the number."""
    mine: list[Call] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        received = first_float([*args, *kwargs.values()], name)
        # Nothing but this call sees the recorded tensor, and an operation in place changes only the copy of it.
        x = received.clone() if received.requires_grad else received.clone().requires_grad_()
        given = x.clone()
        mine.append(Call(name if not mine else f"{name}#{len(mine) + 1}", x))
        calls.append(mine[-1])
        swap = {id(received): given}
        return tuple(swap.get(id(a), a) for a in args), {k: swap.get(id(a), a) for k, a in kwargs.items()}

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        mine[-1].y = first_float(output, name).clone()

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after)


def first_float(value: Any, name: str) -> Tensor:
    """The first floating-point tensor in a tensor, sequence or mapping, in depth-first order.

    Raises:
        ConfigError: there is none.
    """
    found = next((t for t in _tensors(value) if t.is_floating_point()), None)
    if found is None:
        raise ConfigError(
            f"{name} receives or returns no floating-point tensor: there is no Jacobian of it; choose other modules"
        )
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)
