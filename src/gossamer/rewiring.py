"""Where method and sites meet: which entries participate at first, and which from now on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from . import candidates, foresight
from .errors import ConfigError, DivergedError
from .foresight import Saliency
from .foresight.search import Task
from .inactive import Zero
from .latent import choose_at_once
from .live_site import LiveSite
from .method import Given, Method
from .seeding import generator_for
from .site_kinds import AnySite
from .sites import DenseSite
from .sparse_site import SparseSite
from .topology import Constant, Entries, Rule, Score, Structure, Support, Units, Unstructured, scores, spread
from .topology.rules import select_alive
from .topology.selection import count_true
from .topology.thresholds import Memory


def shapes(sites: Mapping[str, AnySite]) -> dict[str, torch.Size]:
    """Weight name -> shape, as allocations want them."""
    return {name: site.shape for name, site in sites.items()}


@torch.no_grad()
def begin(
    method: Method, model: nn.Module, sites: Mapping[str, AnySite], seed: int
) -> tuple[Method, dict[str, Tensor]]:
    """The masks that training starts from, and the method, holding to their counts where these decide; nothing changes.

    Sparse layers start from their own supports and get no mask.

    Raises:
        ConfigError: the density is infeasible, given supports do not fit, or scores would cut the network in two.
        DivergedError: a score is not finite; names the weight.
    """
    init, sparse, dense = method.init, of_layers(sites), {n: s for n, s in sites.items() if isinstance(s, DenseSite)}
    if method.starts_dense:
        method.check_structure(shapes(sites))
    if sparse:
        return _beside(sparse, method, dense, seed)
    if isinstance(init, Score):
        return method, _highest(init, method, dense, seed, method.counts(shapes(sites), 0))
    if isinstance(init, Saliency) and init.scope == "layer":
        return method, _salient(init, method, model, dense, seed, method.counts(shapes(sites), 0))
    masks = _given(init, method, dense) if isinstance(init, Given) else _salient(init, method, model, dense, seed, None)
    return method.holding({name: count_true(mask) for name, mask in masks.items()}), masks


def of_layers(sites: Mapping[str, AnySite]) -> dict[str, SparseSite]:
    """Those of sparse layers."""
    return {name: site for name, site in sites.items() if isinstance(site, SparseSite)}


def _beside(
    sparse: Mapping[str, SparseSite], method: Method, dense: Mapping[str, DenseSite], seed: int
) -> tuple[Method, dict[str, Tensor]]:
    """As `begin`, where sparse layers bring their own supports: the masks of the other weights."""
    sites: dict[str, AnySite] = {**sparse, **dense}
    if dense and isinstance(method.init, Saliency):
        raise ConfigError(
            f"init {method.init.name} scores a whole dense network, but {next(iter(sparse))} is a sparse layer already "
            f"and {next(iter(dense))} is not; take the latter out by targets, or convert both"
        )
    held = {name: site.count for name, site in sparse.items()}
    room = {name: site.shape.numel() for name, site in dense.items()}
    if isinstance(method.init, Given):
        _check_layers(method.init, sparse)
        masks = _fitting(method.init, dense)
        rest = {name: count_true(mask) for name, mask in masks.items()}
        _rest_of(method, sites, sum(held.values()), sum(rest.values()), sum(rest.values()))
        return method.holding(held | rest), masks
    counts = method.counts(shapes(sites), 0)
    rest = {name: counts[name] for name in dense}
    stands = held | rest == counts and isinstance(method.init, Score)
    if not stands:  # the weights beside the layers hold what these leave of the density
        left = _rest_of(method, sites, sum(held.values()), len(dense), sum(room.values()))
        shares = spread(list(rest.values()), list(room.values()), left, least=1)
        rest = {n: method.structure.round(k, dense[n].shape) for n, k in zip(rest, shares, strict=True)}
    masks = _highest(method.init, method, dense, seed, rest) if isinstance(method.init, Score) else {}
    return method if stands else method.holding(held | rest), masks


def _rest_of(method: Method, sites: Mapping[str, AnySite], kept: int, least: int, most: int) -> int:
    """What the density leaves to the weights beside sparse layers that hold `kept` entries."""
    total, size = method.total(shapes(sites), 0), sum(site.shape.numel() for site in sites.values())
    nearest = min(max(total, kept + least), kept + most)
    if abs(nearest - total) > _slack(method, [site.shape for site in sites.values()]):
        others = f", the weights beside them {least} to {most}" if most else ""
        raise ConfigError(
            f"the sparse layers hold {kept} of {size} entries{others}, the density makes it {total}; pass "
            f"density={nearest}/{size}, or build the layers with convert(model, method)"
        )
    return nearest - kept


def _slack(method: Method, of: Iterable[torch.Size]) -> int:
    """By how much supports of weights of these shapes may miss the density, as the structure rounds their counts."""
    units, single = method.structure if isinstance(method.structure, Units) else None, method.structure.single
    return sum(units.largest(shape) if units else shape[0] * single for shape in of)


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


def _allowed(method: Method, group: Sequence[AnySite], total: int) -> Structure:
    """What sets are: while nothing is pruned, no structure holds."""
    return Unstructured() if total == sum(site.shape.numel() for site in group) else method.structure


@torch.no_grad()
def first_reach(
    method: Method, sites: Mapping[str, AnySite], seed: int, first: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masks of what is trained at first, supersets of the `first` supports; empty where that is everything."""
    counts = method.reach_counts(shapes(sites), 0)
    if counts is None:
        return {}
    init = method.init if isinstance(method.init, Score) else scores.magnitude
    dense = {name: site for name, site in sites.items() if isinstance(site, DenseSite)}
    wider = _highest(init, method, dense, seed, counts)
    return {name: mask | first[name] for name, mask in wider.items()}


