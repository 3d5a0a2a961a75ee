"""`sparsify`: one call for every kind of method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import nn
from torch.optim import Optimizer

from .errors import ConfigError
from .learned import LearnedSparsifier
from .method import Method
from .reparametrise import Learned
from .sparsifier import Sparsifier
from .tickets import Tickets

_Optimizers = Optimizer | Sequence[Optimizer] | None
_Targets = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None


@overload
def sparsify(
    model: nn.Module,
    method: Method,
    optimizer: _Optimizers = None,
    *,
    total_steps: int | None = None,
    targets: _Targets = None,
    seed: int = 0,
) -> Sparsifier: ...


@overload
def sparsify(
    model: nn.Module,
    method: Learned,
    optimizer: _Optimizers = None,
    *,
    total_steps: int | None = None,
    targets: _Targets = None,
    seed: int = 0,
) -> LearnedSparsifier: ...


def sparsify(
    model: nn.Module,
    method: Method | Learned | Tickets,
    optimizer: _Optimizers = None,
    *,
    total_steps: int | None = None,
    targets: _Targets = None,
    seed: int = 0,
) -> Sparsifier | LearnedSparsifier:
    """Make `model` sparse and keep it sparse while `optimizer` trains it; the training loop does not change.

    The model stays an ordinary model: same parameters, same names, exact zeros off the supports. Learned methods
    (`methods.cs`, `methods.str_`) reach that at a step they state, and parametrize the weights until then.

    method: from `gossamer.methods`, or your own `Method`.
    optimizer: the optimizer, or all optimizers of the model; None leaves that to `attach`.
    total_steps: length of training in optimizer steps; methods with fractions of training need it.
    targets: None, a preset ("default", "advances", "dctps"), name globs or module types; see `gossamer.targets`.
    seed: of every random choice the method makes; give all ranks the same.

    Raises:
        TargetError: targets match nothing that can be sparse.
        ConfigError: the method cannot run as asked, e.g. `total_steps` is missing or the density infeasible.
        AttachError: a weight is sparsified already, or the optimizer does not hold it.

    >>> import torch, gossamer
    >>> model = torch.nn.Linear(100, 10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> sparsifier = gossamer.sparsify(model, gossamer.methods.static(0.1), optimizer)
    >>> int((model.weight != 0).sum()), sparsifier.supports["weight"].count
    (100, 100)
    """
    if isinstance(method, Tickets):
        raise ConfigError(
            f"method {method.name!r} trains several times and cannot run inside one training loop; use "
            "gossamer.lottery.find_ticket(model, train, method, ...)"
        )
    if isinstance(method, Learned):
        return LearnedSparsifier(model, method, optimizer, total_steps=total_steps, targets=targets, seed=seed)
    return Sparsifier(model, method, optimizer, total_steps=total_steps, targets=targets, seed=seed)
