"""What k-winners leave for the backward pass, kept as their values and where they are instead of with all zeros."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import ConfigError


class Pattern:
    """Which entries of a flat bool tensor are true: a bit for each, or 32-bit positions where those are smaller."""

    def __init__(self, flat: Tensor) -> None:
        self.size = flat.numel()
        count = int(flat.count_nonzero())
        self.sparse = 4 * count < self.size // 8 and self.size < 2**31
        self.stored = flat.nonzero().view(-1).to(torch.int32) if self.sparse else _bits(flat)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.stored.nbytes

    def mask(self) -> Tensor:
        """The flat bool tensor."""
        if not self.sparse:
            return _unpacked(self.stored, self.size)
        return torch.zeros(self.size, dtype=torch.bool, device=self.stored.device).index_fill_(
            0, self.stored.long(), True
        )

    def spread(self, values: Tensor) -> Tensor:
        """The flat tensor that has `values` where the pattern is true, and zeros."""
        flat = values.new_zeros(self.size)
        if self.sparse:
            return flat.index_copy_(0, self.stored.long(), values)
        return flat.masked_scatter_(self.mask(), values)


def _weights(device: torch.device) -> Tensor:
    return 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=device)


def _bits(flat: Tensor) -> Tensor:
    """Eight entries to a byte, the first in the highest bit; numpy's own function is 30 times faster than torch's."""
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy()))
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8))
    return (padded.view(-1, 8) * _weights(flat.device)).sum(1, dtype=torch.uint8)


def _unpacked(bits: Tensor, size: int) -> Tensor:
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=size)).view(torch.bool)
    return (bits.unsqueeze(1) & _weights(bits.device)).bool().view(-1)[:size]


@dataclass
class _Noted:
    """A tensor in memory whose content is known in a smaller form; values: None of the mask itself."""

    storage: StorageWeakRef
    version: int
    pattern: Pattern
    values: Tensor | None
    counted: bool = False

    def describes(self, tensor: Tensor) -> bool:
        """Whether a tensor of this memory is all of it, not read as another dtype, and as it was."""
        kind = torch.bool if self.values is None else self.values.dtype
        same = tensor.dtype == kind and tensor._version == self.version
        return same and self.pattern.size == tensor.numel() and is_dense(tensor)


class _Packed(NamedTuple):
    pattern: Pattern
    values: Tensor | None
    size: torch.Size
    stride: tuple[int, ...]


class _Whole(NamedTuple):
    tensor: Tensor
    version: int


@dataclass
class SavedWinners:
    """What was saved so far, in bytes.

    dense: of the outputs of k-winners and their masks, had they been saved as they are; every tensor counts once,
    however many operations save it. kept: of the form that they were saved in.
    """

    dense: int = 0
    kept: int = 0
    _noted: dict[int, _Noted] = field(default_factory=dict, repr=False)

    def note(self, tensor: Tensor, pattern: Pattern, values: Tensor | None = None) -> None:
        """Remember what the memory of `tensor`, all of its storage, holds."""
        for key in [key for key, noted in self._noted.items() if noted.storage.expired()]:
            del self._noted[key]
        storage = StorageWeakRef(tensor.untyped_storage())  # while this lives, no other storage has its address
        self._noted[storage.cdata] = _Noted(storage, tensor._version, pattern, values)

    def pack(self, tensor: Tensor) -> _Packed | _Whole:
        """What autograd keeps instead of a tensor."""
        plain = type(tensor) is Tensor and tensor.layout == torch.strided
        noted = self._noted.get(tensor.untyped_storage()._cdata) if plain else None
        if noted is None or not noted.describes(tensor):
            return _Whole(tensor, tensor._version)
        self._count(noted, tensor.nbytes)
        return _Packed(noted.pattern, noted.values, tensor.shape, tensor.stride())

    def _count(self, noted: _Noted, dense: int) -> None:
        if not noted.counted:
            noted.counted = True
            self.dense += dense
            self.kept += noted.pattern.bytes if noted.values is None else noted.values.nbytes

    def forget(self) -> None:
        """Nothing is saved any more: let go of what only this holds."""
        self._noted.clear()


def _unpack(saved: _Packed | _Whole) -> Tensor:
    if isinstance(saved, _Whole):
        if saved.tensor._version != saved.version:  # autograd itself does not look where there are hooks
            raise ConfigError(
                f"a tensor of shape {tuple(saved.tensor.shape)} was changed in place after it was saved for the "
                "backward pass; use the operation that is not in place"
            )
        return saved.tensor
    pattern, values = saved.pattern, saved.values
    flat = pattern.mask() if values is None else pattern.spread(values)
    return flat.as_strided(saved.size, saved.stride)


def is_dense(tensor: Tensor) -> bool:
    """Whether every place in memory between the first and the last entry holds exactly one entry."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


_CURRENT: ContextVar[SavedWinners | None] = ContextVar("saved_winners", default=None)


@contextmanager
def compressed_winners() -> Iterator[SavedWinners]:
    """Inside, outputs of k-winners that operations save for their backward pass are kept without their zeros.

    Put it around the forward pass; the backward pass may run outside. The layer behind `KWinners` needs its input for
    its weight gradient, and k-winners need to know the winners: both keep the winners' values once, and a bit for each
    entry or 32-bit positions, whichever is smaller. Each operation gets the whole tensor back when its backward pass
    needs it, bit for bit, and lets go of it afterwards. It reaches operations that save the output itself or a view of
    all of it (a flattened one, for instance), not those that save something made from it: the sparse layers of this
    package save a packed copy. In compiled code winners are saved as they are.

    Yields:
        the `SavedWinners` of this context: bytes saved, as they would be dense and as they are kept.

    Raises:
        ConfigError: in the backward pass, if a saved tensor was changed in place, as autograd itself raises elsewhere.

    Source: the wish at the end of the DCTpS slides (Price and Tanner 2021) to save what sparse activations allow in
    memory.

    >>> from gossamer.nn import KWinners, compressed_winners
    >>> layer, head = KWinners(1000, density=0.1), torch.nn.Linear(1000, 10)
    >>> with compressed_winners() as saved:
    ...     loss = head(layer(torch.randn(64, 1000, requires_grad=True))).sum()
    >>> loss.backward()
    >>> saved.dense, saved.kept
    (320000, 33600)
    """
    saved = SavedWinners()
    token = _CURRENT.set(saved)
    try:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, _unpack):
            yield saved
    finally:
        _CURRENT.reset(token)
        saved.forget()


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """Return x where the mask is true, else 0: what k-winners give, saved as the context says."""
    saved = None if torch.compiler.is_compiling() else _CURRENT.get()
    if saved is None or not (torch.is_grad_enabled() and x.requires_grad):
        return torch.where(mask, x, 0.0)
    if mask.stride() != x.stride():  # in the order of the output's memory
        mask = torch.empty_like(x, dtype=torch.bool).copy_(mask)
    if not is_dense(mask):
        return torch.where(mask, x, 0.0)
    pattern = Pattern(_flat(mask))
    saved.note(mask, pattern)
    out = torch.where(mask, x, 0.0)
    if out.stride() == mask.stride():
        saved.note(out, pattern, _flat(out.detach())[_flat(mask)])
    return out


def _flat(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