def _check_layers(init: Given, sparse: Mapping[str, SparseSite]) -> None:
    for name, site in sparse.items():
        if name not in init.supports:
            continue
        given, mine = init.supports[name], site.support()
        given = given if isinstance(given, Support) else Support.from_mask(given.bool())
        if given.shape != mine.shape or not torch.equal(given.index.cpu(), mine.index):
            raise ConfigError(
                f"the given support of {name} is not that of its sparse layer, which stands; call set_support() on the "
                "layer before, or leave the weight out of the given supports"
            )


def _highest(
    score: Score, method: Method, sites: Mapping[str, DenseSite], seed: int, counts: Mapping[str, int]
) -> dict[str, Tensor]:
    """The best entries; weights compete as in the method, but not by random numbers: then the allocation stands."""
    masks: dict[str, Tensor] = {}
    alone = method.scope == "layer" or "generator" in score.needs
    for group in [[site] for site in sites.values()] if alone else [list(sites.values())]:
        values = [score(site.entries(score.needs, _generator(score.needs, site, seed, "init"), 0)) for site in group]
        nothing = [torch.zeros_like(value, dtype=torch.bool) for value in values]
        total = sum(counts[site.name] for site in group)
        chosen = select_alive(_allowed(method, group, total), values, total, nothing)
        masks.update({site.name: mask for site, mask in zip(group, chosen, strict=True)})
    return masks


def rewire(
    method: Method, sites: Mapping[str, AnySite], seed: int, step: int, memory: dict[str, dict[str, float]]
) -> None:
    """Let the method's rule choose new supports and assign them.

    memory: what the rule remembers, by group.

    Raises:
        DivergedError: a score is not finite; names the weights.
    """
    counts, reach = _next_counts(method, sites, step), method.reach_counts(shapes(sites), step)
    for key, group in _groups(method, sites).items():
        if reach is None and _exchanged(method, group, counts, seed, step):
            continue
        remembered = memory.setdefault(key, {})

        def choose(numbers: Mapping[str, int]) -> list[Tensor]:
            wanted = [numbers[site.name] for site in group]  # noqa: B023 - called at once
            return rule.rewire(entries, wanted, _allowed(method, group, sum(wanted)), step, remembered)  # noqa: B023

        try:
            total = sum(counts[site.name] for site in group)
            masks = _at_once(method, group, total) if reach is None else None
            if masks is None:
                rule, entries = _entries(method.rule, group, total, seed, step, remembered)
                masks = choose(counts)
            wider = [None] * len(group) if reach is None else choose(reach)
        except DivergedError as error:
            names = ", ".join(site.name for site in group)
            raise DivergedError(f"rewiring {names} at step {step}: {error}") from None
        for site, mask, trained in zip(group, masks, wider, strict=True):
            site.assign(mask, step, _newborn_generator(site, seed, step))
            if trained is not None and isinstance(site, DenseSite):
                site.traits.set_reach(trained | mask)


