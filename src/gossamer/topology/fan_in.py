"""Drop and grow at a constant fan-in, with whole output neurons switched off and on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ConfigError, check_number
from .drop_grow import DropGrow
from .entries import Entries
from .rules import forced
from .schedules import as_schedule
from .selection import count_true, select_top
from .structures import Structure, top_of_rows
from .thresholds import Memory


@dataclass(frozen=True)
class FanInDropGrow:
    """Drop by magnitude over the whole weight, grow by gradient per neuron, every active neuron with the same fan-in.

    Per weight of `out` neurons (dimension 0) with n active entries, of budget K:

    1. k = floor(phi n). Salient are the n - k largest drop scores of the active entries, and the k largest grow scores
       of all entries.
    2. A neuron with fewer than max(1, floor(gamma n / a)) salient entries is ablated, a being the neurons active so
       far; at least ceil(K / fan-in of the dense weight) neurons stay, those with most salient entries.
    3. With a' neurons left the fan-in is floor(K / a'). Each keeps its n - k largest, at most the fan-in of them, and
       is filled up by grow score; just-dropped entries may grow again, and ablated neurons revive by step 2.

    So the weight has a' floor(K / a') entries, at most K.

    Args:
        base: drop and grow scores and phi; its other options do not apply.
        min_salient: gamma, a float in [0, 1]; an int >= 1 is a number of entries.

    Source: SRigL (Lasby et al. 2023, 2305.02299). In the authors' code gamma refers to the dense fan-in unless a flag
    is set, and entries in excess of the fan-in are cut in arbitrary order; here by magnitude.
    """

    base: DropGrow
    min_salient: float | int = 0.3
    where = "neuron"
    fills = False
    final = None

    def __post_init__(self) -> None:
        """Check what does not apply."""
        rule = self.base
        if rule.quota or rule.threshold or rule.grace or not rule.revive or rule.drop.split:
            raise ConfigError("FanInDropGrow takes drop, grow and fraction alone; leave the other options out")
        check_number("min_salient", self.min_salient, "gamma, how many salient entries keep a neuron")
        whole = type(self.min_salient) is int
        if isinstance(self.min_salient, bool) or not (self.min_salient >= 1 if whole else 0 <= self.min_salient <= 1):
            raise ConfigError(
                f"min_salient = {self.min_salient!r}: expected a float in [0, 1], a share of the fan-in, or an int >= 1"
            )

    @property
    def words(self) -> tuple[str, str]:
        """Those of the base."""
        return self.base.words

    @property
    def needs(self) -> frozenset[str]:
        """What both scores need."""
        return self.base.needs

    @property
    def needs_total(self) -> bool:
        """Whether the fraction does."""
        return self.base.needs_total

    def resolve(self, total_steps: int | None) -> FanInDropGrow:
        """Return it with times in steps."""
        return replace(self, base=self.base.resolve(total_steps))

    def rewire(
        self,
        group: Sequence[Entries],
        counts: Sequence[int],
        structure: Structure,
        step: int,
        memory: Memory | None = None,
    ) -> list[Tensor]:
        """Return the mask of the one weight of the group; raises as `DropGrow.rewire`."""
        (entries,), (budget,) = group, counts
        active = entries.active
        n = count_true(active)
        k = math.floor(as_schedule(self.base.fraction or 0.0)(step) * n)
        drop = forced(self.base.drop, self.base.drop(entries), active, -math.inf)
        grow = forced(self.base.grow, self.base.grow(entries), torch.ones_like(active), 0.0)
        (kept,), (wanted,) = select_top([drop], n - k, [active]), select_top([grow], k, [active])
        alive = self._alive(kept | wanted, active, budget)
        fan_in = min(budget // count_true(alive), math.prod(active.shape[1:]))
        return [self._fill(drop, grow, kept, active, alive, fan_in)]

    def _alive(self, salient: Tensor, active: Tensor, budget: int) -> Tensor:
        """Which neurons keep weights."""
        found, held = _per_row(salient), _per_row(active)
        now = max(1, int((held > 0).sum()))
        fixed = type(self.min_salient) is int
        least = self.min_salient if fixed else max(1, math.floor(self.min_salient * (int(held.sum()) // now)))
        width = math.prod(active.shape[1:])
        enough = max(int((found >= least).sum()), math.ceil(budget / width), 1)
        return select_top([found.double()], enough)[0]

    @staticmethod
    def _fill(drop: Tensor, grow: Tensor, kept: Tensor, active: Tensor, alive: Tensor, fan_in: int) -> Tensor:
        rows = (active.shape[0], -1)
        known = active.reshape(rows)
        kept = kept.reshape(rows) & alive.unsqueeze(1)
        first = torch.where(kept, drop.reshape(rows), -math.inf)
        kept &= top_of_rows(first, fan_in, known)  # not more than the fan-in
        score = torch.where(kept, math.inf, grow.reshape(rows))
        return (top_of_rows(score, fan_in, known) & alive.unsqueeze(1)).view(active.shape)


def _per_row(mask: Tensor) -> Tensor:
    return mask.reshape(mask.shape[0], -1).sum(1)
