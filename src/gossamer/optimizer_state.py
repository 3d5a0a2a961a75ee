"""Optimizer slots of a weight's shape: they move, are cleared and are born with the weight's entries."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from .distributed import gather, local
from .errors import AttachError
from .sparse_layer import Moved

# Slots that divide the update: a newborn entry starts from the mean of its active siblings.
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum"})
FIRST_MOMENTS = ("exp_avg", "momentum_buffer", "grad_avg")


# Entry by entry, weight 0 with gradient 0 and resting slots stays 0. Exact types: a subclass may do anything.
_KEEP_ZEROS = frozenset({SGD, Adam, AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop, Rprop, ASGD})
_OF_MATRICES = ("adafactor", "muon", "shampoo", "soap", "galore")  # not entry by entry: rows, columns, singular values
_named: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # those that were warned of


def keeps_zeros(optimizer: Optimizer | None) -> bool:
    """Whether an update cannot move a weight that is 0, gets no gradient and whose slots rest."""
    return type(optimizer) in _KEEP_ZEROS


def usable(given: Any, *, live: bool) -> list[Optimizer]:
    """Return the torch optimizers of one optimizer or a sequence of them; raise if one cannot train sparse weights."""
    optimizers = [_unwrap(each) for each in (given if isinstance(given, list | tuple) else [given])]
    if not optimizers:
        raise AttachError("no optimizer was given; pass one torch.optim.Optimizer or several")
    for optimizer in optimizers:
        _refuse(optimizer, live=live)
    return optimizers


def owner(name: str, parameter: Tensor, optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return the one optimizer that holds `parameter`."""
    owners = [o for o in optimizers if any(p is parameter for g in o.param_groups for p in g["params"])]
    if len(owners) != 1:
        where = "no optimizer" if not owners else f"{len(owners)} optimizers"
        raise AttachError(
            f"{name} is in {where} passed to sparsify(); every sparse weight must be in exactly one "
            "(build the optimizer from model.parameters(), or leave the weight out with targets)"
        )
    return owners[0]


def _unwrap(optimizer: Any) -> Optimizer:
    """Return the torch optimizer inside a wrapper such as Accelerate's."""
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, Optimizer):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    if not isinstance(optimizer, Optimizer):
        raise AttachError(
            f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer or a sequence of them"
        )
    return optimizer


def _refuse(optimizer: Optimizer, *, live: bool) -> None:
    """Raise if `optimizer` cannot train sparse weights, and say why."""
    if type(optimizer).__module__.startswith("deepspeed"):
        raise AttachError("DeepSpeed flattens parameters, so a weight's support is lost; use DDP or FSDP2")
    if isinstance(optimizer, SparseAdam):
        raise AttachError(
            "SparseAdam steps on sparse gradients only, those of masked weights are dense; use Adam or AdamW"
        )
    if live and isinstance(optimizer, LBFGS):
        raise AttachError(
            "LBFGS evaluates the loss several times per step, but a live method hands the optimizer its dense "
            "weights between the backward pass and the update; use a method with zero inactive weights (static, "
            "set, rigl) or another optimizer"
        )


def normalises_gradient(optimizer: Optimizer) -> bool:
    """Whether a constant factor on the gradient (almost) cancels out of the update, as in Adam or Muon."""
    return not isinstance(optimizer, SGD | ASGD | LBFGS)


def found_inf(optimizer: Optimizer) -> bool:
    """Whether a GradScaler told this (fused) optimizer to skip its step."""
    flag = getattr(optimizer, "found_inf", None)
    return flag is not None and bool(torch.as_tensor(flag).item())