def _exchanged(method: Method, group: Sequence[AnySite], counts: Mapping[str, int], seed: int, step: int) -> bool:
    site = group[0]
    if len(group) > 1 or not isinstance(site, SparseSite):
        return False
    newborn = _newborn_generator(site, seed, step)
    return site.exchange(method.rule, method.structure, counts[site.name], step, newborn)


def _at_once(method: Method, group: Sequence[AnySite], total: int) -> list[Tensor] | None:
    live = [site for site in group if isinstance(site, LiveSite)]
    if len(live) < len(group):
        return None
    latents, masks = [site.latent for site in live], [site.mask for site in live]
    return choose_at_once(method.rule, _allowed(method, group, total), latents, masks, total)


def _next_counts(method: Method, sites: Mapping[str, AnySite], step: int) -> dict[str, int]:
    """Counts of a density that falls never ask a weight for more than it holds: rounding could, by one."""
    counts = method.counts(shapes(sites), step)
    if isinstance(method.density, float | Constant):
        return counts
    held = [site.count for site in sites.values()]
    if sum(held) < sum(counts.values()):
        return counts
    return dict(zip(counts, spread(list(counts.values()), held, sum(counts.values())), strict=True))


def _newborn_generator(site: AnySite, seed: int, step: int) -> torch.Generator | None:
    drawn = isinstance(site.inactive, Zero) and site.inactive.newborn_std > 0
    return generator_for(seed, site.name, f"newborn {step}") if drawn else None


def _groups(method: Method, sites: Mapping[str, AnySite]) -> dict[str, list[AnySite]]:
    return {"": list(sites.values())} if method.scope == "global" else {site.name: [site] for site in sites.values()}


def _entries(
    rule: Rule, group: Sequence[AnySite], total: int, seed: int, step: int, memory: Memory
) -> tuple[Rule, list[Entries]]:
    """What the rule chooses among: all entries of dense weights, the candidates of sparse layers."""
    generators = {site.name: _generator(rule.needs, site, seed, f"rewire {step}") for site in group}
    dense = {s.name: s.entries(rule.needs, generators[s.name], step) for s in group if isinstance(s, DenseSite)}
    if len(dense) == len(group):
        return rule, list(dense.values())
    active = {site.name: site.active(rule.needs, step) for site in group if isinstance(site, SparseSite)}
    known = [active[s.name].entries if s.name in active else _active(dense[s.name]) for s in group]
    most = candidates.most_grown(rule, known, total, step, memory)
    grow = candidates.grow_score(rule)
    entries = [
        site.candidates(active[site.name], most, grow, generators[site.name])
        if isinstance(site, SparseSite)
        else dense[site.name]
        for site in group
    ]
    return candidates.with_known_scores(rule), entries


def _active(entries: Entries) -> Entries:
    """The active ones of all entries."""
    at = entries.active
    grad, age = (None if each is None else each[at] for each in (entries.grad, entries.age))
    return Entries(entries.weight[at], at[at], grad=grad, age=age)


def _generator(needs: frozenset[str], site: AnySite, seed: int, event: str) -> torch.Generator | None:
    return generator_for(seed, site.name, event) if "generator" in needs else None


def _given(init: Given, method: Method, sites: Mapping[str, DenseSite]) -> dict[str, Tensor]:
    masks = _fitting(init, sites)
    _check_given(masks, method, sites)
    return masks


def _fitting(init: Given, sites: Mapping[str, DenseSite]) -> dict[str, Tensor]:
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
    return masks


def _check_given(masks: Mapping[str, Tensor], method: Method, sites: Mapping[str, DenseSite]) -> None:
    """Given supports must have the method's structure and be as many as the density says, up to its rounding."""
    total, size = method.total(shapes(sites), 0), sum(mask.numel() for mask in masks.values())
    held = sum(map(count_true, masks.values()))
    if abs(held - total) > _slack(method, [mask.shape for mask in masks.values()]):
        raise ConfigError(
            f"the given supports hold {held} of {size} entries, the density makes it {total}; pass "
            f"density={held}/{size}"
        )
    for name, mask in masks.items():
        if not method.structure.is_valid(mask):
            raise ConfigError(f"the given support of {name} has not the method's structure, {method.structure.name}")
