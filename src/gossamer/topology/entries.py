"""What a score sees of one weight: aligned tensors, no module and no optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError

_ALIGNED = ("active", "grad", "momentum", "sign", "age")


@dataclass(frozen=True, eq=False)
class Entries:
    """Aligned tensors over some coordinates of one weight; all have the shape of ``weight``.

    The same class describes a whole dense weight, a vector of stored values or a tile of rows, so a score that is
    elementwise works on each of them.

    Args:
        weight: values; a live method passes its trainable weights.
        active: bool, True where the coordinate is in the support.
        grad: gradient of the loss at every coordinate.
        momentum: first moment that the optimizer keeps; under Adam and its like over the root of the second.
        sign: fixed signs, -1 or +1 (DeepR).
        age: int, optimizer steps since the entry became active; what was active from the start is older than any.
        slots: other optimizer slots of the weight's shape, by name.
        generator: CPU generator for scores that draw random numbers.

    Raises:
        ConfigError: a tensor of another shape, or ``active`` that is not bool.

    >>> entries = Entries(torch.tensor([3.0, -1.0]), torch.tensor([True, False]))
    >>> entries.require("weight")
    tensor([ 3., -1.])
    """

    weight: Tensor
    active: Tensor
    grad: Tensor | None = None
    momentum: Tensor | None = None
    sign: Tensor | None = None
    age: Tensor | None = None
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check that all tensors are aligned."""
        if self.active.dtype != torch.bool:
            raise ConfigError(f"active must be a bool tensor, got {self.active.dtype}")
        named = {name: getattr(self, name) for name in _ALIGNED} | dict(self.slots)
        for name, tensor in named.items():
            if tensor is not None and tensor.shape != self.weight.shape:
                raise ConfigError(
                    f"{name} has shape {tuple(tensor.shape)}, the weight {tuple(self.weight.shape)}: "
                    "entries must be aligned, one value per coordinate"
                )

    def require(self, name: str) -> Tensor:
        """Return the field or slot called ``name``.

        Raises:
            ConfigError: it was not given.
        """
        value = getattr(self, name) if name in ("weight", *_ALIGNED) else self.slots.get(name)
        if value is None:
            raise ConfigError(
                f"a score needs {name!r} and these entries do not have it; "
                f"declare it in the score's needs so that it is gathered"
            )
        return value

    def require_generator(self) -> torch.Generator:
        """Return the generator.

        Raises:
            ConfigError: it was not given.
        """
        if self.generator is None:
            raise ConfigError("a random score needs 'generator' and these entries have none; declare it in needs")
        return self.generator
