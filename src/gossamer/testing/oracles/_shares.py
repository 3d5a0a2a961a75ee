"""Whole numbers in given proportions, by definition: the level is looked for, in exact fractions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise

Numbers = dict[str, int]


def share(parts: Mapping[str, float], room: Mapping[str, int], total: int, least: int = 0) -> Numbers:
    """Divide `total` in proportion to `parts`, each at most its room and at least `least`; largest remainders.

    What has no room goes to the others in proportion, to those without a part (by their room) last. Earlier names win
    equal remainders.
    """
    with_part = {name: Fraction(part) for name, part in parts.items() if part > 0}
    without = [name for name in parts if name not in with_part]
    left = total - sum(room[name] for name in with_part)
    if without and left > least * len(without):
        return {name: room[name] for name in with_part} | share(
            {name: room[name] for name in without}, room, left, least
        )

    def level(height: Fraction) -> dict[str, Fraction]:
        wanted = {name: height * with_part.get(name, Fraction(0)) for name in parts}
        return {name: min(max(wanted[name], Fraction(min(least, room[name]))), Fraction(room[name])) for name in parts}

    bends = sorted({Fraction(0)} | {Fraction(end) / p for n, p in with_part.items() for end in (least, room[n])})
    exact = level(bends[0])
    for low, high in pairwise(bends):
        below, above = sum(level(low).values()), sum(level(high).values())
        if below <= total <= above and below < above:  # it rises evenly between two bends
            exact = level(low + (high - low) * (total - below) / (above - below))
            break
    numbers = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: numbers[name] - exact[name])  # stable: earlier names first
    for name in by_remainder[: total - sum(numbers.values())]:
        numbers[name] += 1
    return numbers
