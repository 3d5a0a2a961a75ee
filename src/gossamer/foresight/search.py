"""From scores to supports: the rounds of a saliency, exact counts by index, and what is left of the network."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import distributed
from ..errors import ConfigError, DivergedError, check_seed
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
from .connectivity import connected, density_of, describe_collapse
from .probe import Probe, refuse_lazy
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
        cut = ""
        for number in range(1, saliency.rounds + 1):
            values = _scores(saliency, probe, task, number)
            counts = saliency.kept(number, task.final, sizes)
            last = number == saliency.rounds
            event = f"ties {number}"
            probe.masks = _agreed(_select(values, counts, task, probe.masks, structured=last, event=event))
            if not last and saliency.objective.data == "examples" and not probe.carried:
                whole = _whole(saliency, probe)
                if whole:
                    cut = ""  # never, or mended by what came back
                elif whole is False and not cut:
                    cut = f"cut in round {number} of {saliency.rounds} at density {density_of(probe.masks):.3g}"
        if saliency.positions == "random":
            probe.masks = shuffled(probe.masks, task.structure, task.seed, "positions")
        if not probe.carried:
            _report(saliency, probe, _whole(saliency, probe), cut)
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
    if not any(bool(value.where(probe.masks[name], 0.0).any()) for name, value in values.items()):
        _refuse_zeros(saliency, probe, number)
    return values


def _refuse_zeros(saliency: Saliency, probe: Probe, number: int) -> None:
    """Nothing tells the weights apart; where collapse is allowed, it is what a cut network comes to."""
    if number > 1 and saliency.allow_collapse:
        return
    if number == 1 and not any(bool(weight.any()) for weight in probe.weights.values()):
        raise ConfigError(
            f"{saliency.name}: all weights start at zero, so it scores all of them alike; use slope, which scores "
            "gradients, or random"
        )
    if saliency.objective.data is None:
        return
    if number > 1 and _whole(saliency, probe) is False:
        _report(saliency, probe, False, f"cut before round {number} of {saliency.rounds}")
    causes = {
        "examples": "all targets are ignored, the batch is empty, gradients underflow, forward bypasses the model "
        "it is given, or layers at zero (or a cut) keep the loss from the weights",
        "inputs": "the output does not depend on them (softmax at the end), or a layer is zero",
    }[saliency.objective.data]
    raise ConfigError(f"{saliency.name}: all scores are zero in round {number} of {saliency.rounds}: {causes}")


def _select(
    values: Masks, counts: Mapping[str, int], task: Task, active: Masks, *, structured: bool, event: str
) -> Masks:
    """The best of each group. Of a structure of one weight the competition decides the count, then it selects."""
    masks, structure = Masks(), task.structure

    def best(allowed: Structure, group: list[str], count: int) -> list[Tensor]:
        """What the structure selects; if that is some of the scores of zero and not others, chance decides which."""
        alike, now = _alike([values[name] for name in group]), [active[name] for name in group]
        found = allowed.select(alike, count, now)
        zeros = sum(count_true(value == 0) for value in alike)
        if sum(count_true(mask & (v == 0)) for mask, v in zip(found, alike, strict=True)) in (0, zeros):
            return found
        return allowed.select(_drawn(alike, [generator_for(task.seed, name, event) for name in group]), count, now)

    for key, group in task.groups.items():
        wide = Unstructured() if structure.single or not structured else structure
        masks.update(zip(group, best(wide, group, counts[key]), strict=True))
    if structured and structure.single:
        for name, mask in masks.items():
            (masks[name],) = best(structure, [name], structure.round(count_true(mask), mask.shape))
    return masks


def _drawn(values: Sequence[Tensor], generators: Sequence[torch.Generator]) -> list[Tensor]:
    """Scores in the same order, but for those of zero: among themselves these are in a random one."""
    flat = torch.cat([value.flatten() for value in values])
    ranks = torch.unique(flat, return_inverse=True)[1].double()  # equal scores have one rank
    lifts = [torch.rand(v.numel(), generator=g, dtype=torch.float64) for v, g in zip(values, generators, strict=True)]
    ranks += torch.where(flat == 0, torch.cat(lifts).to(flat.device) / 2, 0.0)
    ranks = torch.where(flat.isneginf(), -torch.inf, ranks)
    return [part.view(v.shape) for part, v in zip(ranks.split([v.numel() for v in values]), values, strict=True)]


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


def shuffled(masks: Mapping[str, Tensor], structure: Structure, seed: int, event: str = "shuffle") -> Masks:
    """Masks of the same counts at random positions, as far as the structure leaves them free.

    event: tells draws apart that must not be the same.
    """
    found = Masks()
    for name, mask in masks.items():
        drawn = Entries(torch.zeros(mask.shape), mask.cpu(), generator=generator_for(seed, name, event))
        (found[name],) = structure.select([scores.random(drawn).to(mask.device)], count_true(mask))
    return found


def _empty(probe: Probe) -> list[str]:
    return [name for name, mask in probe.masks.items() if mask.numel() and not count_true(mask)]


def _whole(saliency: Saliency, probe: Probe) -> bool | None:
    """Whether a path is left; None if not known: a guessed shape of inputs serves where a layer is empty."""
    if saliency.ones is None and not (_empty(probe) and probe.ones is not None):
        return None
    try:
        return connected(probe)
    except ConfigError:
        if saliency.ones is not None:
            raise
        return None  # ones in the shape of the examples were a guess


def _report(saliency: Saliency, probe: Probe, whole: bool | None, cut: str) -> None:
    """Refuse a network that is cut in two; tell of empty weights that shortcuts go round. cut: when it was."""
    empty = _empty(probe)
    if not empty and whole is not False:
        return
    told = describe_collapse(saliency.name, empty, probe.masks, whole) + (f"; {cut}" if cut and not whole else "")
    if whole or saliency.allow_collapse:
        warnings.warn(told, stacklevel=_callers_level())
        return
    advice = (
        "inverting a score nearly always does so, allow_collapse=True goes on"
        if saliency.invert
        else "use a larger density, more rounds, synflow or an allocation per layer (scope='layer'), or "
        "allow_collapse=True"
    )
    raise ConfigError(f"{told}; {advice}")


def _callers_level() -> int:
    """The stacklevel at which a warning of the caller points out of this package and torch."""
    ours, level = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)), 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, level = frame.f_back, level + 1
    return level


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
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__}, no torch.nn.Module")
    if not isinstance(saliency, Saliency):
        raise ConfigError(f"saliency is {saliency!r}: expected a Saliency, e.g. foresight.synflow(inputs=(3, 32, 32))")
    check_seed(seed)
    refuse_lazy(model)
    shared_out = resolve_allocation(allocation)
    weights = {row.name: row.parameter for row in choose(model, targets) if row.sparse}
    shapes = {name: weight.shape for name, weight in weights.items()}
    total = round(check_density(density) * sum(map(torch.Size.numel, shapes.values())))
    counts = shared_out(shapes, density) if saliency.scope == "layer" else None
    masks = first_masks(saliency, Task(model, weights, total, counts, seed=seed))
    return {name: Support.from_mask(mask) for name, mask in masks.items()}