def gradient_scale(optimizer: Optimizer) -> float:
    """Loss scale still inside the gradients a (fused) optimizer is about to consume."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(torch.as_tensor(scale).item())


def slots(optimizer: Optimizer | None, param: Tensor) -> dict[str, Tensor]:
    """State tensors of the shape of `param`, by slot name."""
    if optimizer is None or param not in optimizer.state:
        return {}
    state = optimizer.state[param]
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == param.shape and v.ndim > 0}


def move_slots(optimizer: Optimizer, param: Tensor, old: Tensor, new: Tensor, newborn: str) -> None:
    """Follow a change of support, from mask `old` to `new` (local parts): clear what was dropped, start the newborn.

    newborn: "neutral" gives new entries of second moments the mean of the surviving ones, "zero" the resting value.
    """
    dropped, born, survived = old & ~new, new & ~old, old & new
    for name, held in slots(optimizer, param).items():
        slot = local(held)
        slot.masked_fill_(dropped, resting_value(name, optimizer, param))
        if newborn == "neutral" and is_second_moment(name):
            alike = gather(slot, param)[gather(survived, param)]
            slot[born] = alike.mean() if alike.numel() else 0.0


def relocate_slots(optimizer: Optimizer, param: Tensor, held: Mapping[str, Tensor], moves: Moved, newborn: str) -> None:
    """As `move_slots`, for a vector of values in which survivors changed their place.

    held: the slots before, see `slots`. At the same count they are changed in place, at another they are new tensors.
    """
    for name, slot in held.items():
        moved = moves.carried(slot, resting_value(name, optimizer, param))
        if newborn == "neutral" and is_second_moment(name):
            kept = moves.survivors(slot)
            moved[moves.born] = kept.mean() if len(kept) else 0.0
        if slot.shape == moved.shape:
            slot.copy_(moved)
        else:
            optimizer.state[param][name] = moved


def check_vector(optimizer: Optimizer, name: str, *, moved: bool) -> None:
    """Warn, once, of an optimizer that trains the values of sparse weights, vectors, unlike the matrices.

    moved: whether a rewiring moves values.

    Raises:
        AttachError: the optimizer takes matrices only, or would go on with a history of values that have moved.
    """
    kind = type(optimizer).__name__
    if isinstance(optimizer, LBFGS) and moved:
        raise AttachError(
            f"LBFGS keeps a history over all parameters, in which the values of {name} would change their places at a "
            'rewiring; use a static method, another optimizer, or masked weights: convert(model, layout="dense")'
        )
    if isinstance(optimizer, Muon):
        raise AttachError(
            f"Muon orthogonalises matrices, but the values of {name} are a vector; train them with AdamW or SGD, or "
            'use hybrid layers, convert(model, method, layout="hybrid")'
        )
    if optimizer not in _named and any(word in kind.lower() for word in _OF_MATRICES):
        _named.add(optimizer)
        warnings.warn(
            f"{kind} looks at matrices as such, but values of sparse layers such as {name} are vectors: it trains "
            "them otherwise than the masked weight; AdamW and SGD do not differ",
            stacklevel=2,
        )


def momentum(optimizer: Optimizer | None, param: Tensor, name: str) -> Tensor:
    """The running mean of gradients; under Adam and its like over the root of the second moment plus 1e-8.

    A weight that has had no gradient yet has momentum 0.

    Raises:
        AttachError: the optimizer keeps none.
    """
    held = slots(optimizer, param)
    first = next((held[slot] for slot in FIRST_MOMENTS if slot in held), None)
    if first is None and optimizer is not None and not optimizer.state.get(param) and _keeps_momentum(optimizer):
        return torch.zeros_like(local(param.detach()))
    if first is None:
        raise AttachError(_no_momentum(name, type(optimizer).__name__))
    second = held.get("exp_avg_sq")
    return local(first) if second is None else local(first) / (local(second).sqrt() + 1e-8)


def _keeps_momentum(optimizer: Optimizer) -> bool:
    return any(slot in state for state in optimizer.state.values() for slot in FIRST_MOMENTS)


def require_momentum(optimizer: Optimizer, param: Tensor, name: str) -> None:
    """Raise AttachError if the optimizer is known to keep no running mean of the gradients of this weight."""
    group = group_of(optimizer, param)
    without = {SGD: not group.get("momentum"), RMSprop: not (group.get("momentum") or group.get("centered"))}
    if type(optimizer) in {Adafactor, Adagrad, Adadelta, Rprop, ASGD, LBFGS} or without.get(type(optimizer), False):
        raise AttachError(_no_momentum(name, type(optimizer).__name__))


def _no_momentum(name: str, optimizer: str) -> str:
    return (
        f"the method looks at the momentum of {name}, but {optimizer} keeps none as it is set up; use Adam, AdamW or "
        "SGD with momentum=0.9, or a method that needs no momentum"
    )


def group_of(optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
    """The parameter group that holds `param`."""
    return next(g for g in optimizer.param_groups if any(p is param for p in g["params"]))


def learning_rate(optimizer: Optimizer, param: Tensor) -> float:
    """The current learning rate of a weight."""
    return float(group_of(optimizer, param)["lr"])


def resting_value(slot: str, optimizer: Optimizer, param: Tensor) -> float:
    """The value of an untouched slot entry: 0, except where the optimizer itself starts elsewhere."""
    group = group_of(optimizer, param)
    if slot == "step_size":  # Rprop
        return float(group["lr"])
    if slot == "sum":  # Adagrad
        return float(group.get("initial_accumulator_value", 0.0))
    if slot == "exp_inf":  # Adamax adds eps before it takes the maximum
        return float(group["eps"])
    return 0.0


def is_second_moment(slot: str) -> bool:
    """Whether the slot divides the update."""
    return slot in SECOND_MOMENTS
