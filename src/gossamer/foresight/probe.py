"""A probe runs a model with other weights in the place of its own; the model itself is never written to."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import distributed
from ..errors import AttachError, ConfigError
from ..targets import canonical
from .examples import Examples, Ones, first_line, moved, pair
from .substitution import evaluating, leave_out_offsets, make_linear, noting_graphs, offset_layer, substituted

Tensors = dict[str, Tensor]
# of the largest gradient of the flow: softmax attention of small width reaches 0.06, what must be refused 0.16 to 1
_NEGATIVE = 0.1
_NOTHING = 1e-9  # of R: rounding


class Probe:
    """The model as objectives see it: weights under a mask, derivatives of scalars with respect to all of them.

    weights: name -> the initial weight of every target, dense; of one that is added to an offset it is alpha D + S, and
    the model computes with it as if there were no offset.
    masks: name -> bool, what is active in this round. carried: whether all weights are added to offsets: then signals
    pass where no weight is left.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        examples: Examples | None = None,
        ones: Ones | None = None,
        batches: int = 1,
    ):
        refuse_lazy(model)
        self.model = _unwrapped(model)
        self.weights = dict(weights)
        self.masks: Tensors = {}
        self.ones = ones
        self._examples, self._number = examples, batches
        self._batches = examples.endless() if examples else None
        names = {canonical(name): name for name, _ in self.model.named_parameters()}
        self._own = {name: names[name] for name in self.weights}  # canonical name -> name inside self.model
        layers = {name: layer for name, own in self._own.items() if (layer := offset_layer(self.model, own))}
        self.carried = layers.keys() == self.weights.keys()
        self._left_out = list(layers.values())
        self.weights |= {name: layer.effective_weight().detach() for name, layer in layers.items()}
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

    @contextlib.contextmanager
    def loss(self, batch: Any, leaves: Tensors, *, batch_norm: str, temperature: float = 1.0) -> Iterator[Tensor]:
        """The loss of a batch at given weights, with its graph; to be differentiated inside the context.

        batch_norm: "train" or "eval". temperature: what outputs are divided by. Dropout is off. Half precision is
        computed in float32.

        Raises:
            ConfigError: the loss is no number, or a weight runs without autograd.
        """
        assert self._examples is not None
        examples, dtype = self._examples, _wide(*(leaf.dtype for leaf in leaves.values()))
        # copies: a model may write to its input
        batch = moved(batch, lambda t: t.to(self.device, dtype if t.is_floating_point() else t.dtype, copy=True))
        mine = self._named(leaves, dtype)
        with substituted(self.model, self._rest(dtype) | mine), evaluating(self.model, batch_norm == "train"):
            leave_out_offsets(self._left_out)
            with _all_in_the_graph(self.model, mine):
                try:
                    output, target = examples.forward(self.model, batch)
                except ValueError as error:
                    if "more than 1 value per channel" not in str(error):
                        raise
                    raise ConfigError(
                        "batch norm cannot train on a batch of one value per channel; take larger batches of examples, "
                        'or batch_norm="eval"'
                    ) from error
                loss = examples.loss(_cooled(output, temperature), target)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ConfigError("the loss of the examples must be one number, a mean over the batch")
            yield loss.reshape(())

    def leaves(self) -> Tensors:
        """Fresh copies of the weights, zero off the masks, to differentiate with respect to; float32 at least."""
        return {
            name: torch.where(self.masks[name], w.detach(), 0.0).to(_wide(w.dtype)).requires_grad_()
            for name, w in self.weights.items()
        }

    @contextlib.contextmanager
    def flow(self, leaves: Tensors) -> Iterator[Tensor]:
        """R = 1^T f(1), where f is the model made linear and positive, at given weights; float64, with its graph.

        To be differentiated inside the context. Every other parameter and buffer is replaced by its absolute value,
        biases by zero; normalisation and elementwise activations do nothing.

        Raises:
            ConfigError: the model does not take ones of that shape.
        """
        assert self.ones is not None
        rest = {name: _positive(name, value) for name, value in self._rest(torch.float64).items()}
        mine = self._named(leaves, torch.float64)
        with substituted(self.model, rest | mine), evaluating(self.model, False):
            make_linear(self.model, self.ones.passed)
            leave_out_offsets(self._left_out)
            with _all_in_the_graph(self.model, mine):
                try:
                    output = self.model(self.ones.tensor(self.device))
                except (RuntimeError, ValueError, IndexError, TypeError) as error:
                    raise ConfigError(
                        f"the model does not take one example of ones of shape {self.ones.shape}"
                        f"{' as tokens' if self.ones.tokens else ''} ({first_line(error)}); pass its shape, "
                        "without the batch, as inputs="
                    ) from error
            if isinstance(output, tuple | list) and output:
                output = output[0]
            output = getattr(output, "logits", output)
            if not isinstance(output, Tensor):
                raise ConfigError(f"the model returns {type(output).__name__}; its flow needs one tensor of outputs")
            yield output.sum()

    def flow_gradients(self, leaves: Tensors) -> tuple[float, Tensors]:
        """R, and dR/d leaf of every active weight; zero elsewhere.

        Raises:
            ConfigError: R is no flow: gradients are negative beyond what attention's softmax does, or next to nothing.
        """
        with self.flow(leaves) as flow:
            found = gradients(flow, leaves)
        found = {name: torch.where(self.masks[name], value, 0.0) for name, value in found.items()}
        total = float(flow.detach())
        lows = {name: float(value.min()) for name, value in found.items() if value.numel()}
        largest = max((float(value.abs().max()) for value in found.values() if value.numel()), default=0.0)
        worst = min(lows, key=lows.__getitem__, default="")
        if worst and lows[worst] < -_NEGATIVE * largest:
            raise ConfigError(
                f"the flow through the network falls when weights of {worst} grow: a norm class of its own, a "
                "functional norm, a softmax or a subtraction is not linear and positive; use modules of torch.nn, "
                "leave it out of the model, or pass inputs=Ones(shape, passed=(MyNorm,))"
            )
        shares = [float((value * leaves[name].detach()).abs().sum()) for name, value in found.items()]
        if 0 < max(shares, default=0.0) < _NOTHING * abs(total):
            raise ConfigError(
                "the flow R through the network does not depend on the weights: leave out a softmax at the end"
            )
        return total, found

    def _named(self, leaves: Tensors, dtype: torch.dtype) -> Tensors:
        return {self._own[name]: value.to(dtype) for name, value in leaves.items()}

    def _rest(self, dtype: torch.dtype) -> Tensors:
        """Every other parameter and buffer, as copies, since a forward pass may write to them."""
        return {
            name: value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
            for name, value in self._others.items()
        }


