"""Scores: how much a coordinate deserves to participate. Higher = kept, or grown, first.

A score is an elementwise function of aligned tensors (`Entries`) and says which of them it needs. ``needs`` are names
of fields of `Entries` (``grad``, ``momentum``, ``sign``, ``age``, ``generator``) or of optimizer slots; ``weight`` and
``active`` are always there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .entries import Entries

ScoreFn = Callable[[Entries], Tensor]
SplitFn = Callable[[Entries], Sequence[Tensor]]


@dataclass(frozen=True)
class Score:
    """A named score.

    Args:
        name: how it is printed.
        fn: entries -> tensor of the weight's shape, higher = kept or grown first.
        needs: what it reads beyond ``weight`` and ``active``.
        split: entries -> bool masks of disjoint groups that are ranked separately when this score drops; active
            coordinates in no group are dropped always. None: one group.
    """

    name: str
    fn: ScoreFn = field(repr=False)
    needs: frozenset[str] = frozenset()
    split: SplitFn | None = field(default=None, repr=False)

    def __call__(self, entries: Entries) -> Tensor:
        """Return the score of every coordinate, in the shape of the weight."""
        return self.fn(entries)


def score(*needs: str, split: SplitFn | None = None) -> Callable[[ScoreFn], Score]:
    """Make a `Score` from a function of `Entries`; ``needs`` as in `Score`.

    >>> @score("grad")
    ... def fisher(entries):
    ...     return (entries.weight * entries.require("grad")) ** 2
    >>> fisher.name, sorted(fisher.needs)
    ('fisher', ['grad'])
    """

    def make(fn: ScoreFn) -> Score:
        made = Score(fn.__name__, fn, frozenset(needs), split)
        object.__setattr__(made, "__doc__", fn.__doc__)
        # The module's name now holds the Score: point the function there, so that scores pickle by reference.
        fn.__qualname__ = f"{fn.__qualname__}.fn"
        return made

    return make


def _signs(entries: Entries) -> tuple[Tensor, Tensor]:
    return entries.weight > 0, entries.weight < 0


@score()
def magnitude(entries: Entries) -> Tensor:
    """``|w|``. Source: Han et al. 2015 (1506.02626); the drop score of RigL (Evci et al. 2020, 1911.11134)."""
    return entries.weight.abs()


@score(split=_signs)
def signed_magnitude(entries: Entries) -> Tensor:
    """``|w|``, ranked separately among positive and among negative weights; active exact zeros go first.

    Source: SET (Mocanu et al. 2018, 1707.04780), which drops the smallest positive and the largest negative weights.
    """
    return entries.weight.abs()


@score("grad")
def gradient(entries: Entries) -> Tensor:
    """``|g|``, the gradient at every coordinate. Source: the grow score of RigL (Evci et al. 2020, 1911.11134)."""
    return entries.require("grad").abs()


@score("momentum")
def momentum(entries: Entries) -> Tensor:
    """``|m|``, the optimizer's first moment. Source: SNFS (Dettmers and Zettlemoyer 2019, 1907.04840)."""
    return entries.require("momentum").abs()


@score("grad")
def saliency(entries: Entries) -> Tensor:
    """``|w g|``, the first-order change of the loss on removal.

    Source: Mozer and Smolensky 1989 (skeletonization); SNIP (Lee et al. 2019, 1810.02340) at initialisation.
    """
    return (entries.weight * entries.require("grad")).abs()


@score("generator")
def random(entries: Entries) -> Tensor:
    """Uniform in [0, 1), drawn on the CPU in float32 and then moved: the same numbers on every device.

    Source: the grow score of SET (Mocanu et al. 2018, 1707.04780).
    """
    drawn = torch.rand(entries.weight.shape, generator=entries.require_generator(), dtype=torch.float32)
    return drawn.to(entries.weight.device)


@score("sign")
def sign_flip(entries: Entries) -> Tensor:
    """``sign * w``: below 0 where a weight crossed zero since it was given its sign.

    Source: DeepR (Bellec et al. 2018, 1711.05136), where a crossed connection becomes dormant.
    """
    return entries.require("sign") * entries.weight
