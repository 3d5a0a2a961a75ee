"""Running a model with other tensors in the place of its own; afterwards it is what it was, to the last attribute."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _NormBase

from ..targets import is_offset_layer

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
_NOT_ELEMENTWISE = {"GLU", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
_ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name not in _NOT_ELEMENTWISE)


@contextlib.contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters and buffers of these names are the given tensors, wherever the model holds them.

    Backward passes belong inside too: checkpointing runs modules again in them. Afterwards every module has the very
    parameters, buffers and attributes that it had, whatever a forward pass bound anew.
    """
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    others = {id(tensor): tensors[name] for name, tensor in named if name in tensors}
    before: list[tuple[nn.Module, dict[str, Any], tuple[dict[str, Any], ...]]] = [
        (m, dict(vars(m)), (dict(m._parameters.items()), dict(m._buffers.items()))) for m in model.modules()
    ]
    try:
        for module, _, held in before:
            for own, found in zip(_tensors(module), held, strict=True):
                for name, tensor in found.items():
                    own[name] = others.get(id(tensor), tensor)
        yield
    finally:
        for module, attributes, held in before:
            vars(module).clear()
            vars(module).update(attributes)
            for own, found in zip(_tensors(module), held, strict=True):
                for name in [name for name in own.keys() if name not in found]:  # noqa: SIM118 - TorchScript's has no iter
                    del own[name]
                for name, tensor in found.items():
                    own[name] = tensor


def _tensors(module: nn.Module) -> tuple[Any, Any]:
    return module._parameters, module._buffers


@contextlib.contextmanager
def evaluating(model: nn.Module, train_norm: bool) -> Iterator[None]:
    """Evaluation mode, but for batch norm where asked, and only what can be differentiated twice.

    Modes are put back by `substituted`, around it.
    """
    for module in model.modules():
        module.training = train_norm and isinstance(module, _NormBase)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and it takes seconds to import
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def noting_graphs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, bool]]:
    """Which of the modules run inside, and whether autograd was on in any of their calls."""
    ran: dict[nn.Module, bool] = {}

    def note(module: nn.Module, args: Any) -> None:
        ran[module] = ran.get(module, False) or torch.is_grad_enabled()

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def make_linear(model: nn.Module, passed: tuple[type[nn.Module], ...] = ()) -> None:
    """Let normalisation, elementwise activations and `passed` return their input; `substituted` puts them back."""
    for module in model.modules():
        if isinstance(module, (*_NORMS, *_ACTIVATIONS, *passed)):
            vars(module)["forward"] = _same


def _same(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input


class OffsetLayer(Protocol):
    """A layer that computes with alpha D + S, seen from below: `gossamer.nn.OffsetLinear` and its like."""

    sparse: nn.Module

    def effective_weight(self) -> Tensor:
        """alpha D + S, of the shape of S."""


def offset_layer(model: nn.Module, weight: str) -> OffsetLayer | None:
    """The layer whose S the model holds under that name, None if the weight is added to no offset."""
    path = f".{weight}".removesuffix(".sparse.weight")
    found = None if path == f".{weight}" else model.get_submodule(path.removeprefix("."))
    return found if found is not None and is_offset_layer(found) else None  # type: ignore[return-value]


def leave_out_offsets(layers: Iterable[OffsetLayer]) -> None:
    """Let offset layers compute with what is in the place of S alone; `substituted` puts D back."""
    for layer in layers:
        vars(layer)["forward"] = layer.sparse
