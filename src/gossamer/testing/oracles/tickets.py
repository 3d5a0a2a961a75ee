"""A literal transcription of iterative magnitude pruning with rewinding: slow, plain, independent of the library.

Symbols: w weights, m masks, w_epsilon all parameters and buffers after epsilon steps, T length of a training, L number
of levels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._run import Tensors


@dataclass(frozen=True)
class Training:
    """One training: its masks, and the whole state of the model before and after it."""

    masks: Tensors
    begin: Tensors
    end: Tensors


def lottery_oracle(
    model: nn.Module,
    counts: Sequence[Mapping[str, int]],
    make_optimizer: Callable[[nn.Module], Optimizer],
    batch: Callable[[int], Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    rate: Callable[[int], float],
    *,
    epsilon: int,
    total_steps: int,
    mode: Literal["weights", "learning_rate", "none"] = "weights",
    scope: Literal["layer", "global"] = "layer",
) -> list[Training]:
    """Train dense, then L times: prune, rewind, train; returns these L + 1 trainings. The model is not changed.

    counts: entries left of each weight after each level; with scope "global" their sum counts, and one threshold over
    all weights chooses, but each keeps its largest entry. batch: step -> data. rate: step -> learning rate.

    Source: Frankle and Carbin 2019 (1803.03635), Frankle et al. 2020 (1912.05671), Renda et al. 2020 (2003.02389).
    """
    net = copy.deepcopy(model)
    m = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in counts[0]}
    begin = _state(net)
    optimizer = make_optimizer(net)
    w_epsilon = begin
    for t in range(total_steps):
        _step(net, m, optimizer, batch(t), loss_fn, rate(t))
        if t + 1 == epsilon:
            w_epsilon = _state(net)
    trainings = [Training(m, begin, _state(net))]
    for level in counts:
        m = _largest(net, m, level, scope)
        if mode == "weights":
            net.load_state_dict(w_epsilon)
        with torch.no_grad():
            for name, mask in m.items():
                net.get_parameter(name)[~mask] = 0.0
        begin = _state(net)
        optimizer = make_optimizer(net)
        start = total_steps if mode == "none" else epsilon
        for t in range(start, start + total_steps - epsilon):
            _step(net, m, optimizer, batch(t), loss_fn, rate(t))
        trainings.append(Training(m, begin, _state(net)))
    return trainings


def _step(
    net: nn.Module,
    m: Tensors,
    optimizer: Optimizer,
    data: Any,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    lr: float,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss_fn(net, data).backward()
    for name, mask in m.items():
        gradient = net.get_parameter(name).grad
        if gradient is not None:
            gradient[~mask] = 0.0
    optimizer.step()
    with torch.no_grad():
        for name, mask in m.items():
            net.get_parameter(name)[~mask] = 0.0


def _largest(net: nn.Module, m: Tensors, counts: Mapping[str, int], scope: str) -> Tensors:
    groups = [list(m)] if scope == "global" else [[name] for name in m]
    kept = {name: torch.zeros_like(mask) for name, mask in m.items()}
    for group in groups:
        w = {name: net.get_parameter(name).detach().flatten().tolist() for name in group}
        active = [(-abs(w[name][i]), name, i) for name in group for i in range(len(w[name])) if m[name].view(-1)[i]]
        active.sort(key=lambda entry: (entry[0], group.index(entry[1]), entry[2]))
        count = sum(counts[name] for name in group)
        alive = {name for _, name, _ in active[:count]}
        best = [next(entry for entry in active if entry[1] == name) for name in group if name not in alive]
        for _, name, i in [*best, *active][:count]:
            kept[name].view(-1)[i] = True
    return kept


def _state(net: nn.Module) -> Tensors:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
