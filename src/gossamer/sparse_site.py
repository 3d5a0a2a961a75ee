"""A site whose weight exists only where it is active: the values of a sparse layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import candidates, distributed, exchange, optimizer_state
from .capturing_site import CapturingSite
from .errors import AttachError
from .gate import GradientGate
from .inactive import Zero
from .kernels.screen import Product
from .sparse_layer import Moved
from .topology import Entries, Rule, Score, Structure, Support
from .traits import ALWAYS, check_saved, over_support

_LOOKED_AT = 1 << 12  # bytes of an index


@dataclass
class SparseSite(CapturingSite):
    """The values of a sparse layer, of which nothing of the size of the dense weight is ever made.

    rewires: whether the method moves entries.
    born: int32 in storage order, the step at which an entry became active; None where the method does not ask.
    """

    rewires: bool = True
    born: Tensor | None = field(init=False, default=None, repr=False)
    _candidates: Tensor | None = field(init=False, default=None, repr=False)  # flat positions, between two calls
    _order: tuple[Tensor, Tensor] | None = field(init=False, default=None, repr=False)  # during a rewiring
    _count: int = field(init=False)
    _known: tuple[Tensor, int, bytes] = field(init=False, repr=False)  # the index when it was last set

    def __post_init__(self) -> None:
        self.gate = GradientGate(self.parameter, self.whole_mask)  # open: there is nothing off the support
        self._remember()

    # -- reading --

    def support(self) -> Support:
        """The support of the whole weight."""
        return Support.from_index(self._ascending()[0], self.shape)

    def whole_mask(self) -> Tensor:
        """The support as a bool mask, of the size of the dense weight: for those who watch."""
        return self.support().mask

    def bytes(self) -> int:
        """What this site holds beside values and optimizer between steps, on this rank."""
        return self.layer.index.nbytes + (0 if self.born is None else self.born.nbytes)

    def _ascending(self) -> tuple[Tensor, Tensor]:
        """Flat positions in ascending order, and their places in storage order."""
        return self._order or self.layer.ascending()

    def check_identity(self) -> None:
        """Raise if the layer now holds another Parameter, or another support, than at the last rewiring."""
        super().check_identity()
        index = self.layer.index
        if index is self._known[0] and index._version == self._known[1]:
            return
        if self.count != self._count or _glance(index) != self._known[2]:
            raise AttachError(
                f"the support of {self.name} ({self.count} values) is not the one that was last set here "
                f"({self._count} values), so optimizer slots would belong to other entries; call sparsify() after "
                "set_support() or after loading a model of another support, or load the sparsifier's state with it"
            )
        self._remember()

    def _remember(self) -> None:
        index = self.layer.index
        self._count, self._known = self.count, (index, index._version, _glance(index))

    # -- the optimizer --

    def check_optimizer(self, optimizer: Optimizer, needs: frozenset[str]) -> None:
        """Say what treats a vector of values unlike a matrix; raise where that cannot work."""
        optimizer_state.check_vector(optimizer, self.name, moved=self.rewires)
        if distributed.is_sharded(self.parameter):
            raise AttachError(
                f"the values of {self.name} are sharded (FSDP2), but a sparse layer needs all of them; use DDP, or "
                'masked weights: convert(model, layout="dense")'
            )

    def forget_gradient(self) -> None:
        """Drop what was stashed."""
        super().forget_gradient()
        self._order = None

    # -- supports --

    def start(self, mask: Tensor | None, needs: frozenset[str], signs: torch.Generator | None) -> None:
        """Begin with the layer's own support; `mask` and `signs` are those of sites that are given one."""
        if "age" in needs:
            self.born = torch.full((self.count,), ALWAYS, dtype=torch.int32)

    def active(self, needs: frozenset[str], step: int) -> candidates.Active:
        """The active entries, in ascending order."""
        self._order = positions, order = self._ascending()
        weight = comparable(self.parameter.detach().index_select(0, order))
        grad = None
        if "grad" in needs:
            grad = (
                torch.zeros_like(weight)
                if self._growth is None
                else comparable(self._growth.gradient.index_select(0, order))
            )
        age = step - self.born[order] if "age" in needs and self.born is not None else None
        return candidates.Active(positions, Entries(weight, torch.ones_like(weight, dtype=torch.bool), grad, age=age))

    def candidates(
        self, active: candidates.Active, most: int, grow: Score | None, generator: torch.Generator | None
    ) -> Entries:
        """Entries that a rule can choose from: `active` ones, and the best others of which `most` can grow.

        Raises:
            DivergedError: the score of an inactive entry is not finite.
        """
        gradient = self._gradient if grow is not None and "grad" in grow.needs else None
        self._candidates, entries = candidates.gather(active, self.shape, most, grow, gradient, generator)
        return entries

    def assign(self, mask: Tensor, step: int, generator: torch.Generator | None = None) -> None:
        """Change to the entries in `mask`, over the last `candidates`.

        step: completed optimizer steps. generator: for the values of newborn entries that do not start at zero.
        """
        assert self._candidates is not None
        chosen, self._candidates = self._candidates[mask], None
        self._move(Support.from_index(chosen, self.shape), step, generator)

    def exchange(
        self, rule: Rule, structure: Structure, total: int, step: int, generator: torch.Generator | None
    ) -> bool:
        """Rewire this weight at once, see `exchange`; False: nothing was done. generator: as in `assign`."""
        growth, plain = self._growth, self.parameter.dtype == torch.float32 and not distributed.active()
        dropped = exchange.dropped(rule, structure, self.count, total, step)
        factors = self.layer.gradient_factors(growth.captured) if growth and dropped is not None and plain else None
        if growth is None or dropped is None or factors is None:
            return False
        left, right = factors  # these may be what was captured
        product = Product(left if growth.factor == 1.0 else left * growth.factor, right)
        values, gradient = self.parameter.detach(), growth.gradient
        chosen = exchange.exchanged(self.layer.checked_index(), values, gradient, product, dropped, total)
        if chosen is None:
            return False
        held = optimizer_state.slots(self.optimizer, self.parameter)
        moves = self.layer.exchange(*chosen)
        if moves is None:
            return False
        self._follow(moves, held, step, generator)
        return True

    def _move(self, support: Support, step: int, generator: torch.Generator | None = None) -> None:
        """Change to another support."""
        held = optimizer_state.slots(self.optimizer, self.parameter)
        self._follow(self.layer.set_support(support, self._ascending()), held, step, generator)

    @torch.no_grad()
    def _follow(self, moves: Moved, held: dict[str, Tensor], step: int, generator: torch.Generator | None) -> None:
        """Let optimizer slots and ages follow the values. held: the slots as they were."""
        assert isinstance(self.inactive, Zero)
        self.forget_gradient()
        self._remember()
        if self.optimizer is not None:
            optimizer_state.relocate_slots(self.optimizer, self.parameter, held, moves, self.inactive.newborn)
        self._age(moves, step)
        if generator is not None and len(moves.born):
            self._draw(moves.born, generator)

    def _age(self, moves: Moved, step: int) -> None:
        if self.born is not None:
            self.born = moves.carried(self.born, step)

    def _draw(self, born: Tensor, generator: torch.Generator) -> None:
        assert isinstance(self.inactive, Zero)
        found = self.layer.positions()[born].sort(stable=True)
        drawn = candidates.normals_at(found.values, self.shape.numel(), generator) * self.inactive.newborn_std
        self.parameter.detach()[born[found.indices]] = drawn.to(self.parameter.dtype)

    def synchronise(self) -> None:
        """Take rank 0's support and values. A collective."""
        device = self.parameter.device
        count = distributed.broadcast(torch.tensor(self.count, device=device))
        mine = self._ascending()[0].to(device)
        positions = mine if len(mine) == int(count) else mine.new_zeros(int(count))
        before = positions.clone()
        if not torch.equal(distributed.broadcast(positions), before) or len(mine) != int(count):
            self._move(Support.from_index(positions.cpu(), self.shape), ALWAYS)
        distributed.broadcast(self.parameter.detach())
        if self.born is not None:
            self.born.copy_(distributed.broadcast(self.born.to(device)))

    # -- saving --

    def saved_traits(self) -> dict[str, Tensor]:
        """What is remembered per active entry, in ascending order."""
        return {} if self.born is None else {"born": self.born[self._ascending()[1]]}

    def check_state(self, support: Support, trainable: Tensor | None, traits: Mapping[str, Tensor]) -> None:
        """Raise if a saved support or traits, of all entries or of the active ones, do not fit this weight."""
        super().check_state(support, trainable, traits)
        check_saved(self.name, traits, set() if self.born is None else {"born"}, support)

    def load(self, support: Support, trainable: Tensor | None, traits: Mapping[str, Tensor]) -> None:
        """Take over what `check_state` found to fit."""
        self.forget_gradient()
        positions, order = self._ascending()
        if not torch.equal(support.index, positions):
            self._move(support, 0)
            order = self._ascending()[1]
        self._remember()
        if "born" in traits:
            self._restore(over_support(traits["born"], support), order)

    def _restore(self, born: Tensor, order: Tensor) -> None:
        """Take over ages, of entries in ascending order."""
        self.born = torch.empty(self.count, dtype=torch.int32)
        self.born[order] = born


def _glance(index: Tensor) -> bytes:
    """Some bytes of an index: another support has others."""
    return bytes(index[:: max(1, len(index) // _LOOKED_AT)].cpu().numpy())


def comparable(values: Tensor) -> Tensor:
    """The same in float32 at least, as gradients of inactive entries come."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
