"""Sanity checks of a first support: shuffle it within layers, draw other weights, invert its scores.

If accuracy survives the first two, only the counts of layers matter, not which weights are kept; if it survives the
third, the scores say nothing. Source: Frankle et al. 2021, *Pruning Neural Networks at Initialization: Why Are We
Missing the Mark?* (2009.08576).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from .. import distributed, rewiring
from ..errors import ConfigError, check_seed
from ..foresight import Saliency
from ..foresight.search import shuffled
from ..gated import Gating
from ..method import Given, Method
from ..ownership import owned
from ..reparametrise import Learned
from ..seeding import own_random_state
from ..sites import DenseSite
from ..targets import canonical, choose
from ..tickets import Tickets
from ..topology import Score, Structure, Support, Unstructured
from ..unfit import refuse_unfit

COMPARED = 64  # entries from which on the std of a parameter says how it was drawn
ALIKE = 1.5  # two stds within this factor of each other are of one initialisation
Targets = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None


def first_supports(
    model: nn.Module, method: Method, *, total_steps: int | None = None, targets: Targets = None, seed: int = 0
) -> dict[str, Support]:
    """Return the supports that `sparsify` would start from, by weight name; the model is as before.

    Raises:
        ConfigError: the method has no first support of its own: it starts dense, or learns what is kept; or an argument
            is of another type.
    """
    _check_model(model)
    _check_method(method)
    check_seed(seed)
    resolved = method.resolve(total_steps)
    if resolved.starts_dense:
        raise ConfigError(f"method {method.name!r} starts dense, so it has no first support to check")
    rows = choose(model, targets)
    if not resolved.stays_dense:
        refuse_unfit(resolved.structure, rows, targets)
    sites = {
        row.name: DenseSite(row.name, row.module, row.attribute, row.parameter, resolved.inactive)
        for row in rows
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

    Raises:
        ConfigError: an argument is of another type.
    """
    if not isinstance(supports, Mapping) or not all(isinstance(support, Support) for support in supports.values()):
        raise ConfigError(
            f"supports is {_short(supports)}; pass weight name -> Support, such as first_supports(model, method)"
        )
    if not callable(getattr(structure, "select", None)):
        raise ConfigError(f"structure={structure!r}: expected that of the method, such as Unstructured() or FanIn()")
    check_seed(seed)
    masks = shuffled({name: support.mask for name, support in supports.items()}, structure, seed)
    return {name: Support.from_mask(mask) for name, mask in masks.items()}


def invert(method: Method) -> Method:
    """Return the method with a first support of the lowest scores instead of the highest (the negated, never 1/score).

    Raises:
        ConfigError: its first support is random or given, which has no opposite; or it is no `Method`.
    """
    _check_method(method)
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

    Call it between `first_supports` and `sparsify(..., init=Given(supports))`.

    init: function that initialises a model. By default every module's ``reset_parameters`` (or, as attention has,
        ``_reset_parameters``), a module after those in it, as when they were made. These are PyTorch's own
        distributions: if the model has been initialised otherwise (``nn.init``, pretrained weights), pass that as
        `init`, or accuracy changes with the distribution and not with the weights. A parameter of at least 64 entries
        whose standard deviation has changed by more than a factor 1.5 is warned of; one that is constant or holds
        zeros (pruned) before or after is not compared.

    Raises:
        ConfigError: the model is sparsified, or a module with parameters has no way to reset them and there is no
            `init`; nothing is changed.
    """
    _check_model(model)
    check_seed(seed)
    if init is not None and not callable(init):
        raise ConfigError(f"init={init!r}: expected a function that initialises the model given to it")
    held = [canonical(name) for name, parameter in model.named_parameters() if parameter in owned]
    if held or any(isinstance(module, Gating) for module in model.modules()):
        raise ConfigError(
            f"{held[0] if held else 'the model'} is sparsified, and its Sparsifier would not know of other weights; "
            "call redraw() before sparsify(), or after detach()"
        )
    resets = _resets(model) if init is None else []
    before = _deviations(model) if init is None else {}
    with own_random_state(seed, "redraw", {parameter.device for parameter in model.parameters()}):
        if init is not None:
            init(model)
        for reset in resets:
            reset()
    after = _deviations(model)
    changed = [name for name in before if name in after and not 1 / ALIKE <= after[name] / before[name] <= ALIKE]
    if changed:
        name = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        warnings.warn(
            f"redraw() changed the std of {name} from {before[name]:.3g} to {after[name]:.3g}{more}: if the model is "
            "not initialised by reset_parameters(), pass init=, the function that initialises it",
            stacklevel=2,
        )


def _resets(model: nn.Module) -> list[Callable[[], object]]:
    """What resets each module, those within a module before it."""
    found = []
    for module in reversed(list(model.modules())):
        names = ("reset_parameters", "_reset_parameters")
        reset = next((method for name in names if callable(method := getattr(module, name, None))), None)
        if reset is not None:
            found.append(reset)
        elif any(True for _ in module.parameters(recurse=False)):
            raise ConfigError(
                f"{type(module).__name__} has no reset_parameters(); pass init=, a function that initialises the model"
            )
    return found


@torch.no_grad()
def _deviations(model: nn.Module) -> dict[str, float]:
    """Standard deviation of every parameter that is large enough, not constant and without zeros."""
    found = {
        canonical(name): float(parameter.float().std())
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and parameter.numel() >= COMPARED
        and not (parameter.is_meta or distributed.is_sharded(parameter))
        and bool(parameter.all())
    }
    return {name: std for name, std in found.items() if 0 < std < float("inf")}


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {_short(model)}; expected a torch.nn.Module")


def _check_method(method: object) -> None:
    if isinstance(method, Learned | Tickets):
        raise ConfigError(f"{method.name!r} finds its support while it trains; only a Method has a first one")
    if isinstance(method, Saliency):
        raise ConfigError(
            "this is a Saliency; pass a method that starts from it, e.g. methods.static(0.1, init=saliency)"
        )
    if not isinstance(method, Method):
        raise ConfigError(f"method is {_short(method)}; expected a Method such as methods.static(0.1, init=saliency)")


def _short(value: object) -> str:
    """The value if it is a plain one, else its type."""
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
