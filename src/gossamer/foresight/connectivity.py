"""What is left of a network: layers without weights, and whether any path leads from input to output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..targets import canonical
from ..topology import Support
from ..topology.selection import count_true
from .examples import Ones, as_ones
from .probe import Probe


def connected(probe: Probe) -> bool:
    """Whether a path of active weights leads from an input to an output."""
    return any(bool((flow > 0).any()) for flow in _path_flow(probe).values())


def effective_counts(model: nn.Module, supports: Mapping[str, Support], inputs: Sequence[int] | Ones) -> dict[str, int]:
    """Return, by weight name, how many active weights lie on a path from input to output; the others do nothing.

    inputs: shape of one example. Counted by the flow through the network made linear and positive, with all active
    weights alike; of the inputs of a max pooling only the largest has a path. Source: Tanaka et al. 2020 (2006.05467)
    for the flow; Vysogorets and Kempe 2023 (2107.02306) for the effective count.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> first = Support.from_mask(torch.tensor([[True, True], [True, False]]))
    >>> second = Support.from_mask(torch.tensor([[True, False]]))
    >>> effective_counts(model, {"0.weight": first, "1.weight": second}, (2,))
    {'0.weight': 2, '1.weight': 1}
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__}, no torch.nn.Module")
    if inputs is None:
        raise ConfigError("inputs is None: expected the shape of one example, e.g. (3, 32, 32)")
    if not isinstance(supports, Mapping) or not supports:
        raise ConfigError("supports are empty or no mapping; expected supports by weight name, as find() returns them")
    named = {canonical(name): parameter for name, parameter in model.named_parameters()}
    for name, support in supports.items():
        if name not in named:
            raise ConfigError(f"the model has no parameter {name}; supports are by weight name")
        if not isinstance(support, Support):
            raise ConfigError(f"{name} is {type(support).__name__}, no Support; use Support.from_mask(mask)")
        if support.shape != named[name].shape:
            shapes = f"{tuple(support.shape)}, the weight {tuple(named[name].shape)}"
            raise ConfigError(f"the support of {name} has shape {shapes}: it belongs to another model")
    probe = Probe(model, {name: named[name] for name in supports}, ones=as_ones(inputs))
    probe.masks = {name: support.mask.to(probe.device) for name, support in supports.items()}
    return {name: count_true(flow > 0) for name, flow in _path_flow(probe).items()}


@torch.inference_mode(False)
def _path_flow(probe: Probe) -> dict[str, Tensor]:
    """What flows through each active weight when all weigh the same; zero off every path. Float64.

    Each weight is the inverse of the mean number of active weights per output, so that the flow neither grows nor
    vanishes with depth.
    """
    leaves = {}
    for name, mask in probe.masks.items():
        per_output = count_true(mask) / max(1, mask.shape[0])
        leaves[name] = (mask.double() / (per_output or 1.0)).requires_grad_()
    with torch.enable_grad():
        return probe.flow_gradients(leaves)[1]


def describe_collapse(what: str, empty: Sequence[str], masks: Mapping[str, Tensor], whole: bool | None) -> str:
    """One sentence on weights that are left empty. whole: whether paths lead around them, None if that is unknown."""
    if not empty:
        return (
            f"{what} at density {density_of(masks):.3g}: no path from input to output is left, though no layer is empty"
        )
    names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    verdict = {
        True: "shortcuts lead around them",
        False: "layer collapse: no path from input to output is left, nothing can train",
        None: "whether shortcuts lead around them is not known without inputs=, the shape of one example",
    }[whole]
    return f"{what} at density {density_of(masks):.3g} leaves {names} without any weight ({verdict})"


def density_of(masks: Mapping[str, Tensor]) -> float:
    """Active entries of all."""
    return sum(map(count_true, masks.values())) / sum(mask.numel() for mask in masks.values())
