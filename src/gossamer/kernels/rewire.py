"""What a rewiring does to long lists of positions, natively where it can be: linear time, no sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from . import sparse
from .cpu.library import call, native, threads


def ascending(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the flat positions of an index in ascending order, and the place of each among the stored values."""
    library = native()
    if library is None:
        found = sparse.positions(index, count).sort(stable=True)
        return found.values, found.indices
    flat, place = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    call(library.index_ascending, index, flat, place, threads())
    return flat, place


def compare(before: tuple[Tensor, Tensor], flat: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places, before and after, of positions in both lists, and the places of those in the second alone.

    before: as `ascending` returns it. flat, order: the new positions, ascending, and the order in which they are
        stored, see `sparse.build`.
    """
    (old, source), library = before, native()
    if library is None:
        stored = flat[order]
        nearest = torch.searchsorted(old, stored).clamp_(max=max(0, len(old) - 1))
        both = old[nearest] == stored if len(old) else torch.zeros_like(stored, dtype=torch.bool)
        return source[nearest[both]], both.nonzero().view(-1), (~both).nonzero().view(-1)
    room = min(len(old), len(flat))
    kept, moved, born = (torch.empty(size, dtype=torch.int64) for size in (room, room, len(flat)))
    lists = old, source, len(old), flat, order, len(flat)
    survivors = call(library.moves, *lists, kept, moved, born, threads())
    return kept[:survivors], moved[:survivors], born[: len(flat) - survivors]


def merge(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the entries of two ascending lists without common entries lie in their union."""
    library = native()
    if library is None:
        here = torch.searchsorted(first, second) + torch.arange(len(second))
        there = torch.ones(len(first) + len(second), dtype=torch.bool)
        there[here] = False
        return there.nonzero().view(-1), here
    places = torch.empty_like(first), torch.empty_like(second)
    call(library.merge, first, len(first), second, len(second), *places)
    return places


def union(first: Tensor, second: Tensor) -> Tensor:
    """Return the union, ascending, of two ascending lists without common entries."""
    here, there = merge(first, second)
    both = first.new_empty(len(first) + len(second))
    both.numpy()[here.numpy()] = first.numpy()  # several times faster than torch's own
    both.numpy()[there.numpy()] = second.numpy()
    return both


def above(score: Tensor, limit: float, active: Tensor) -> Tensor | None:
    """Return the ascending numbers of the scores above ``limit`` that are not in the ascending list ``active``.

    score: 1-D. None: a score is not finite, of an active entry perhaps.
    """
    library = native()
    if library is None or score.dtype != torch.float32:
        if score.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(score))).all()):
            return None
        better = score > limit
        better[active] = False
        return better.nonzero().view(-1)
    found = torch.empty(len(score), dtype=torch.int64)
    count = call(library.collect, score, len(score), limit, active, len(active), found, threads())
    return None if count < 0 else found[:count]
