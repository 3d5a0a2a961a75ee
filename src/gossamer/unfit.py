"""Weights that cannot have a structure: all of them at once, and the targets that leave them out."""

from __future__ import annotations

import glob
from collections.abc import Sequence

from torch import nn

from .errors import ConfigError
from .targets import Candidate, stored_by_inputs
from .topology import NM, Structure
from .topology.structures import Block

Targets = str | type[nn.Module] | Sequence[str | type[nn.Module]] | None


def refuse_unfit(structure: Structure, candidates: Sequence[Candidate], targets: Targets) -> None:
    """Raise ConfigError if sparse candidates cannot have the structure; it names them all, and targets without them.

    targets: those that chose the candidates.
    """
    wanted = [row for row in candidates if row.sparse]
    found = {row.name: why for row in wanted if (why := _misfit(structure, row))}
    if not found:
        return
    shapes = {row.name: tuple(row.shape) for row in wanted}
    told = "; ".join(f"{name} {shapes[name]}: {why}" for name, why in found.items())
    advice = "no other weight is left: use another structure, or other targets"
    if len(found) < len(wanted):
        given = [targets] if isinstance(targets, str | type) else list(targets or ())
        advice = f"leave {'them' if len(found) > 1 else 'it'} out with {_without(given, list(found))}"
    raise ConfigError(f"{structure.name} does not fit {len(found)} of {len(wanted)} weights ({told}); {advice}")


def _without(given: Sequence[str | type[nn.Module]], names: Sequence[str]) -> str:
    """Targets that leave the named weights out too, to be pasted into a script or a command line."""
    globs = [f"!{glob.escape(name)}" for name in names]
    kinds = [item.__name__ for item in given if isinstance(item, type)]
    words = [item if isinstance(item, str) else item.__name__ for item in given]
    python = ", ".join([*(word if word in kinds else repr(word) for word in words), *map(repr, globs)])
    command = "" if kinds else f", on the command line --targets '{','.join([*words, *globs])}'"
    return f"targets=[{python}]{command}"


def _misfit(structure: Structure, row: Candidate) -> str:
    """Why the weight cannot have the structure, or ''."""
    if stored_by_inputs(row.module) and structure.single and not _same_from_both_sides(structure):
        kind = type(row.module).__name__
        return f"its first dimension holds inputs, as that of {kind} does; square blocks and transposable N:M would fit"
    groups = getattr(row.module, "groups", 1)  # of a convolution
    return structure.misfit(row.shape, groups if isinstance(groups, int) else 1) if isinstance(structure, NM) else ""


def _same_from_both_sides(structure: Structure) -> bool:
    """Whether the transpose of every allowed set is allowed."""
    square = isinstance(structure, Block) and len(set(structure.shape)) == 1
    return square or (isinstance(structure, NM) and structure.transposable)
