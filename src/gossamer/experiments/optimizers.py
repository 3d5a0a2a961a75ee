"""Optimizers and learning-rate schedules of the training loop, from a resolved config."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import ConfigError
from ..sparse_layer import is_sparse_layer
from ..subspace import SubspaceModel
from .config import ResolvedConfig

_STEP_AT, _STEP_FACTOR = (0.5, 0.75), 0.1


def build_optimizers(model: nn.Module, config: ResolvedConfig) -> list[Optimizer]:
    """Return the optimizers of a run: one, or two for muon (Muon on hidden matrices, AdamW on the rest).

    Biases, norms and other 1-D parameters are not decayed; the values of sparse layers are, as the weights they are,
    and theta of a subspace, which pulls towards its start.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if config.optimizer != "muon":
        return [_optimizer(config.optimizer, named.values(), config, _values(model))]
    hidden = [name for name in _hidden_matrices(model) if name in named]
    if not hidden:
        raise ConfigError("optimizer muon acts on hidden 2-D weights and the model has none; use sgd or adamw")
    muon = torch.optim.Muon(
        [named[name] for name in hidden],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # one learning rate then suits both
    )
    return [muon, _optimizer("adamw", (p for name, p in named.items() if name not in hidden), config)]


def build_schedulers(optimizers: Iterable[Optimizer], config: ResolvedConfig) -> list[LambdaLR]:
    """One scheduler per optimizer; each multiplies the peak rate by `rate_factor` of the step."""
    return [LambdaLR(optimizer, rate_factor(config)) for optimizer in optimizers]


def rate_factor(config: ResolvedConfig) -> Callable[[int], float]:
    """Return step -> factor on the peak learning rate: linear warm-up, then cosine to 0, steps of 0.1, or flat.

    >>> from types import SimpleNamespace
    >>> factor = rate_factor(SimpleNamespace(steps=10, warmup=0.2, schedule="cosine"))
    >>> [round(factor(step), 2) for step in range(11)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04, 0.0]
    """
    steps = config.steps
    rising = round(config.warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = min((step - rising) / max(steps - rising, 1), 1.0)
        if config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if config.schedule == "step":
            return _STEP_FACTOR ** sum(step >= at * steps for at in _STEP_AT)
        return 1.0

    return factor


def _optimizer(
    kind: str, parameters: Iterable[nn.Parameter], config: ResolvedConfig, values: Collection[int] = ()
) -> Optimizer:
    """values: ids of parameters that are decayed though they have one dimension."""
    parameters = list(parameters)
    decayed = [p.ndim >= 2 or id(p) in values for p in parameters]
    groups: list[dict[str, Any]] = [
        {"params": [p for p, yes in zip(parameters, decayed, strict=True) if yes], "weight_decay": config.weight_decay},
        {"params": [p for p, yes in zip(parameters, decayed, strict=True) if not yes], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    lr, momentum = config.lr, config.momentum
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    family = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    return family(groups, lr=lr, betas=(momentum, config.beta2))


def _values(model: nn.Module) -> set[int]:
    """Ids of the parameters that stand for weights: those of sparse layers, and theta of a subspace."""
    sparse = {id(module.values) for module in model.modules() if is_sparse_layer(module)}
    return sparse | {id(module.theta) for module in model.modules() if isinstance(module, SubspaceModel)}


def _hidden_matrices(model: nn.Module) -> list[str]:
    """Names of the linear weights before the output layer, for which Muon is meant."""
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [f"{path}.weight" for path in layers[:-1]]
