"""From scores to supports: the rounds of a saliency, exact counts by index, and what is left of the network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import distributed
from ..errors import ConfigError, DivergedError
from ..seeding import generator_for, own_random_state
from ..targets import choose
from ..topology import (
    Allocation,
    Entries,
    Structure,
    Support,
    Unstructured,
    check_density,
    resolve_allocation,
    scores,
)
from ..topology.selection import count_true
from .connectivity import connected, describe_collapse
from .probe import Probe
from .saliency import Saliency

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What a search is about.

    model: scored, never changed. weights: name -> parameter of every target. counts: entries of each weight; None where
    all weights compete for `total`. structure: what sets are allowed.
    """

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    total: int
    counts: Mapping[str, int] | None = None
    structure: Structure = field(default_factory=Unstructured)
    seed: int = 0

    @property
    def groups(self) -> dict[str, list[str]]:
        """Which weights compete with each other."""
        return {"": list(self.weights)} if self.counts is None else {name: [name] for name in self.weights}

    @property
    def final(self) -> dict[str, int]:
        """Entries that each group ends with."""
        return {"": self.total} if self.counts is None else dict(self.counts)


@torch.inference_mode(False)
@torch.no_grad()
def first_masks(saliency: Saliency, task: Task) -> Masks:
    """Return the mask of every weight: exactly the counts the task asks for, the same on every rank.

    Model, batch-norm statistics, modes, gradients and the global random generators are left as they were.

    Raises:
        ConfigError: the saliency lacks data, or the network would collapse.
        DivergedError: a score is not finite; names the weight.
    """
    saliency.check_data()
    devices = {weight.device for weight in task.weights.values()}
    probe = Probe(task.model, task.weights, saliency.examples, saliency.ones, saliency.batches)
    probe.agree()
    probe.masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in task.weights.items()}
    sizes = {key: sum(task.weights[name].numel() for name in group) for key, group in task.groups.items()}
    with own_random_state(task.seed, "foresight", devices), torch.autocast(probe.device.type, enabled=False):
        for number in range(1, saliency.rounds + 1):
            values = _scores(saliency, probe, task, number)
            counts = saliency.kept(number, task.final, sizes)
            last = number == saliency.rounds
            probe.masks = _agreed(_select(values, counts, task, probe.masks, structured=last))
        if saliency.positions == "random":
            probe.masks = shuffled(probe.masks, task.structure, task.seed)
        _check_alive(saliency, probe)
    return probe.masks


def _scores(saliency: Saliency, probe: Probe, task: Task, number: int) -> Masks:
    """The scores of round `number`; what must not come back has the lowest of all."""
    objective, values = saliency.objective, Masks()
    with torch.enable_grad():
        gradient = objective.gradient(probe)
    for name, weight in probe.weights.items():
        drawn = generator_for(task.seed, name, "init") if "generator" in objective.score.needs else None
        entries = Entries(weight.detach(), probe.masks[name], gradient.get(name), generator=drawn)
        value = objective.score(entries)
        if not bool(torch.isfinite(value).all()):
            raise DivergedError(
                f"{saliency.name}: scores of {name} are not finite in round {number} of {saliency.rounds}: the weights "
                "or the data are not, or the network multiplies signals beyond what numbers can hold"
            )
        value = -value if saliency.invert else value
        values[name] = value if saliency.revive else torch.where(probe.masks[name], value, -torch.inf)
    return values


def _select(values: Masks, counts: Mapping[str, int], task: Task, active: Masks, *, structured: bool) -> Masks:
    """The best of each group. Of a structure of one weight the competition decides the count, then it selects."""
    masks, structure = Masks(), task.structure
    for key, group in task.groups.items():
        wide = Unstructured() if structure.single or not structured else structure
        chosen = wide.select(_alike([values[n] for n in group]), counts[key], [active[n] for n in group])
        masks.update(zip(group, chosen, strict=True))
    if structured and structure.single:
        for name, mask in masks.items():
            count = structure.round(count_true(mask), mask.shape)
            (masks[name],) = structure.select([values[name]], count, [active[name]])
    return masks


def _alike(values: Sequence[Tensor]) -> list[Tensor]:
    """Scores of one dtype and device, so that they compare."""
    dtype = values[0].dtype
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return [value.to(values[0].device, dtype) for value in values]


def _agreed(masks: Masks) -> Masks:
    """Rank 0's masks: sums over ranks need not be the same to the last bit on all of them."""
    return (
        {name: distributed.broadcast(mask.clone()) for name, mask in masks.items()} if distributed.active() else masks
    )


def shuffled(masks: Mapping[str, Tensor], structure: Structure, seed: int) -> Masks:
    """Masks of the same counts at random positions, as far as the structure leaves them free."""
    found = Masks()
    for name, mask in masks.items():
        drawn = Entries(torch.zeros(mask.shape), mask.cpu(), generator=generator_for(seed, name, "shuffle"))
        (found[name],) = structure.select([scores.random(drawn).to(mask.device)], count_true(mask))
    return found


def _check_alive(saliency: Saliency, probe: Probe) -> None:
    """Refuse a network that is cut in two; tell of empty weights that shortcuts go round."""
    empty = [name for name, mask in probe.masks.items() if mask.numel() and not count_true(mask)]
    known = saliency.ones is not None or (empty and probe.ones is not None)
    try:
        whole = connected(probe) if known else None
    except ConfigError:
        if saliency.ones is not None:
            raise
        whole = None  # ones in the shape of the examples were a guess
    if not empty and whole is not False:
        return
    told = describe_collapse(saliency.name, empty, probe.masks, whole)
    if whole or saliency.allow_collapse:
        warnings.warn(told, stacklevel=2)
        return
    raise ConfigError(
        f"{told}; use a larger density, more rounds, synflow or an allocation per layer (scope='layer'), or "
        "allow_collapse=True"
    )


def find(
    model: nn.Module,
    saliency: Saliency,
    density: float,
    *,
    allocation: Allocation | str | Mapping[str, float] = "erk",
    targets: str | type[nn.Module] | Sequence[str | type[nn.Module]] | None = None,
    seed: int = 0,
) -> dict[str, Support]:
    """Return the supports that a saliency finds; the model stays as it is. `Given(supports)` starts a method from them.

    Of several processes all must call it: they score rank 0's model, each on its own examples.

    density: fraction of the targeted weights kept. allocation: how it is shared out if the saliency's scope is "layer".

    Raises:
        TargetError: targets match nothing that can be sparse.
        ConfigError: the saliency lacks data, or the network would collapse.
        DivergedError: a score is not finite; names the weight.

    >>> import torch
    >>> from gossamer import foresight
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> supports = foresight.find(model, foresight.synflow(inputs=(8,)), density=0.25)
    >>> sum(support.count for support in supports.values())
    40
    """
    weights = {row.name: row.parameter for row in choose(model, targets) if row.sparse}
    shapes = {name: weight.shape for name, weight in weights.items()}
    total = round(check_density(density) * sum(map(torch.Size.numel, shapes.values())))
    counts = resolve_allocation(allocation)(shapes, density) if saliency.scope == "layer" else None
    masks = first_masks(saliency, Task(model, weights, total, counts, seed=seed))
    return {name: Support.from_mask(mask) for name, mask in masks.items()}
