"""What a rewiring does to long lists of positions, natively where it can be: linear time, no sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from . import sparse
from .cpu.library import Library, call, native, threads


def ascending(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the flat positions of an index in ascending order, and the place of each among the stored values."""
    library = native()
    if library is None:
        found = sparse.positions(index, count).sort(stable=True)
        return found.values, found.indices
    flat, place = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    call(library.index_ascending, index, flat, place, threads())
    return flat, place


def sources(before: tuple[Tensor, Tensor], flat: Tensor, order: Tensor) -> Tensor:
    """Return, for each position that is stored after a change of support, its place before, or -1; int32.

    before: as `ascending` returns it. flat, order: the new positions, ascending, and the order in which they are
        stored, see `sparse.build`.
    """
    (old, place), library = before, native()
    if library is None:
        stored = flat[order]
        nearest = torch.searchsorted(old, stored).clamp_(max=max(0, len(old) - 1))
        both = old[nearest] == stored if len(old) else torch.zeros_like(stored, dtype=torch.bool)
        found = torch.full((len(flat),), -1, dtype=torch.int32)
        found[both] = place[nearest[both]].int()
        return found
    found = torch.empty(len(flat), dtype=torch.int32)
    call(library.sources, old, place, len(old), flat, order, len(flat), found, threads())
    return found


def carried(held: Tensor, source: Tensor, rest: float = 0.0) -> Tensor:
    """Return what ``held`` has at the places ``source`` (int32), and ``rest`` where that is -1."""
    library = native()
    if library is None or held.dtype != torch.float32:
        padded = torch.cat([held, held.new_full((1,), rest)])
        return padded.index_select(0, source.long() % len(padded))
    moved = held.new_empty(len(source))
    call(library.carry, held, source, len(source), rest, moved, threads())
    return moved


def row_of(index: Tensor, count: int, place: int, columns: int) -> tuple[int, Tensor, Tensor]:
    """Return the row of a stored value, and of all values in it the columns, ascending, and the places."""
    library = native()
    if library is None:
        flat = sparse.positions(index, count)
        number = int(flat[place]) // columns
        places = (flat // columns == number).nonzero().view(-1)
        own = (flat[places] % columns).sort()
        return number, own.values, places[own.indices]
    row, found = torch.empty(1, dtype=torch.int64), torch.empty(2, columns, dtype=torch.int64)
    held = call(library.row_of, index, place, row, *found)
    return int(row), found[0, :held], found[1, :held]


# -- an exchange, natively only --


def exchange(index: Tensor, kept: Tensor, born: Tensor, count: int, size: int) -> tuple[Tensor, Tensor] | None:
    """Return the index of the ``kept`` values of another and of newborn ones, and the `sources` of its values.

    index: what was, with blocks of the size that the new ``count`` wants. kept: bool, of each value. born: ascending
        positions of inactive entries. size: bytes of the index to be. None: the matrix has too many blocks for that.
    """
    made, source = torch.empty(size, dtype=torch.uint8), torch.empty(count, dtype=torch.int32)
    failed = call(_library().exchange, index, kept, born, len(born), count, made, source, threads())
    return None if failed else (made, source)


def inactive(index: Tensor, flat: Tensor) -> Tensor:
    """Return those of some ascending positions that are not in the index; ``flat`` is overwritten."""
    return flat[: call(_library().inactive, index, flat, len(flat), threads())]


def _library() -> Library:
    library = native()
    assert library is not None
    return library


# -- lists --


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
