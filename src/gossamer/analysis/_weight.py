"""What is remembered of one watched weight, and how a rewiring changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor, nn

from .. import distributed
from ..errors import CheckpointError
from ..sparse_layer import is_sparse_layer
from ..topology import Support
from ..topology.selection import count_true


@dataclass(frozen=True)
class Tally:
    """Sums over rewirings. judged: entries grown at a rewiring that another one followed; survived: of these."""

    flips: int = 0
    judged: int = 0
    survived: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.flips + other.flips, self.judged + other.judged, self.survived + other.survived)

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.flips - other.flips, self.judged - other.judged, self.survived - other.survived)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(int(state["flips"]), int(state["judged"]), int(state["survived"]))

    @property
    def survival(self) -> float | None:
        return self.survived / self.judged if self.judged else None


def distance(now: Support, other: Support | None) -> int:
    """In how many entries a support differs from an earlier one, if there is one."""
    return 0 if other is None else (now ^ other).count


@dataclass
class Weight:
    """One watched weight.

    first: the support when it was first looked at, reported: that of the last row; both compact, None before.
    union: bool, was ever active; None while that is `first`. newborn: bool, grown at the last rewiring, if any were:
    born of them.
    """

    module: nn.Module
    attribute: str
    tally: Tally = field(default_factory=Tally)
    born: int = 0
    first: Support | None = None
    reported: Support | None = None
    union: Tensor | None = None
    newborn: Tensor | None = None

    def look(self, now: Support) -> None:
        """Take note of the support, which may have changed without a rewiring (of a learned gate)."""
        if self.first is None or self.reported is None:
            self.first = self.reported = now.compact()
        elif self.union is not None or now != self.first:
            self._add(now.mask)

    def rewired(self, before: Tensor, after: Tensor) -> None:
        """Count one rewiring of the whole model, in which this weight may have changed or not."""
        if self.first is None:
            self.look(Support.from_mask(before))
        changed = None if after is before else before ^ after
        flips, survived, born = 0 if changed is None else count_true(changed), self.born, 0
        if changed is not None and flips:
            if self.newborn is not None:
                survived = count_true(self.newborn & after)
            self.newborn = changed.logical_and_(after)
            born = count_true(self.newborn)
            self._add(after)
        if not born:
            self.newborn = None
        self.tally += Tally(flips, self.born, survived)
        self.born = born

    def _add(self, mask: Tensor) -> None:
        if self.union is None:
            self.union = mask.clone() if self.first is None else mask | self.first.mask
        else:
            self.union |= mask

    def explored(self, now: Support) -> int:
        """How many entries have been active at some time."""
        return now.count if self.union is None else count_true(self.union)

    def zeros(self, now: Support) -> int:
        """How many active entries are exactly zero. A collective when the weight is sharded."""
        if is_sparse_layer(self.module):
            values = self.module.values.detach()
            return now.count - count_true(values != 0)  # what lies beyond the edges of blocks is no weight
        weight = getattr(self.module, self.attribute).detach()
        return count_true(now.mask & (distributed.gather(distributed.local(weight), weight) == 0))

    # -- saving --

    def state(self) -> dict[str, Any]:
        """Plain data and small tensors."""
        masks = {name: getattr(self, name) for name in ("union", "newborn")}
        supports = {name: None if mask is None else Support.from_mask(mask) for name, mask in masks.items()}
        supports |= {"first": self.first, "reported": self.reported}
        states = {name: None if support is None else support.state() for name, support in supports.items()}
        return {"tally": asdict(self.tally), "born": self.born, **states}

    def read(self, state: Mapping[str, Any], now: Support) -> Weight:
        """The same weight with another past; `now` says its shape and device."""

        def support(name: str) -> Support | None:
            if state[name] is None:
                return None
            read = Support.from_state(state[name])
            if read.shape != now.shape:
                raise CheckpointError(f"a support has shape {tuple(read.shape)}, the weight has {tuple(now.shape)}")
            return read.to(now.device)

        def mask(name: str) -> Tensor | None:
            read = support(name)
            return None if read is None else read.mask

        tally, born = Tally.from_state(state["tally"]), int(state["born"])
        past = support("first"), support("reported"), mask("union"), mask("newborn")
        return Weight(self.module, self.attribute, tally, born, *past)
