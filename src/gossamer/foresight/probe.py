"""A probe runs a model with other weights in the place of its own; the model itself is never written to."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _NormBase

from .. import distributed
from ..errors import AttachError, ConfigError
from ..targets import canonical
from .examples import Examples, Ones, moved, pair

Tensors = dict[str, Tensor]
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
_NOT_ELEMENTWISE = {"GLU", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
_ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name not in _NOT_ELEMENTWISE)


class Probe:
    """The model as objectives see it: weights under a mask, derivatives of scalars with respect to all of them.

    weights: name -> the initial weight of every target, dense. masks: name -> bool, what is active in this round.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        examples: Examples | None = None,
        ones: Ones | None = None,
        batches: int = 1,
    ):
        self.model = _unwrapped(model)
        self.weights = dict(weights)
        self.masks: Tensors = {}
        self.ones = ones
        self._examples, self._number = examples, batches
        self._batches = examples.endless() if examples else None
        names = {canonical(name): name for name, _ in self.model.named_parameters()}
        self._own = {name: names[name] for name in self.weights}  # canonical name -> name inside self.model
        mine = set(self._own.values())
        self._others: Tensors = {name: p for name, p in self.model.named_parameters() if name not in mine}
        self._others |= dict(self.model.named_buffers())
        for name, weight in self.weights.items():
            if weight.is_meta:
                raise AttachError(
                    f"{name} is on the meta device and has no values to score; materialise the model first"
                )
            if distributed.is_sharded(weight):
                raise AttachError(
                    f"{name} is sharded (FSDP2), and scores need whole weights: find the supports before fully_shard() "
                    "with gossamer.foresight.find() and pass init=Given(supports)"
                )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.weights.values())).device

    def agree(self) -> None:
        """Go on with rank 0's model: ranks may have initialised theirs differently. A collective."""
        if distributed.active():
            self.weights = {name: distributed.broadcast(w.detach().clone()) for name, w in self.weights.items()}
            self._others = {name: distributed.broadcast(w.detach().clone()) for name, w in self._others.items()}

    def batches(self) -> Iterator[Any]:
        """The next examples, as many as one gradient takes.

        Raises:
            ConfigError: there are none.
        """
        assert self._examples is not None
        assert self._batches is not None
        for _ in range(self._number):
            batch = next(self._batches)
            self.ones = self.ones or _ones_like(self._examples, batch)
            yield batch

    def loss(self, batch: Any, leaves: Tensors, *, batch_norm: str, temperature: float = 1.0) -> Tensor:
        """The loss of a batch at given weights, with its graph. batch_norm: "train" or "eval".

        temperature: what outputs are divided by. Dropout is off. Half precision is computed in float32.
        """
        assert self._examples is not None
        examples, dtype = self._examples, _wide(*(leaf.dtype for leaf in leaves.values()))
        batch = moved(batch, lambda t: _plain(t).to(self.device, dtype if t.is_floating_point() else t.dtype))
        with _running(self.model, batch_norm == "train"):
            substitute = _Substituted(self.model, {**self._rest(dtype), **self._named(leaves, dtype)})
            output, target = examples.forward(substitute, batch)
            if temperature != 1.0:
                if not isinstance(output, Tensor):
                    raise ConfigError(
                        f"the output is {type(output).__name__}, not logits that a temperature can divide; give "
                        "forward=lambda model, batch: (logits, target)"
                    )
                output = output / temperature
            loss = examples.loss(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ConfigError("the loss of the examples must be one number, a mean over the batch")
        return loss.reshape(())

    def leaves(self) -> Tensors:
        """Fresh copies of the weights, zero off the masks, to differentiate with respect to; float32 at least."""
        return {
            name: torch.where(self.masks[name], w.detach(), 0.0).to(_wide(w.dtype)).requires_grad_()
            for name, w in self.weights.items()
        }

    def flow(self, leaves: Tensors) -> Tensor:
        """R = 1^T f(1), where f is the model made linear and positive, at given weights; float64, with its graph.

        Every other parameter and buffer is replaced by its absolute value, biases by zero; normalisation and
        elementwise activations do nothing.

        Raises:
            ConfigError: the model does not take ones of that shape.
        """
        assert self.ones is not None
        rest = {name: _positive(name, value) for name, value in self._rest(torch.float64).items()}
        with _running(self.model, False), _linear(self.model):
            substitute = _Substituted(self.model, {**rest, **self._named(leaves, torch.float64)})
            try:
                output = substitute(self.ones.tensor(self.device))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ConfigError(
                    f"the model does not take one example of ones of shape {self.ones.shape}"
                    f"{' as tokens' if self.ones.tokens else ''} ({str(error).splitlines()[0]}); pass its shape, "
                    "without the batch, as inputs="
                ) from error
        if isinstance(output, tuple | list):
            output = output[0]
        output = getattr(output, "logits", output)
        if not isinstance(output, Tensor):
            raise ConfigError(f"the model returns {type(output).__name__}; its flow needs one tensor of outputs")
        return output.sum()

    def _named(self, leaves: Tensors, dtype: torch.dtype) -> Tensors:
        return {self._own[name]: value.to(dtype) for name, value in leaves.items()}

    def _rest(self, dtype: torch.dtype) -> Tensors:
        """Every other parameter and buffer, detached; buffers as copies, since a forward pass may write to them."""
        found = {n: v.detach() if isinstance(v, nn.Parameter) else v.detach().clone() for n, v in self._others.items()}
        return {n: value.to(dtype) if value.is_floating_point() else value for n, value in found.items()}


class _Substituted:
    """Calls a model with other parameters and buffers; what else is asked of it is the model's own."""

    def __init__(self, model: nn.Module, tensors: Tensors):
        self._model, self._tensors = model, tensors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._model, self._tensors, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def gradients(scalar: Tensor, leaves: Tensors, *, create_graph: bool = False) -> Tensors:
    """d scalar / d leaf by name; zero where it does not depend on a leaf.

    Raises:
        ConfigError: it depends on none of them.
    """
    if not scalar.requires_grad:
        raise ConfigError("the objective does not depend on any weight that is to be sparse: check forward and loss")
    found = torch.autograd.grad(scalar, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def _ones_like(examples: Examples, batch: Any) -> Ones | None:
    """An input of the examples' shape; None where what the model is given is not known without running it."""
    if examples.forward is not pair:
        return None
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else None
    if not isinstance(inputs, Tensor) or inputs.ndim < 2:
        return None
    return Ones(tuple(inputs.shape[1:]), tokens=not inputs.is_floating_point())


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel and torch.compile."""
    distributed.refuse(model)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    """The widest of them, float32 at least."""
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def _plain(value: Tensor) -> Tensor:
    """A tensor that autograd can save: one that was made in inference mode is copied."""
    return value.clone() if value.is_inference() else value


def _positive(name: str, value: Tensor) -> Tensor:
    """Its absolute value, zero for a bias. What masks attention with -inf stays as it is, and so do whole numbers."""
    if not value.is_floating_point():
        return value
    if "bias" in name.rsplit(".", 1)[-1]:
        return torch.zeros_like(value)
    return torch.where(value.isneginf(), value, value.abs())


@contextlib.contextmanager
def _running(model: nn.Module, train_norm: bool) -> Iterator[None]:
    """Evaluation mode, but for batch norm where asked, and only what can be differentiated twice; all is put back."""
    before = {module: module.training for module in model.modules()}
    recurrent = [module for module in before if isinstance(module, nn.RNNBase)]
    for module in before:
        module.training = train_norm and isinstance(module, _NormBase)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if "torch._dynamo" in sys.modules:  # else nothing is compiled, and it takes seconds to import
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        for module, training in before.items():
            module.training = training
        for module in recurrent:  # it keeps a list of the weights that it last ran with
            module._init_flat_weights()


@contextlib.contextmanager
def _linear(model: nn.Module) -> Iterator[None]:
    """Normalisation and elementwise activations return their input; also those that would write to it."""
    passed = [module for module in model.modules() if isinstance(module, (*_NORMS, *_ACTIVATIONS))]
    own = {module: vars(module)["forward"] for module in passed if "forward" in vars(module)}
    for module in passed:
        vars(module)["forward"] = _same
    try:
        yield
    finally:
        for module in passed:
            del vars(module)["forward"]
        for module, forward in own.items():
            vars(module)["forward"] = forward


def _same(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input
