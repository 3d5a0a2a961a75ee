"""The published procedures, transcribed with nothing of the library: each works on a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .nets import Batch

Tensors = dict[str, Tensor]


def running_with(model: nn.Module, weights: Mapping[str, Tensor], *, batch_norm: str = "train") -> nn.Module:
    """A copy that computes with other weights, as the graph of the given tensors; without dropout."""
    made = copy.deepcopy(model).eval()
    for module in made.modules():
        module.training = batch_norm == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm)
    for name, value in weights.items():
        path, _, attribute = name.rpartition(".")
        owner = made.get_submodule(path)
        del owner._parameters[attribute]
        setattr(owner, attribute, value)
    return made


def mean_loss(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Sequence[Batch], divided: float = 1.0
) -> Tensor:
    run, losses = running_with(model, weights), []
    for inputs, target in batches:
        with sdpa_kernel(SDPBackend.MATH):
            output = run(inputs) / divided
        losses.append(F.cross_entropy(output.reshape(-1, output.shape[-1]), target.reshape(-1)))
    return torch.stack(losses).mean()


def initial(model: nn.Module, names: Sequence[str]) -> Tensors:
    return {name: model.get_parameter(name).detach().clone() for name in names}


def mask_sensitivity(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> Tensors:
    """|dL/dc| at c = 1, where c multiplies the weights."""
    w = initial(model, names)
    c = {name: torch.ones_like(value, requires_grad=True) for name, value in w.items()}
    loss = mean_loss(model, {name: w[name] * c[name] for name in w}, batches)
    return {name: g.abs() for name, g in zip(c, torch.autograd.grad(loss, list(c.values())), strict=True)}


def squared_gradient(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Sequence[Batch],
    divided: float = 1.0,
    active: Mapping[str, Tensor] | None = None,
) -> float:
    """||dL/dw||^2 over these weights, or those of them that are active."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    found = torch.autograd.grad(mean_loss(model, leaves, batches, divided), list(leaves.values()))
    if active is not None:
        found = tuple(g * active[name] for name, g in zip(leaves, found, strict=True))
    return float(sum(g.square().sum() for g in found))


def keep(scores: Tensors, active: Tensors, count: int) -> Tensors:
    """The highest; of equal ones those that are active, then those that come first."""
    flat = torch.cat([scores[name].reshape(-1) for name in scores]).double().numpy()
    known = torch.cat([active[name].reshape(-1) for name in scores]).numpy()
    best = np.lexsort((np.arange(len(flat)), ~known, -flat))[:count]
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[torch.from_numpy(best)] = True
    parts = chosen.split([value.numel() for value in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def sensitivity_rounds(
    model: nn.Module, names: Sequence[str], data: Sequence[Batch], density: float, rounds: int, *, revive: bool
) -> Tensors:
    """Iterative SNIP, and FORCE where weights may revive; one batch per round."""
    w = initial(model, names)
    total, masks = sum(v.numel() for v in w.values()), {n: torch.ones_like(v, dtype=torch.bool) for n, v in w.items()}
    for t in range(1, rounds + 1):
        leaves = {name: (w[name] * masks[name]).requires_grad_() for name in w}
        loss = mean_loss(model, leaves, [data[(t - 1) % len(data)]])
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        scores = {name: (grads[name] * w[name]).abs() for name in w}
        if not revive:
            scores = {name: value.masked_fill(~masks[name], -torch.inf) for name, value in scores.items()}
        masks = keep(scores, masks, round(density ** (t / rounds) * total))
    return masks


def grasp(model: nn.Module, names: Sequence[str], batches: Sequence[Batch], density: float, divided: float) -> Tensors:
    """Remove the largest -w (H g), H g accumulated by backward passes over the batches."""
    w = {name: value.requires_grad_() for name, value in initial(model, names).items()}
    g = torch.autograd.grad(mean_loss(model, w, batches, divided), list(w.values()))
    for batch in batches:
        own = torch.autograd.grad(mean_loss(model, w, [batch], divided), list(w.values()), create_graph=True)
        sum((a.detach() * b).sum() for a, b in zip(g, own, strict=True)).backward()
    removed_first = {name: -value.detach() * value.grad for name, value in w.items()}
    total = sum(v.numel() for v in w.values())
    everything = {name: torch.ones_like(v, dtype=torch.bool) for name, v in w.items()}
    return keep({name: -value for name, value in removed_first.items()}, everything, round(density * total))


def positive_linear(model: nn.Module) -> nn.Module:
    """A float64 copy with absolute weights and no biases, norms or activations."""
    made = copy.deepcopy(model).double().eval()
    for path, module in list(made.named_modules()):
        if type(module).__name__ in {"BatchNorm2d", "Softplus", "Tanh", "ReLU"}:
            parent, _, last = path.rpartition(".")
            setattr(made.get_submodule(parent), last, nn.Identity())
    for name, p in made.named_parameters():
        p.data = torch.zeros_like(p) if name.endswith("bias") else p.data.abs()
    return made


def flow_scores(model: nn.Module, names: Sequence[str], shape: Sequence[int], masks: Tensors) -> tuple[Tensors, float]:
    """|w dR/dw| and R."""
    linear = positive_linear(model)
    w = {name: linear.get_parameter(name).detach() * masks[name] for name in names}
    leaves = {name: value.requires_grad_() for name, value in w.items()}
    flow = running_with(linear, leaves)(torch.ones(1, *shape, dtype=torch.float64)).sum()
    grads = torch.autograd.grad(flow, list(leaves.values()))
    return {name: (leaves[name] * g).abs().detach() for name, g in zip(names, grads, strict=True)}, float(flow.detach())


def synflow(model: nn.Module, names: Sequence[str], shape: Sequence[int], density: float, rounds: int) -> Tensors:
    masks = {name: torch.ones_like(v, dtype=torch.bool) for name, v in initial(model, names).items()}
    total = sum(mask.numel() for mask in masks.values())
    for t in range(1, rounds + 1):
        scores, _ = flow_scores(model, names, shape, masks)
        scores = {name: value.masked_fill(~masks[name], -torch.inf) for name, value in scores.items()}
        masks = keep(scores, masks, round(density ** (t / rounds) * total))
    return masks