@contextlib.contextmanager
def _all_in_the_graph(model: nn.Module, mine: Tensors) -> Iterator[None]:
    """Refuse a forward pass in which a module with one of these tensors runs without autograd: it would score zero."""
    names = {id(tensor): name for name, tensor in mine.items()}
    owners = {
        module: names[id(tensor)]
        for module in model.modules()
        for tensor in module._parameters.values()
        if id(tensor) in names
    }
    with noting_graphs(owners) as ran:
        yield
    for module, graph in ran.items():
        if not graph:
            raise ConfigError(
                f"{owners[module]} runs without gradients, so it cannot be scored: if it is checkpointed, use "
                "use_reentrant=False; else leave out torch.no_grad(), or the weight by targets="
            )


def gradients(scalar: Tensor, leaves: Tensors, *, create_graph: bool = False) -> Tensors:
    """d scalar / d leaf by name; zero where it does not depend on a leaf.

    Raises:
        ConfigError: it depends on none of them.
    """
    found: tuple[Tensor | None, ...] = ()
    if scalar.requires_grad:
        found = torch.autograd.grad(scalar, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    if all(grad is None for grad in found):
        raise ConfigError("the objective does not depend on any weight that is to be sparse: check forward and loss")
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


def _cooled(output: Any, temperature: float) -> Any:
    """Logits divided by a temperature."""
    if temperature == 1.0:
        return output
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"the output is {type(output).__name__}, not logits that a temperature can divide; give "
            "forward=lambda model, batch: (logits, target)"
        )
    return output / temperature


def refuse_lazy(model: nn.Module) -> None:
    """Raise ConfigError if the model has weights whose shapes are not known yet."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ConfigError(f"{name} is lazy and has no values to score yet; run the model on one batch first")


def _positive(name: str, value: Tensor) -> Tensor:
    """Its absolute value, zero for a bias. What masks attention with -inf stays as it is, and so do whole numbers."""
    if not value.is_floating_point():
        return value
    if "bias" in name.rsplit(".", 1)[-1]:
        return torch.zeros_like(value)
    return torch.where(value.isneginf(), value, value.abs())
