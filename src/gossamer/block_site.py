"""A site whose weight exists in whole blocks only: the values of a block-sparse layer.

A rule chooses among all entries, as for masked weights: for the moment of a rewiring tensors of the size of the dense
weight are made, on the CPU, and a backward pass before it keeps what its gradient can be had from. Training holds
blocks only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import candidates
from .inactive import Zero
from .sparse_site import SparseSite, comparable
from .topology import Entries, Rule, Score, Structure, Support
from .traits import ALWAYS


@dataclass
class BlockSite(SparseSite):
    """The values of a block-sparse layer. born: int32 for each number of the values, those beyond the edges too."""

    _needs: frozenset[str] = field(init=False, default=frozenset(), repr=False)  # of the rewiring that goes on
    _step: int = field(init=False, default=0, repr=False)

    @property
    def count(self) -> int:
        """Number of active entries."""
        return self.layer.count

    def start(self, mask: Tensor | None, needs: frozenset[str], signs: torch.Generator | None) -> None:
        """Begin with the layer's own support."""
        if "age" in needs:
            self.born = torch.full(self.parameter.shape, ALWAYS, dtype=torch.int32)

    def active(self, needs: frozenset[str], step: int) -> candidates.Active:
        """The active entries, in ascending order; what else is needed of them is found with the others."""
        self._needs, self._step = needs, step
        self._order = positions, order = self._ascending()
        weight = comparable(self.parameter.detach().cpu().reshape(-1)[order])
        grad = None if "grad" not in needs else self._whole_gradient().reshape(-1)[positions]
        age = None if "age" not in needs else self._age_at(order)
        return candidates.Active(positions, Entries(weight, torch.ones_like(weight, dtype=torch.bool), grad, age=age))

    def candidates(
        self, active: candidates.Active, most: int, grow: Score | None, generator: torch.Generator | None
    ) -> Entries:
        """All entries, in the shape of the weight."""
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask.view(-1)[active.positions] = True
        weight = active.entries.weight.new_zeros(self.shape)
        weight.view(-1)[active.positions] = active.entries.weight
        age = None
        if active.entries.age is not None:
            age = torch.zeros(self.shape, dtype=active.entries.age.dtype)
            age.view(-1)[active.positions] = active.entries.age
        grad = self._whole_gradient() if "grad" in self._needs else None
        return Entries(weight, mask, grad, age=age, generator=generator)

    def assign(self, mask: Tensor, step: int, generator: torch.Generator | None = None) -> None:
        """Change to the entries in `mask`, of the shape of the weight. step, generator: as of `SparseSite`."""
        self._move(Support.from_mask(mask), step, generator)

    def exchange(
        self, rule: Rule, structure: Structure, total: int, step: int, generator: torch.Generator | None
    ) -> bool:
        """Nothing is done: entries do not move by themselves."""
        return False

    def _factor(self, grad: Tensor, captured: list[object]) -> float:
        """As of `SparseSite`, whose values are a vector in flat order; here a dense gradient is at hand anyway."""
        raw = self._raw_gradient(captured, 0, self.shape[0])
        positions, order = self._ascending()
        return self._ratio(raw[positions].double(), grad.reshape(-1)[order].double())

    def _whole_gradient(self) -> Tensor:
        """The unscaled gradient of all entries."""
        return comparable(self._gradient(0, self.shape.numel())).cpu().view(self.shape)

    def _age_at(self, order: Tensor) -> Tensor | None:
        return None if self.born is None else self._step - self.born.reshape(-1)[order]

    def _draw(self, born: Tensor, generator: torch.Generator) -> None:
        assert isinstance(self.inactive, Zero)
        positions, order = self.layer.ascending()
        drawn = candidates.normals_at(positions, self.shape.numel(), generator) * self.inactive.newborn_std
        values = self.parameter.detach()
        new = torch.zeros(len(values), dtype=torch.bool)
        new[born.cpu()] = True
        mine = new[order // values[0].numel()]
        values.view(-1)[order[mine].to(values.device)] = drawn[mine].to(values)

    def saved_traits(self) -> dict[str, Tensor]:
        """What is remembered per active entry, in ascending order."""
        return {} if self.born is None else {"born": self.born.reshape(-1)[self._ascending()[1]]}

    def _restore(self, born: Tensor, order: Tensor) -> None:
        self.born = torch.full(self.parameter.shape, ALWAYS, dtype=torch.int32)
        self.born.view(-1)[order] = born
