"""The best 2:4 pattern of a 4 x 4 tile, along its rows and its columns: exact, and defined to the bit.

A pattern has two entries in every row and two in every column; there are 90. `best_patterns` is the definition: every
other implementation returns the same bits. In words, for a tile s of 4 x 4 finite scores in float32:

1. **Pairs.** A row has six pairs of columns, in this order: 01, 02, 03, 12, 13, 23. The sum of a pair is one float32
   addition.
2. **Halves.** A half is two rows: 36 choices, number 6 a + b for pair a of its first and pair b of its second row. The
   sum of a choice is one addition of the two pair sums. A choice leaves a count of 0, 1 or 2 in each column; 19 such
   vectors occur. Of the choices with the same vector the one with the largest sum stays; of equal ones the first.
3. **Tiles.** The vectors are numbered in the order in which the 36 choices first show them. A vector of the upper half
   goes with exactly one of the lower half, 2 minus it. The sum of a tile is one addition, upper + lower; the vector
   with the largest one stays; of equal ones the first.
4. **Ties.** A tile whose active entries already are one of the 90 patterns keeps them if their sum, added up in the
   same way, equals the largest.

That is 24 + 72 + 19 additions and 17 + 17 + 18 comparisons for 16 scores; nothing is rounded but these additions, so
their order, and that of the comparisons (strictly larger wins), is all that an implementation must keep. Without
rounding it is the exact optimum over the 90 patterns, the first of equal ones in the order (vector, upper, lower).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

PAIRS = tuple(itertools.combinations(range(4), 2))
CHOICES = tuple(itertools.product(range(6), repeat=2))  # pairs of the two rows of a half
CHUNK = 1 << 15  # tiles at a time: what they need fits a cache

_Keys = tuple[Tensor, ...]  # what is compared, the most important first


def _columns(choice: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(column in PAIRS[pair] for pair in choice) for column in range(4))


VECTORS = tuple(dict.fromkeys(map(_columns, CHOICES)))
MEMBERS = tuple(tuple(c for c, choice in enumerate(CHOICES) if _columns(choice) == vector) for vector in VECTORS)
COMPLEMENT = tuple(VECTORS.index(tuple(2 - held for held in vector)) for vector in VECTORS)
# Eight bits for the entries of two rows, bit 4 row + column.
BITS = tuple(sum(1 << (4 * row + column) for row in (0, 1) for column in PAIRS[choice[row]]) for choice in CHOICES)


def patterns() -> Tensor:
    """Return the 90 patterns, (90, 4, 4) bool, in the order in which ties are broken.

    >>> patterns().shape, patterns()[0].int().tolist()
    (torch.Size([90, 4, 4]), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    """
    bits = [
        BITS[upper] | BITS[lower] << 8
        for vector, partner in enumerate(COMPLEMENT)
        for upper in MEMBERS[vector]
        for lower in MEMBERS[partner]
    ]
    return _unpacked(torch.tensor(bits, dtype=torch.int32))


def best_patterns(tiles: Tensor, active: Tensor | None = None) -> Tensor:
    """Return the bool masks (tiles, 4, 4) of the best patterns of ``tiles`` (tiles, 4, 4), scores without NaN.

    active: what is active now, (tiles, 4, 4) bool; decides ties as the module says. Scores are rounded to float32.
    Infinities force: first as many of +inf as a pattern can hold, then as few of -inf, then the largest sum of the
    rest. Sums must stay finite: magnitudes below 4e37.
    """
    parts = range(0, len(tiles), CHUNK)
    found = [_best(tiles[at : at + CHUNK], None if active is None else active[at : at + CHUNK]) for at in parts]
    return torch.cat(found) if found else torch.zeros(tiles.shape, dtype=torch.bool, device=tiles.device)


def _best(tiles: Tensor, active: Tensor | None) -> Tensor:
    entries = tiles.to(torch.float32).reshape(-1, 16).t().contiguous()
    keys: _Keys = (entries,)
    if bool(entries.isinf().any()):  # 16 of +inf outweigh every number of -inf
        infinite = entries.isinf()
        keys = ((infinite * entries.sign()).where(entries < 0, infinite * 16.0), entries.where(~infinite, 0.0))
    upper, lower = _half(keys, 0), _half(keys, 8)
    best, bits = _first_best(
        [
            (_sum(upper[vector][0], lower[partner][0]), upper[vector][1] | lower[partner][1] << 8)
            for vector, partner in enumerate(COMPLEMENT)
        ]
    )
    if active is not None:
        bits = _kept(keys, best, bits, active.reshape(-1, 16).t())
    return _unpacked(bits)


def _half(keys: _Keys, start: int) -> list[tuple[_Keys, Tensor]]:
    """The best choice of each vector, for the two rows from entry `start` on: what it is worth, and its bits."""
    rows = [[_pair(keys, start + 4 * row, pair) for pair in PAIRS] for row in (0, 1)]
    like = keys[0][0]
    bits = [torch.full_like(like, each, dtype=torch.int32) for each in BITS]
    return [
        _first_best([(_sum(rows[0][CHOICES[c][0]], rows[1][CHOICES[c][1]]), bits[c]) for c in members])
        for members in MEMBERS
    ]


def _pair(keys: _Keys, start: int, pair: tuple[int, int]) -> _Keys:
    return tuple(key[start + pair[0]] + key[start + pair[1]] for key in keys)


def _sum(a: _Keys, b: _Keys) -> _Keys:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _first_best(offers: Sequence[tuple[_Keys, Tensor]]) -> tuple[_Keys, Tensor]:
    """The largest, the first of equal ones."""
    best, bits = offers[0]
    for keys, other in offers[1:]:
        better = _above(keys, best)
        best = tuple(torch.where(better, new, old) for new, old in zip(keys, best, strict=True))
        bits = torch.where(better, other, bits)
    return best, bits


def _above(a: _Keys, b: _Keys) -> Tensor:
    if len(a) == 1:
        return a[0] > b[0]
    return (a[0] > b[0]) | ((a[0] == b[0]) & _above(a[1:], b[1:]))


def _kept(keys: _Keys, best: _Keys, bits: Tensor, active: Tensor) -> Tensor:
    """The bits of the active entries where these are a pattern that is as good as the best one."""
    by_row = active.view(4, 4, -1)
    keep = (by_row.sum(1) == 2).all(0) & (by_row.sum(0) == 2).all(0)
    for key, wanted in zip(keys, best, strict=True):
        held = key.where(active, 0.0).view(4, 4, -1)
        rows = (held[:, 0] + held[:, 1]) + (held[:, 2] + held[:, 3])  # two of the four are zeros: one rounding
        keep &= (rows[0] + rows[1]) + (rows[2] + rows[3]) == wanted
    shifts = torch.arange(16, dtype=torch.int32, device=bits.device).view(16, 1)
    return torch.where(keep, (active.to(torch.int32) << shifts).sum(0, dtype=torch.int32), bits)


def _unpacked(bits: Tensor) -> Tensor:
    shifts = torch.arange(16, dtype=torch.int32, device=bits.device)
    return (bits.unsqueeze(1) >> shifts & 1).bool().view(-1, 4, 4)
