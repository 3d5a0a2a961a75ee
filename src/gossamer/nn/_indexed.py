"""Values, and the index that says where they lie: read, made room for, and found valid before a kernel relies on it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import rewire, sparse
from ..topology import Support
from . import _checks
from ._loading import loadable


class IndexedValues(nn.Module):
    """A 1-D Parameter ``values`` in the storage order of the buffer ``index``, of a weight of shape `weight_shape`."""

    values: nn.Parameter
    index: Tensor
    weight_shape: torch.Size
    _trusted: tuple[Tensor, tuple[Any, ...]] | None  # the index that was found valid, and how it was then

    # -- what it is --

    @property
    def count(self) -> int:
        """Number of active entries."""
        return self.values.numel()

    @property
    def packs(self) -> bool:
        """Whether it computes with packed activations."""
        return True

    @property
    def density(self) -> float:
        """Active share of the entries of the dense weight."""
        return self.count / max(1, math.prod(self.weight_shape))

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the weight as the kernels see it."""
        return self.weight_shape[0], math.prod(self.weight_shape[1:])

    @property
    def taps(self) -> int:
        """Entries of a kernel."""
        return math.prod(self.weight_shape[2:])

    def positions(self) -> Tensor:
        """Flat position in the dense weight of each value, int64, in storage order.

        Raises:
            ConfigError: the layer is on the meta device, or its index is damaged.
        """
        return sparse.positions(self.checked_index(), self.count)

    def ascending(self) -> tuple[Tensor, Tensor]:
        """Flat positions in ascending order, and the place of each in storage order; int64. Raises as `positions`."""
        return rewire.ascending(self.checked_index(), self.count)

    def arrange(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index for a support, ascending flat positions, and which of them each stored number belongs to."""
        return sparse.build(positions, self.matrix, self.taps)

    def checked_index(self) -> Tensor:
        """The index, which the kernels can rely on. Raises as `positions`."""
        self._check_index(read=True)
        return self.index

    def support(self) -> Support:
        """The active coordinates."""
        return Support(self.weight_shape, self.count, self.ascending()[0], "index")

    def to_dense(self) -> Tensor:
        """The weight with zeros off its support; differentiable."""
        dense = self.values.new_zeros(math.prod(self.weight_shape))
        return dense.scatter(0, self.positions(), self.values).view(self.weight_shape)

    # -- the index --

    def _check_index(self, *, read: bool = False) -> None:
        """Kernels trust the index: look through it once after it was loaded, moved or changed.

        read: its bytes are needed, of which there are none on the meta device.
        """
        index, values = self.index, self.values
        _checks.check_device(values)
        if index.is_meta or values.is_meta:
            if read or index.is_meta != values.is_meta:
                raise ConfigError("a layer on the meta device has sizes only; use to_empty and load_state_dict first")
            return
        if not self._trusts():
            sparse.check(index, self.matrix, self.count, self.taps)
            self._trust()

    def _trusts(self) -> bool:
        """Whether the index is as it was when it was last found valid."""
        known, trusted = self._state_of_index(), self._trusted
        return known is not None and trusted is not None and trusted[0] is self.index and trusted[1] == known

    def _trust(self) -> None:
        """Note that the index is valid as it is now."""
        known = self._state_of_index()
        self._trusted = None if known is None else (self.index, known)

    def _state_of_index(self) -> tuple[Any, ...] | None:
        """What changes with it; None in inference mode, where tensors do not count their changes."""
        index = self.index
        return None if index.is_inference() else (index.data_ptr(), index._version, self.count, self.weight_shape)

    # -- memory --

    def _make_room(self, count: int, index_bytes: int) -> None:
        if count != self.count:
            self._resize(count)
        if index_bytes != len(self.index):
            self.index = torch.empty(index_bytes, dtype=torch.uint8, device=self.index.device)

    def _resize(self, *shape: int) -> None:
        """Give the values, the same Parameter, new memory of another shape."""
        self.values.grad, dtype, device = None, self.values.dtype, self.values.device
        # A graph that is still alive holds an accumulator for gradients of the old size; another dtype resets it.
        other = torch.float16 if dtype != torch.float16 else torch.float32
        self.values.data = torch.empty(0, dtype=other, device=device)
        self.values.data = torch.empty(shape, dtype=dtype, device=device)

    # -- loading --

    def _load_from_state_dict(self, *given: Any) -> None:
        """Values travel with their index, of another count too; what does not fit is refused, nothing changed."""
        own: dict[str, Tensor] = {name: value for name, value in self._parameters.items() if value is not None}
        lengths = loadable({**own, "index": self.index}, self.matrix, self.taps, *given)
        if lengths is not None:
            self._make_room(*lengths)
            super()._load_from_state_dict(*given)
