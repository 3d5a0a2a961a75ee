"""Transposable 2:4 patterns by brute force: every 4 x 4 tile against all 90, in whole numbers."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

_ROW = [tuple(int(column in pair) for column in range(4)) for pair in itertools.combinations(range(4), 2)]


def all_patterns() -> Tensor:
    """The 90 patterns (90, 4, 4), int64: of equally good ones the first in this order is taken.

    Ordered by the number of the column counts that the upper two rows leave, numbered as the 36 pairs of rows first
    show them; then by upper, then by lower rows.
    """
    halves = list(itertools.product(_ROW, _ROW))
    counts = [tuple(map(sum, zip(*half, strict=True))) for half in halves]
    numbers = {count: place for place, count in reversed(list(enumerate(counts)))}
    found = [
        (numbers[counts[u]], u, low)
        for u, low in itertools.product(range(36), repeat=2)
        if all(a + b == 2 for a, b in zip(counts[u], counts[low], strict=True))
    ]
    return torch.tensor([[*halves[u], *halves[low]] for _, u, low in sorted(found)])


def best_of_90(tiles: Tensor, active: Tensor | None = None) -> Tensor:
    """The masks of the best patterns; ``tiles`` (tiles, 4, 4) hold whole numbers below 2^20 and infinities.

    First as many of +inf as possible, then as few of -inf, then the largest sum; of equal ones what is active, if that
    is one of them, then the first.
    """
    values = torch.nan_to_num(tiles.double(), posinf=2.0**40, neginf=-(2.0**30)).long().reshape(-1, 16).numpy()
    patterns = all_patterns().reshape(90, 16).numpy()
    sums = values @ patterns.T
    best = sums.max(1)
    chosen = patterns[(sums == best[:, None]).argmax(1)]
    if active is not None:
        held = active.reshape(-1, 16).long().numpy()
        known = (held[:, None, :] == patterns).all(2).any(1)
        stays = known & ((values * held).sum(1) == best)
        chosen = np.where(stays[:, None], held, chosen)
    return torch.from_numpy(chosen.astype(bool)).view(-1, 4, 4)
