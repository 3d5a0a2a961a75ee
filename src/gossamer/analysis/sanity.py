"""Sanity checks of a first support: shuffle it within layers, draw other weights, invert its scores.

If accuracy survives the first two, only the counts of layers matter, not which weights are kept; if it survives the
third, the scores say nothing. Source: Frankle et al. 2021, *Pruning Neural Networks at Initialization: Why Are We
Missing the Mark?* (2009.08576).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from .. import rewiring
from ..errors import ConfigError
from ..foresight import Saliency
from ..foresight.search import shuffled
from ..method import Given, Method
from ..seeding import own_random_state
from ..sites import DenseSite
from ..targets import choose
from ..topology import Score, Structure, Support, Unstructured

Targets = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None


def first_supports(
    model: nn.Module, method: Method, *, total_steps: int | None = None, targets: Targets = None, seed: int = 0
) -> dict[str, Support]:
    """Return the supports that `sparsify` would start from, by weight name; the model is as before.

    Raises:
        ConfigError: the method has no first support of its own: it starts dense, or learns what is kept.
    """
    if not isinstance(method, Method):
        raise ConfigError(f"{method!r} finds its support while it trains; only a Method has a first one")
    resolved = method.resolve(total_steps)
    if resolved.starts_dense:
        raise ConfigError(f"method {method.name!r} starts dense, so it has no first support to check")
    sites = {
        row.name: DenseSite(row.name, row.module, row.attribute, row.parameter, resolved.inactive)
        for row in choose(model, targets)
        if row.sparse
    }
    _, masks = rewiring.begin(resolved, model, sites, seed)
    return {name: Support.from_mask(mask) for name, mask in masks.items()}


def shuffle(
    supports: Mapping[str, Support],
    seed: int = 0,
    structure: Structure = Unstructured(),  # noqa: B008 - a frozen value
) -> dict[str, Support]:
    """Return supports of the same count in every weight, at positions drawn uniformly as far as `structure` allows.

    Start from them by ``init=Given(shuffled)``.

    >>> import torch
    >>> mask = torch.zeros(50, 50, dtype=torch.bool)
    >>> mask[:5] = True
    >>> other = shuffle({"weight": Support.from_mask(mask)})["weight"]
    >>> other.count, bool((other.mask == mask).all())
    (250, False)
    """
    masks = shuffled({name: support.mask for name, support in supports.items()}, structure, seed)
    return {name: Support.from_mask(mask) for name, mask in masks.items()}


def invert(method: Method) -> Method:
    """Return the method with a first support of the lowest scores instead of the highest (the negated, never 1/score).

    Raises:
        ConfigError: its first support is random or given, which has no opposite.
    """
    init = method.init
    if isinstance(init, Score) and "generator" not in init.needs:
        negated = dataclasses.replace(init, name=f"inverted {init.name}", fn=lambda entries: -init.fn(entries))
        return dataclasses.replace(method, init=negated)
    if isinstance(init, Saliency) and "generator" not in init.objective.score.needs:
        return dataclasses.replace(method, init=dataclasses.replace(init, invert=not init.invert))
    kind = "given" if isinstance(init, Given) else "random"
    raise ConfigError(f"the first support of {method.name!r} is {kind}, there are no scores to invert; give it an init")


def redraw(model: nn.Module, seed: int, init: Callable[[nn.Module], object] | None = None) -> None:
    """Draw all parameters anew, in place: the weights that were scored are not those that train.

    Call it between `first_supports` and `sparsify(..., init=Given(supports))`. init: function that initialises a model;
    by default every module's ``reset_parameters``.

    Raises:
        ConfigError: a module with parameters has no ``reset_parameters``, and there is no `init`; nothing is changed.
    """
    owners = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    odd = [type(module).__name__ for module in owners if not callable(getattr(module, "reset_parameters", None))]
    if init is None and odd:
        raise ConfigError(f"{odd[0]} has no reset_parameters(); pass init=, a function that initialises the model")
    with own_random_state(seed, "redraw", {parameter.device for parameter in model.parameters()}):
        if init is not None:
            init(model)
            return
        for module in owners:
            module.reset_parameters()  # type: ignore[operator]
