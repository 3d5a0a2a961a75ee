"""Lottery tickets in the training loop: every training before the ticket's own, each of them resumable."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import checkpoint
from ..cutting import static_on
from ..rewinding import dense_supports, pack_level, prune, snapshot, unpack_supports
from ..tickets import Tickets
from .runs import RunFolder
from .setup import Parts, Plan, Round, build_parts

if TYPE_CHECKING:
    from .train import Update

Progress = Callable[["Update"], None] | None


class Run(Protocol):
    """Trains one round, from the folder's checkpoint if there is one; returns the rows of metrics.jsonl so far."""

    def __call__(self, plan: Plan, parts: Parts, folder: RunFolder, progress: Progress, /) -> list[dict[str, Any]]:
        """Train."""


def search(plan: Plan, parts: Parts, folder: RunFolder, run: Run, progress: Progress) -> Plan:
    """Train and prune, level by level; returns the plan of the ticket's own training.

    plan, parts: of the first round, which is dense. What a round found is in ``round-<n>.safetensors``: the supports,
    the rows so far and, where weights are kept, these. ``rewind.safetensors`` holds the weights of step epsilon, where
    these are what training goes back to. Rounds that are there are not trained again.
    """
    method = plan.method
    assert isinstance(method, Tickets)
    supports = dense_supports(parts.model, parts.targets)
    levels = method.counts({name: support.shape for name, support in supports.items()})
    start, stop = method.again(plan.config.steps)
    asked, plan = plan.config, dataclasses.replace(plan, config=dataclasses.replace(plan.config, control=None))
    early = folder.path / "rewind.safetensors" if method.mode == "weights" else None
    for number, counts in enumerate(levels):
        found = folder.path / f"round-{number}.safetensors"
        if not found.exists():
            parts = build_parts(plan) if number else parts
            inner = _folder_of(folder, number)
            rows = run(plan, parts, inner, _remembering(parts, start, early, progress) if not number else progress)
            supports = prune(parts.model, supports, counts)
            state = None if early else snapshot(parts.model)
            checkpoint.save(found, pack_level(supports, state) | {"rows": rows}, kind="round")
            inner.training_file.unlink(missing_ok=True)
        saved = checkpoint.load(found).state
        supports = {name: s.to(plan.config.device) for name, s in unpack_supports(saved).items()}
        weights = checkpoint.load(early).state if early else saved["state"]
        made, total = plan.round.made(plan.round.stop), plan.round.total
        following = Round(start, stop, total, number + 1, made, tuple(saved["rows"]), weights)
        plan = dataclasses.replace(plan, method=static_on(supports), round=following)
    return dataclasses.replace(plan, config=asked)  # a sanity check is made of the ticket, not on the way to it


def _folder_of(folder: RunFolder, number: int) -> RunFolder:
    """The run folder, with a checkpoint of its own for this round."""
    inner = copy.copy(folder)
    inner.training_file = folder.path / f"round-{number}.training.safetensors"
    return inner


def _remembering(parts: Parts, epsilon: int, path: Path | None, progress: Progress) -> Progress:
    """`progress`, and the weights of step epsilon to `path`; written anew when a resumed run passes there again."""
    if path is None:
        return progress
    if epsilon == 0:
        checkpoint.save(path, snapshot(parts.model), kind="rewind")

    def seen(update: Update) -> None:
        if update.step == epsilon:
            checkpoint.save(path, snapshot(parts.model), kind="rewind")
        if progress:
            progress(update)

    return seen
