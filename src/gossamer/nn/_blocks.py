"""Between the blocks of a weight and its flat positions, and what happens to blocks when a support changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, check_choice
from ..kernels import blocks
from ..topology import Support
from ..topology.structures import Block
from ._checks import check_sizes
from ._forms import check_dtype

_LARGEST = 1024  # side


def check_options(side: int, fan_in: str, dtype: Any) -> None:
    """What a layer of blocks was asked for, before a tensor is made of it."""
    check_sizes(block=side)
    if side > _LARGEST:
        raise ConfigError(f"block={side}: blocks of a side of {_LARGEST} are the largest; take 16, 32 or 64")
    check_choice("fan_in", fan_in, ("live", "dense"))
    check_dtype(torch.get_default_dtype() if dtype is None else dtype)


def numbers_of(support: Support, side: int) -> Tensor:
    """The numbers of the blocks that a support consists of, int32, ascending.

    Raises:
        ConfigError: there are parts of blocks.
    """
    rows, columns = support.shape
    if not Block(side).is_valid(support.mask):
        raise ConfigError(
            f"a support of shape {tuple(support.shape)} and {support.count} entries does not consist of whole blocks "
            f"of {side} x {side}; choose it with structure=Block({side}), or use SparseLinear"
        )
    wide = blocks.grid((rows, columns), side)[1]
    mask = support.mask[::side, ::side].cpu()
    assert mask.shape[1] == wide
    return mask.reshape(-1).nonzero().view(-1).int()


def positions_of(index: Tensor, shape: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """Flat positions in the weight of the values of blocks, and their places among all values; in storage order."""
    down, across = blocks.places(index, shape[1], side)
    along = torch.arange(side, device=index.device)
    rows, columns = (down * side).unsqueeze(1) + along, (across * side).unsqueeze(1) + along
    flat = (rows * shape[1]).unsqueeze(2) + columns.unsqueeze(1)
    if shape[0] % side == shape[1] % side == 0:
        return flat.reshape(-1), torch.arange(flat.numel(), device=index.device)
    inside = blocks.inside(index, shape, side).expand_as(flat)
    return flat[inside], inside.reshape(-1).nonzero().view(-1)


def cut(dense: Tensor, index: Tensor, side: int) -> Tensor:
    """The blocks of a dense weight, (blocks, side, side), zeros beyond its edges."""
    high, wide = blocks.grid((dense.shape[0], dense.shape[1]), side)
    padded = torch.nn.functional.pad(dense, (0, wide * side - dense.shape[1], 0, high * side - dense.shape[0]))
    return padded.view(high, side, wide, side).transpose(1, 2).reshape(high * wide, side, side)[index.long()]


def laid_out(values: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """The dense weight of blocks, zeros elsewhere; differentiable."""
    side = values.shape[1]
    high, wide = blocks.grid(shape, side)
    every = values.new_zeros(high * wide, side, side).index_copy(0, index.long(), values)
    return every.view(high, wide, side, side).transpose(1, 2).reshape(high * side, wide * side)[: shape[0], : shape[1]]


@dataclass(frozen=True, eq=False)
class BlockMoves:
    """A change of support.

    source: int64, for each stored block its place before, or -1 if it is newborn. real: which values of the
    blocks before lie within the weight.
    """

    source: Tensor
    real: Tensor

    @classmethod
    def between(cls, old: Tensor, new: Tensor, shape: tuple[int, int], side: int) -> BlockMoves:
        """Of two ascending indices."""
        at = torch.searchsorted(old, new).clamp(max=max(len(old) - 1, 0))
        found = old[at] == new if len(old) else torch.zeros_like(new, dtype=torch.bool)
        return cls(torch.where(found, at, -1), blocks.inside(old, shape, side))

    @property
    def born(self) -> Tensor:
        """Places of newborn blocks, after."""
        return (self.source < 0).nonzero().view(-1)

    def survivors(self, held: Tensor) -> Tensor:
        """Return what the values of surviving blocks had, without those beyond the edges of the weight."""
        kept = self.source[self.source >= 0]
        return held[kept][self.real[kept].expand(-1, *held.shape[1:])]

    def carried(self, held: Tensor, rest: float = 0.0) -> Tensor:
        """Return blocks, or what is held of each of their values, in the new order; of newborn ones ``rest``."""
        source = self.source.to(held.device)  # of ages on the CPU, whatever the device of the values
        moved = held.new_full((len(source), *held.shape[1:]), rest)
        kept = source >= 0
        moved[kept] = held[source[kept]]
        return moved


def misfit(saved: Mapping[str, Any], own: Mapping[str, Tensor], shape: tuple[int, int], side: int, assign: bool) -> str:
    """Why saved tensors cannot be those of a layer, or ''.

    saved, own: name -> tensor, of "values", "index" and "bias" those that there are. assign: they take the place of the
    layer's own, instead of being copied into them.
    """
    if not saved.keys() & {"values", "index"}:
        return ""
    if not saved.keys() >= {"values", "index"}:
        return "values and index belong together, one of them is missing"
    values, index, bias = saved["values"], saved["index"], saved.get("bias")
    for name, value in saved.items():
        if not isinstance(value, Tensor):
            return f"{name} is a {type(value).__name__}; expected a tensor, e.g. torch.as_tensor({name})"
        if value.is_meta and (assign != all(each.is_meta for each in saved.values()) or not own[name].is_meta):
            return f"{name} is on the meta device, where there are no numbers to load"
    if values.shape[1:] != (side, side) or not values.is_floating_point():
        return f"values are {values.dtype} of shape {tuple(values.shape)}; expected floating (blocks, {side}, {side})"
    if bias is not None and "bias" in own and bias.shape != own["bias"].shape:
        return f"bias has shape {tuple(bias.shape)}, the layer's has {tuple(own['bias'].shape)}"
    if index.is_meta:
        return ""
    try:
        blocks.check(index, values, shape)
    except ConfigError as error:
        return str(error)
    if shape[0] % side == shape[1] % side == 0 or values.is_meta:
        return ""
    beyond = ~blocks.inside(index.to(values.device), shape, side).expand_as(values)
    return "values are not 0 beyond the edges of the weight" if values[beyond].any() else ""
