"""Whole numbers that add up: share a total in given proportions, within bounds, with no unit lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from ..errors import ConfigError


def spread(quota: Sequence[float], capacity: Sequence[int], total: int, least: int = 0) -> list[int]:
    """Split ``total`` in proportion to ``quota``, each part at most its capacity and at least ``least``.

    ``part_l = clip(lambda * quota_l, min(least, capacity_l), capacity_l)``, with the one ``lambda`` for which the parts
    add up to ``total`` (water filling), rounded by largest remainder, ties by order. Computed in exact fractions, so a
    quota of integers that adds up to the total and fits comes back unchanged. What the parts with a positive quota
    cannot take goes to the others in proportion to their capacity.

    Raises:
        ConfigError: a quota is negative or not finite, or the total does not fit between the bounds.

    >>> spread([3, 1], [100, 100], 40)
    [30, 10]
    >>> spread([3, 1], [20, 100], 40)
    [20, 20]
    """
    if any(not math.isfinite(q) or q < 0 for q in quota):
        raise ConfigError(f"a quota must be finite and not negative, got {list(quota)}")
    floor = [min(least, room) for room in capacity]
    if not sum(floor) <= total <= sum(capacity):
        raise ConfigError(f"cannot spread {total} over parts that hold {sum(floor)} to {sum(capacity)}")
    wanted, others = [i for i, q in enumerate(quota) if q > 0], [i for i, q in enumerate(quota) if q == 0]
    full = sum(capacity[i] for i in wanted)
    if total > full + sum(floor[i] for i in others):
        room = [capacity[i] for i in others]
        rest = dict(zip(others, spread(room, room, total - full, least), strict=True))
        return [rest.get(i, capacity[i]) for i in range(len(capacity))]
    share = [Fraction(q) for q in quota]
    level = _level(share, floor, capacity, total)
    target = [min(max(level * s, Fraction(f)), Fraction(c)) for s, f, c in zip(share, floor, capacity, strict=True)]
    return _largest_remainder(target, total)


def _level(share: Sequence[Fraction], floor: Sequence[int], capacity: Sequence[int], total: int) -> Fraction:
    """Return the lambda at which clip(lambda * share, floor, capacity) adds up to ``total``."""
    # The sum is piecewise linear and rising; walk over its bends: each part starts to rise at one and stops at another.
    bends = []
    for s, f, c in zip(share, floor, capacity, strict=True):
        if s > 0:
            bends += [(Fraction(f) / s, s), (Fraction(c) / s, -s)]
    value, slope, at = Fraction(sum(floor)), Fraction(0), Fraction(0)
    for bend, change in sorted(bends):
        reached = value + slope * (bend - at)
        if reached >= total and slope:
            break
        value, slope, at = reached, slope + change, bend
    return at + (total - value) / slope if slope else at


def _largest_remainder(target: Sequence[Fraction], total: int) -> list[int]:
    parts = [math.floor(t) for t in target]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - target[i], i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts
