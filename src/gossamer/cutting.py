"""From gates to a support: what is kept when soft gates are cut."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping

from torch import Tensor

from .errors import ConfigError, DivergedError
from .method import Given, Method
from .topology import Explicit, Support, select_top


def check_counts(sizes: Mapping[str, int], density: float | None) -> None:
    """Raise ConfigError if `density` keeps less than one entry per weight."""
    total = sum(sizes.values())
    if density is not None and round(density * total) < len(sizes):
        raise ConfigError(
            f"density={density} keeps {round(density * total)} of {total} entries, but there are {len(sizes)} weights "
            "and each keeps one at least; use a larger density or fewer targets"
        )


def cut(openness: Mapping[str, Tensor], density: float | None) -> dict[str, Tensor]:
    """Return the bool masks of what is kept, by name: at least the best entry of each weight.

    openness: score of every entry, above 0 where the gate is open. density: exactly ``round(density * N)`` entries are
    kept, those of the highest scores of all weights together, ties in the order of `select_top`; None: the open ones.

    Raises:
        DivergedError: a score is NaN.

    >>> import torch
    >>> cut({"a": torch.tensor([0.3, -0.1]), "b": torch.tensor([-0.2, -0.4])}, None)
    {'a': tensor([ True, False]), 'b': tensor([ True, False])}
    """
    for name, score in openness.items():
        if bool(score.isnan().any()):
            raise DivergedError(
                f"the gates of {name} are NaN and cannot be cut: training has diverged; lower the rates"
            )
    scores = list(openness.values())
    best = [select_top([score], 1)[0] for score in scores]
    if density is None:
        return {n: (s > 0) | b for (n, s), b in zip(openness.items(), best, strict=True)}
    forced = [score.masked_fill(mask, math.inf) for score, mask in zip(scores, best, strict=True)]
    count = round(density * sum(score.numel() for score in scores))
    chosen = select_top(forced, count, [score > 0 for score in scores])
    return dict(zip(openness, chosen, strict=True))


def static_on(supports: Mapping[str, Support]) -> Method:
    """Return the static method on given supports."""
    return Method(
        name="static",
        density=sum(s.count for s in supports.values()) / sum(s.numel for s in supports.values()),
        init=Given(supports),
        allocation=Explicit({glob.escape(name): support.count for name, support in supports.items()}),
    )
