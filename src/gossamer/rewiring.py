"""Where method and sites meet: which entries participate at first, and which from now on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import ConfigError, DivergedError
from .method import Given, Method
from .sites import DenseSite
from .topology import Entries, Support


def generator_for(seed: int, name: str, event: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its key: the same on every rank and after a resume."""
    key = hashlib.blake2b(f"{seed}|{name}|{event}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)


def shapes(sites: Mapping[str, DenseSite]) -> dict[str, torch.Size]:
    """Weight name -> shape, as allocations want them."""
    return {name: site.shape for name, site in sites.items()}


@torch.no_grad()
def first_masks(method: Method, sites: Mapping[str, DenseSite], seed: int) -> dict[str, Tensor]:
    """The masks that training starts from; nothing is changed yet.

    Raises:
        ConfigError: the density is infeasible, or given supports do not fit.
    """
    counts, init = method.counts(shapes(sites), 0), method.init
    if isinstance(init, Given):
        return _given(init, sites, counts)
    masks: dict[str, Tensor] = {}
    for group in _groups(method, sites):
        scores = [init(_entries(site, init.needs, seed, "init")) for site in group]
        chosen = method.structure.select(scores, sum(counts[site.name] for site in group))
        masks.update({site.name: mask for site, mask in zip(group, chosen, strict=True)})
    return masks


def rewire(method: Method, sites: Mapping[str, DenseSite], seed: int, step: int) -> None:
    """Let the method's rule choose new supports and assign them.

    Raises:
        DivergedError: a score is not finite; names the weights.
    """
    counts = method.counts(shapes(sites), step)
    for group in _groups(method, sites):
        entries = [_entries(site, method.rule.needs, seed, f"rewire {step}") for site in group]
        try:
            masks = method.rule.rewire(entries, [counts[s.name] for s in group], method.structure, step)
        except DivergedError as error:
            names = ", ".join(site.name for site in group)
            raise DivergedError(f"rewiring {names} at step {step}: {error}") from None
        for site, mask in zip(group, masks, strict=True):
            site.assign(mask)


def _groups(method: Method, sites: Mapping[str, DenseSite]) -> list[list[DenseSite]]:
    return [list(sites.values())] if method.scope == "global" else [[site] for site in sites.values()]


def _entries(site: DenseSite, needs: frozenset[str], seed: int, event: str) -> Entries:
    generator = generator_for(seed, site.name, event) if "generator" in needs else None
    return site.entries(needs, generator)


def _given(init: Given, sites: Mapping[str, DenseSite], counts: Mapping[str, int]) -> dict[str, Tensor]:
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
        if (held := int(mask.sum())) != counts[name]:
            raise ConfigError(
                f"the given support of {name} holds {held} entries, density and allocation make it {counts[name]}; "
                "pass the supports' own density, and their counts as allocation"
            )
        masks[name] = mask.to(site.parameter.device)
    return masks
