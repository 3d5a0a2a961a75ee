"""Where method and sites meet: which entries participate at first, and which from now on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import foresight
from .errors import ConfigError, DivergedError
from .foresight import Saliency
from .foresight.search import Task
from .inactive import Zero
from .method import Given, Method
from .seeding import generator_for
from .sites import DenseSite
from .topology import Constant, Entries, Score, Support, scores, spread
from .topology.rules import select_alive
from .topology.selection import count_true


def shapes(sites: Mapping[str, DenseSite]) -> dict[str, torch.Size]:
    """Weight name -> shape, as allocations want them."""
    return {name: site.shape for name, site in sites.items()}


@torch.no_grad()
def begin(
    method: Method, model: nn.Module, sites: Mapping[str, DenseSite], seed: int
) -> tuple[Method, dict[str, Tensor]]:
    """The masks that training starts from, and the method, holding to their counts where these decide; nothing changes.

    Raises:
        ConfigError: the density is infeasible, given supports do not fit, or scores would cut the network in two.
        DivergedError: a score is not finite; names the weight.
    """
    init = method.init
    if isinstance(init, Score):
        return method, _highest(init, method, sites, seed, method.counts(shapes(sites), 0))
    if isinstance(init, Saliency) and init.scope == "layer":
        return method, _salient(init, method, model, sites, seed, method.counts(shapes(sites), 0))
    masks = _given(init, method, sites) if isinstance(init, Given) else _salient(init, method, model, sites, seed, None)
    return method.holding({name: count_true(mask) for name, mask in masks.items()}), masks


def _salient(
    init: Saliency,
    method: Method,
    model: nn.Module,
    sites: Mapping[str, DenseSite],
    seed: int,
    counts: Mapping[str, int] | None,
) -> dict[str, Tensor]:
    weights = {name: site.parameter for name, site in sites.items()}
    total = method.total(shapes(sites), 0)
    return foresight.search.first_masks(init, Task(model, weights, total, counts, method.structure, seed))


@torch.no_grad()
def first_reach(
    method: Method, sites: Mapping[str, DenseSite], seed: int, first: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masks of what is trained at first, supersets of the `first` supports; empty where that is everything."""
    counts = method.reach_counts(shapes(sites), 0)
    if counts is None:
        return {}
    init = method.init if isinstance(method.init, Score) else scores.magnitude
    wider = _highest(init, method, sites, seed, counts)
    return {name: mask | first[name] for name, mask in wider.items()}


def _highest(
    score: Score, method: Method, sites: Mapping[str, DenseSite], seed: int, counts: Mapping[str, int]
) -> dict[str, Tensor]:
    """The best entries; weights compete as in the method, but not by random numbers: then the allocation stands."""
    masks: dict[str, Tensor] = {}
    groups = [[site] for site in sites.values()] if "generator" in score.needs else _groups(method, sites).values()
    for group in groups:
        values = [score(_entries(site, score.needs, seed, "init", 0)) for site in group]
        nothing = [torch.zeros_like(value, dtype=torch.bool) for value in values]
        chosen = select_alive(method.structure, values, sum(counts[site.name] for site in group), nothing)
        masks.update({site.name: mask for site, mask in zip(group, chosen, strict=True)})
    return masks


def rewire(
    method: Method, sites: Mapping[str, DenseSite], seed: int, step: int, memory: dict[str, dict[str, float]]
) -> None:
    """Let the method's rule choose new supports and assign them.

    memory: what the rule remembers, by group.

    Raises:
        DivergedError: a score is not finite; names the weights.
    """
    counts, reach = _next_counts(method, sites, step), method.reach_counts(shapes(sites), step)
    for key, group in _groups(method, sites).items():
        entries = [_entries(site, method.rule.needs, seed, f"rewire {step}", step) for site in group]
        remembered = memory.setdefault(key, {})

        def choose(numbers: Mapping[str, int]) -> list[Tensor]:
            wanted = [numbers[site.name] for site in group]  # noqa: B023 - called at once
            return method.rule.rewire(entries, wanted, method.structure, step, remembered)  # noqa: B023

        try:
            masks, wider = choose(counts), [None] * len(group) if reach is None else choose(reach)
        except DivergedError as error:
            names = ", ".join(site.name for site in group)
            raise DivergedError(f"rewiring {names} at step {step}: {error}") from None
        for site, mask, trained in zip(group, masks, wider, strict=True):
            site.assign(mask, step, _newborn_generator(site, seed, step))
            if trained is not None:
                site.traits.set_reach(trained | mask)


def _next_counts(method: Method, sites: Mapping[str, DenseSite], step: int) -> dict[str, int]:
    """Counts of a density that falls never ask a weight for more than it holds: rounding could, by one."""
    counts = method.counts(shapes(sites), step)
    if isinstance(method.density, float | Constant):
        return counts
    held = [count_true(site.whole_mask()) for site in sites.values()]
    if sum(held) < sum(counts.values()):
        return counts
    return dict(zip(counts, spread(list(counts.values()), held, sum(counts.values())), strict=True))


def _newborn_generator(site: DenseSite, seed: int, step: int) -> torch.Generator | None:
    drawn = isinstance(site.inactive, Zero) and site.inactive.newborn_std > 0
    return generator_for(seed, site.name, f"newborn {step}") if drawn else None


def _groups(method: Method, sites: Mapping[str, DenseSite]) -> dict[str, list[DenseSite]]:
    return {"": list(sites.values())} if method.scope == "global" else {site.name: [site] for site in sites.values()}


def _entries(site: DenseSite, needs: frozenset[str], seed: int, event: str, step: int) -> Entries:
    generator = generator_for(seed, site.name, event) if "generator" in needs else None
    return site.entries(needs, generator, step)


def _given(init: Given, method: Method, sites: Mapping[str, DenseSite]) -> dict[str, Tensor]:
    masks: dict[str, Tensor] = {}
    for name, site in sites.items():
        if name not in init.supports:
            raise ConfigError(f"Given supports lack {name}; they name {', '.join(init.supports) or 'nothing'}")
        given = init.supports[name]
        mask = given.mask if isinstance(given, Support) else given.to(torch.bool)
        if mask.shape != site.shape:
            raise ConfigError(
                f"the given support of {name} has shape {tuple(mask.shape)}, the weight has {tuple(site.shape)}"
            )
        masks[name] = mask.to(site.parameter.device)
    _check_given(masks, method, sites)
    return masks


def _check_given(masks: Mapping[str, Tensor], method: Method, sites: Mapping[str, DenseSite]) -> None:
    """Given supports must have the method's structure and be as many as the density says, up to its rounding."""
    total, size = method.total(shapes(sites), 0), sum(mask.numel() for mask in masks.values())
    held = sum(map(count_true, masks.values()))
    slack = sum(mask.shape[0] for mask in masks.values()) if method.structure.single else 0  # under one per row
    if abs(held - total) > slack:
        raise ConfigError(
            f"the given supports hold {held} of {size} entries, the density makes it {total}; pass "
            f"density={held}/{size}"
        )
    for name, mask in masks.items():
        if not method.structure.is_valid(mask):
            raise ConfigError(f"the given support of {name} has not the method's structure, {method.structure.name}")
