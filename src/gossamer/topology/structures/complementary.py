"""Complementary supports: the filters of a group share out the inputs among themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError
from ..selection import check_no_nan, comparable


@dataclass(frozen=True)
class Complementary:
    """Consecutive output filters (dimension 0), G to a group, divide the n inputs: none has two filters of a group.

    So a group fits into one dense filter whose entries know their owner. The n = prod(shape[1:]) inputs of a group all
    belong to one of its filters, each of which has n/G of them, to within one; of a last group of fewer filters each
    has as many, and the other inputs belong to none. A weight of N entries has floor(N / G) active ones: its count
    decides G, the largest whole number with that count, from 1 to n.

    The best set is the greedy one: from the highest score down, in the order of `select_top`, an entry is taken if its
    input is free in the group and its filter has room. It takes G n short steps for all groups at once, on the CPU.

    Source: Hunter, Spracklen and Ahmad 2021 (2112.13896), who draw a random permutation of the inputs for each group;
    that is what random scores give.

    >>> scores = torch.tensor([[3.0, 2.0, 0.0, 1.0], [9.0, 8.0, 7.0, 0.0]])
    >>> Complementary().select([scores], 4)
    [tensor([[False, False,  True,  True],
            [ True,  True, False, False]])]
    """

    name = "complementary"
    single = True

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return the nearest floor(N / G), of two equally near the larger; 0 for a weight without entries."""
        size = math.prod(shape)
        if not size:
            return 0
        below = size // max(1, count)
        possible = [size // min(max(1, groups), _inputs(shape)) for groups in (below, below + 1)]
        return min(possible, key=lambda found: (abs(found - count), -found))

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the mask of the best ``count`` entries in complementary filters.

        Raises:
            ConfigError: more than one weight, or a count that its shape cannot have.
            DivergedError: a score is NaN.
        """
        if len(scores) != 1:
            raise ConfigError(f"complementary supports are a property of one weight, got {len(scores)}")
        (score,) = scores
        if score.dim() < 1 or count != self.round(count, score.shape):
            near = f"; possible is {self.round(count, score.shape)}" if score.dim() else ""
            raise ConfigError(f"cannot select {count} complementary entries from shape {tuple(score.shape)}{near}")
        flat = comparable(scores)
        check_no_nan(flat)
        if not count:
            return [torch.zeros(score.shape, dtype=torch.bool, device=score.device)]
        rows = flat[0].view(score.shape[0], -1).cpu().numpy()
        known = np.zeros_like(rows, dtype=bool) if active is None else active[0].reshape(rows.shape).cpu().numpy()
        each = score.numel() // count
        whole = len(rows) // each * each
        mask = np.zeros_like(rows, dtype=bool)
        for part, size in ((slice(whole), each), (slice(whole, None), len(rows) - whole)):
            if len(rows[part]):
                mask[part] = _greedy(rows[part], known[part], size, each)
        return [torch.from_numpy(mask).view(score.shape).to(score.device)]

    def is_valid(self, mask: Tensor) -> bool:
        """Whether filters of a group have no input in common, leave none over, and have the same number of them."""
        rows = mask.reshape(mask.shape[0], _inputs(mask.shape))
        count = int(rows.sum())
        if not rows.numel() or count != self.round(count, mask.shape):
            return count == 0
        each, inputs = rows.numel() // count, rows.shape[1]
        fan_in, owners = rows.sum(1), torch.stack([group.sum(0).amax() for group in rows.split(each)])
        even = bool(((fan_in == inputs // each) | (fan_in == -(-inputs // each))).all())
        full = all(int(group.sum()) == len(group) * inputs // each for group in rows.split(each))
        return even and full and int(owners.max()) <= 1


def _inputs(shape: Sequence[int]) -> int:
    return math.prod(shape[1:])


def _greedy(scores: np.ndarray, active: np.ndarray, filters: int, each: int) -> np.ndarray:
    """Mask of `scores` (groups * filters, inputs); every filter gets a share of 1 / `each` of the inputs."""
    inputs = scores.shape[1]
    score, known = (values.reshape(-1, filters * inputs) for values in (scores, active))
    order = np.lexsort((np.broadcast_to(np.arange(score.shape[1]), score.shape), ~known, -score))
    least, groups = inputs // each, np.arange(len(score))
    chosen, free = np.zeros((len(score), filters, inputs), dtype=bool), np.ones((len(score), inputs), dtype=bool)
    held = np.zeros((len(score), filters), dtype=np.int64)
    longer = np.full(len(score), filters * inputs // each - filters * least)  # filters that may have one more
    for step in range(score.shape[1]):
        owner, place = np.divmod(order[:, step], inputs)
        has = held[groups, owner]
        taken = free[groups, place] & ((has < least) | ((has == least) & (longer > 0)))
        chosen[groups, owner, place] = taken
        free[groups, place] &= ~taken
        longer -= taken & (has == least)
        held[groups, owner] += taken
    return chosen.reshape(scores.shape)
