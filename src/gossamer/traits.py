"""What a method remembers per coordinate of one weight beside its support: ages, signs, the reach of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import distributed
from .errors import CheckpointError
from .topology import Support

ALWAYS = -(2**30)  # when what is active from the start was born: older than any grace
_DTYPES = {"born": torch.int32, "sign": torch.int8, "reach": torch.bool}


@dataclass
class Traits:
    """Tensors of the shape of the local part of `parameter`, each None where the method does not use it.

    born: int32, the step at which an active entry became active. sign: int8, -1 or 1, fixed. reach: bool, the entries
    that are trained, None where all are.
    """

    name: str
    parameter: nn.Parameter
    born: Tensor | None = field(default=None)
    sign: Tensor | None = field(default=None)
    reach: Tensor | None = field(default=None)

    @torch.no_grad()
    def start(self, needs: frozenset[str], weight: Tensor, generator: torch.Generator | None) -> None:
        """Make what `needs` names. Signs are those of the (sparse) initial weight, drawn where that is zero."""
        if "age" in needs:
            self.born = torch.full_like(weight, ALWAYS, dtype=torch.int32)
        if "sign" in needs:
            drawn = torch.rand(self.parameter.shape, generator=generator).to(weight.device) < 0.5
            positive = torch.where(weight == 0, distributed.shard(drawn, self.parameter), weight > 0)
            self.sign = torch.where(positive, 1, -1).to(torch.int8)

    def entries(self, needs: frozenset[str], step: int) -> dict[str, Tensor]:
        """The fields of `Entries`, over the whole weight."""
        fields: dict[str, Tensor] = {}
        if "age" in needs and self.born is not None:
            fields["age"] = step - self._whole(self.born)
        if "sign" in needs and self.sign is not None:
            fields["sign"] = self._whole(self.sign)
        return fields

    def grown(self, where: Tensor, step: int) -> None:
        """Note that the entries in the bool mask `where` became active at `step`."""
        if self.born is not None:
            self.born = torch.where(where, step, self.born)

    def set_reach(self, mask: Tensor) -> None:
        """Take the mask, over the whole weight, of the entries that are trained from now on."""
        part = distributed.shard(mask, self.parameter)
        self.reach = None if bool(part.all()) and not distributed.is_sharded(self.parameter) else part

    def synchronise(self) -> None:
        """Take those of rank 0. A collective."""
        partial = torch.tensor(self.reach is not None, device=self.parameter.device)
        if not distributed.broadcast(partial):  # ranks may disagree on whether all of this weight is trained
            self.reach = None
        elif self.reach is None:
            self.reach = torch.ones(self.parameter.shape, dtype=torch.bool, device=self.parameter.device)
        for tensor in self._held().values():
            distributed.broadcast(tensor)

    def state(self) -> dict[str, Tensor]:
        """Whole tensors, to be saved. A collective when the parameter is sharded."""
        return {key: self._whole(tensor) for key, tensor in self._held().items()}

    def check(self, saved: Mapping[str, Tensor], support: Support) -> None:
        """Raise CheckpointError if what `state` returned, or a sparse layer saved, does not fit."""
        check_saved(self.name, saved, set(self._held()), support)

    def load(self, saved: Mapping[str, Tensor], support: Support) -> None:
        """Take over what `check` found to fit."""
        whole = {key: over_weight(tensor, support).to(self.parameter.device) for key, tensor in saved.items()}
        local = {key: distributed.shard(tensor, self.parameter) for key, tensor in whole.items()}
        self.born, self.sign, self.reach = (local.get(key) for key in _DTYPES)

    def bytes(self) -> int:
        """What is held, on this rank."""
        return sum(tensor.nbytes for tensor in self._held().values())

    def _held(self) -> dict[str, Tensor]:
        named = {key: getattr(self, key) for key in _DTYPES}
        return {key: tensor for key, tensor in named.items() if tensor is not None}

    def _whole(self, part: Tensor) -> Tensor:
        return distributed.gather(part, self.parameter)


def check_saved(name: str, saved: Mapping[str, Tensor], kept: set[str], support: Support) -> None:
    """Raise CheckpointError if saved traits of a weight are not those that are `kept`, or do not fit its support.

    Ages may be saved of all entries or, by a sparse layer, of the active ones in ascending order.
    """
    expected = kept - {"reach"}
    if set(saved) - {"reach"} != expected:
        raise CheckpointError(
            f"the state holds {', '.join(sorted(saved)) or 'nothing'} per entry of {name}, this method keeps "
            f"{', '.join(sorted(expected)) or 'nothing'}: it was saved with another method"
        )
    for key, tensor in saved.items():
        fits = tensor.shape == support.shape or (key == "born" and tensor.shape == (support.count,))
        if not fits or tensor.dtype != _DTYPES[key]:
            raise CheckpointError(f"the saved {key} of {name} is no {_DTYPES[key]} tensor of its shape")
    if "sign" in saved and not bool((saved["sign"].abs() == 1).all()):
        raise CheckpointError(f"the saved sign of {name} holds values other than -1 and 1")


def over_weight(ages: Tensor, support: Support) -> Tensor:
    """Saved traits over all entries; those that were saved of the active ones only are old elsewhere."""
    if ages.shape == support.shape:
        return ages
    whole = torch.full((support.numel,), ALWAYS, dtype=ages.dtype, device=ages.device)
    whole[support.index.to(ages.device)] = ages
    return whole.view(support.shape)


def over_support(ages: Tensor, support: Support) -> Tensor:
    """Saved traits of the active entries, in ascending order."""
    return ages.reshape(-1)[support.index] if ages.shape == support.shape else ages
