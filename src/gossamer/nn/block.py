"""A linear layer whose weight consists of square blocks, of which it holds and computes the active ones only."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import blocks
from ..kernels.reference import pack
from ..topology import Support, check_density
from . import _blocks, _drawing
from ._blocks import BlockMoves
from ._checks import check_fit, check_shape, check_sizes, check_tensor, coordinates
from ._forms import check_module, check_support, refuse_tracers
from ._moves import Pass
from .linear import SparseLinear
from .weight import Beside, FanIn


class BlockSparseLinear(SparseLinear):
    """y = x W^T + b with a W of b x b blocks, in time and memory of its active blocks.

    ``values``, (blocks, b, b), is one Parameter; the buffer ``index`` holds the numbers of the blocks, int32, row by
    row. Takes (..., in_features), gives (..., out_features). On the CPU it is native for float32 and blocks of a
    multiple of 4, and computes float16 and bfloat16 in float32, as `SparseLinear` does; on other devices it computes in
    the dtype of its values, or of autocast. Sizes that b does not divide have smaller blocks at their edges: what
    ``values`` holds beyond them is 0 and stays so.

    Deviations from the dense layer: as of `SparseLinear`, by blocks.

    Args:
        in_features, out_features: sizes of a sample.
        density: fraction of the blocks that is kept, ``round(density * all blocks)``, drawn uniformly from torch's
            global generator.
        block: b, 1 to 1024; 16, 32 and 64 are fastest.
        bias: whether there is a b.
        support: the active entries, whole blocks, instead of a density.
        fan_in: "live" or "dense", see `reset_parameters`.
        device, dtype: as for torch's layers.

    Raises:
        ConfigError: an argument cannot be, or an input does not fit.

    Source: Gray et al. 2017; Narang et al. 2017 (1711.02782); Stosic and Stosic 2021 (2105.12920), appendix E.1.

    >>> layer = BlockSparseLinear(256, 64, density=0.25, block=16)
    >>> layer, layer.values.shape
    (BlockSparseLinear(in_features=256, out_features=64, block=16, count=4096, density=0.25, bias=True), \
torch.Size([16, 16, 16]))
    """

    block: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float | None = None,
        block: int = 16,
        bias: bool = True,
        *,
        support: Support | None = None,
        fan_in: FanIn = "live",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        check_sizes(in_features=in_features, out_features=out_features)
        _blocks.check_options(block, fan_in, dtype)
        self.in_features, self.out_features, self.block = in_features, out_features, block
        chosen = self._chosen(torch.Size((out_features, in_features)), density, support)
        self._hold(chosen, bias, fan_in, device, dtype)
        self.reset_parameters()

    def _chosen(self, shape: torch.Size, density: float | None, support: Support | None) -> Tensor:
        self.weight_shape = shape
        if support is not None:
            check_shape(support, shape)
            if density is not None:
                raise ConfigError(f"density={density} and a support of density {support.density:.4g}; pass one of them")
            return _blocks.numbers_of(support, self.block)
        if density is None:
            raise ConfigError("a sparse layer needs a density, such as 0.1, or support=, a Support of its weight")
        every = math.prod(blocks.grid(self.matrix, self.block))
        if every >= 1 << 31:
            raise ConfigError(
                f"a weight of {every} blocks; the index counts up to {(1 << 31) - 1}, take a larger block"
            )
        with torch.device("cpu"):
            return _drawing.draw_positions(every, round(check_density(density) * every)).int()

    def _hold(self, index: Tensor, bias: bool, fan_in: FanIn, device: Any, dtype: torch.dtype | None) -> None:
        """Make parameters and index; the values are not set yet."""
        self.fan_in, self.keep_packed, self.capture, self._trusted = fan_in, False, None, None
        self.values = nn.Parameter(torch.empty(len(index), self.block, self.block, device=device, dtype=dtype))
        self.register_buffer("index", index.to(self.values.device))
        made = torch.empty(self.out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if made is None else nn.Parameter(made))

    # -- what it is --

    @property
    def count(self) -> int:
        """Number of active entries."""
        rows, columns = self.matrix
        if rows % self.block == columns % self.block == 0 or self.index.is_meta:
            return self.values.numel()
        high, wide = blocks.grid(self.matrix, self.block)
        down, across = blocks.places(self.index, columns, self.block)
        heights = self.block - (down == high - 1).long() * (high * self.block - rows)
        widths = self.block - (across == wide - 1).long() * (wide * self.block - columns)
        return int((heights * widths).sum())

    def positions(self) -> Tensor:
        """Flat position in the dense weight of each value within its edges, int64, in storage order."""
        return _blocks.positions_of(self.checked_index(), self.matrix, self.block)[0].cpu()

    def ascending(self) -> tuple[Tensor, Tensor]:
        """Flat positions in ascending order, and the place of each among all numbers in ``values``; int64."""
        flat, place = (each.cpu() for each in _blocks.positions_of(self.checked_index(), self.matrix, self.block))
        flat, order = flat.sort()
        return flat, place[order]

    def arrange(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As of the sparse layers: index and order for a support; -1 in the order of what lies beyond the edges."""
        index = _blocks.numbers_of(Support.from_index(positions, self.weight_shape), self.block)
        flat, place = _blocks.positions_of(index, self.matrix, self.block)
        order = torch.full((len(index) * self.block**2,), -1)
        order[place] = torch.searchsorted(positions, flat)
        return index, order

    def to_dense(self) -> Tensor:
        """The weight with zeros off its support; differentiable."""
        return _blocks.laid_out(self.values, self.checked_index(), self.matrix)

    def _sizes(self) -> str:
        return f"{super()._sizes()}, block={self.block}"

    def _check_index(self, *, read: bool = False) -> None:
        """As of the sparse layers; native kernels look through the index again whenever they use it, as it is short."""
        if self.index.is_meta or self.values.is_meta:
            if read or self.index.is_meta != self.values.is_meta:
                raise ConfigError("a layer on the meta device has sizes only; use to_empty and load_state_dict first")
        elif read or not self._trusts():
            blocks.check(self.index, self.values, self.matrix)
            self._trust()

    # -- values --

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw values and bias as `SparseLinear` does. An index that is none, as after ``to_empty``, is drawn."""
        if self.values.is_meta:
            return
        rows, columns = self.matrix
        try:
            flat, place = self.ascending()
        except ConfigError:
            every = math.prod(blocks.grid(self.matrix, self.block))
            self.index.copy_(_drawing.draw_positions(every, len(self.index)))
            flat, place = self.ascending()
        drawn = torch.empty(len(flat), dtype=self.values.dtype).uniform_(-1, 1)  # in flat order, on any machine
        drawn *= _drawing.bounds(flat, rows, columns, self.fan_in).to(drawn.dtype)
        self.values.zero_().view(-1)[place.to(self.values.device)] = drawn.to(self.values.device)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(columns), 1 / math.sqrt(columns))

    @torch.no_grad()
    def set_support(  # type: ignore[override]
        self, support: Support | Tensor, before: tuple[Tensor, Tensor] | None = None
    ) -> BlockMoves:
        """Change to another support of whole blocks: survivors keep their values, newborn blocks are zero.

        support: a Support or a bool mask. ``values`` stays the same Parameter, at another count with new memory and
        without a gradient.

        Raises:
            ConfigError: the support is of another shape, or has parts of blocks.
        """
        check_support(support, self.weight_shape)
        support = support if isinstance(support, Support) else Support.from_mask(support)
        index = _blocks.numbers_of(support, self.block).to(self.index.device)
        moves = BlockMoves.between(self.checked_index(), index, self.matrix, self.block)
        values = moves.carried(self.values)
        self._room_for(len(index))
        self.values.copy_(values)
        self.index.copy_(index)
        return moves

    def exchange(self, kept: Tensor, born: Tensor) -> None:
        """Not possible: entries do not move by themselves."""
        return

    def _room_for(self, count: int) -> None:
        if count != len(self.values):
            self._resize(count, self.block, self.block)
            self.index = self.index.new_empty(count)

    # -- other forms --

    @classmethod
    def from_dense(cls, module: nn.Linear, support: Support | Tensor, block: int = 16) -> Self:
        """Take over the active weights and the bias (the same Parameter) of a dense layer. Draws no random numbers.

        support: a Support or a bool mask of its weight, whole blocks.

        Raises:
            ConfigError: the module is of another class, the support of another shape, or there are parts of blocks.
        """
        check_module(cls, module, nn.Linear)
        weight = module.weight
        check_support(support, weight.shape)
        support = support if isinstance(support, Support) else Support.from_mask(support)
        layer = cls._shaped(weight.shape, support, module.bias, block=block, device=weight.device, dtype=weight.dtype)
        layer._take_over(module)
        return layer

    @torch.no_grad()
    def _take_over(self, module: Any) -> None:
        if not module.weight.is_meta:
            self.values.copy_(_blocks.cut(module.weight, self.index, self.block))
        self.values.requires_grad_(module.weight.requires_grad)
        self.train(module.training)

    @classmethod
    def from_coo(cls, indices: Tensor, values: Tensor, shape: Any, bias: Tensor | None = None, **options: Any) -> Self:
        """As of the sparse layers; the coordinates must make up whole blocks, and options have ``block``."""
        flat, values = coordinates(indices, values, shape)
        support = Support(shape, len(flat), flat, "index")
        layer = cls._shaped(torch.Size(shape), support, bias, dtype=values.dtype, **options)
        with torch.no_grad():
            layer.values.zero_().view(-1)[layer.ascending()[1]] = values
        return layer

    @classmethod
    def _shaped(  # type: ignore[override]
        cls,
        shape: torch.Size,
        support: Support,
        bias: Tensor | None,
        *,
        block: int = 16,
        fan_in: FanIn = "live",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        if len(shape) != 2:
            raise ConfigError(f"the weight of a linear layer has 2 dimensions, got shape {tuple(shape)}")
        if bias is not None and bias.shape != shape[:1]:
            raise ConfigError(f"bias has shape {tuple(bias.shape)}; expected ({shape[0]},)")
        _blocks.check_options(block, fan_in, dtype)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.block, (layer.out_features, layer.in_features) = block, shape
        chosen = layer._chosen(shape, None, support)
        layer._hold(chosen, False, fan_in, device, dtype)
        if bias is not None:
            layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.to(layer.values.dtype))
        return layer

    # -- computing --

    @property
    def packs(self) -> bool:
        """Whether it computes with packed activations: on the CPU."""
        return self.values.device.type in ("cpu", "meta")

    def forward(self, x: Tensor, beside: Beside | None = None) -> Tensor:
        """(..., in_features) -> (..., out_features). beside: as of `SparseLinear`, where activations are packed."""
        if self.packs or beside is not None:
            return super().forward(x, beside)
        refuse_tracers(x)
        check_tensor(x)
        check_fit(x, self.values, x.ndim > 0 and x.shape[-1] == self.in_features, f"(..., {self.in_features})")
        self._check_itself()
        kind = self.values.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.values.dtype
        rows, bias = x.reshape(-1, self.in_features).to(dtype), None if self.bias is None else self.bias.to(dtype)
        y = blocks.linear(rows, self.values.to(dtype), self.index, bias, self.out_features)
        sink, seen = self.capture, rows.detach()
        if sink is not None and y.requires_grad and not torch.compiler.is_compiling():
            y.register_hook(lambda slope: sink.append(Pass(pack(seen), pack(slope.detach()))))
        return y.view(*x.shape[:-1], self.out_features)

    def _agrees(self) -> bool:
        return super()._agrees() and tuple(self.values.shape[1:]) == (self.block, self.block)

    def _product(self, packed: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return blocks.packed_linear(packed, values, self.index, bias, self.out_features)

    # -- loading --

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        """Values travel with their index, of another count too; what does not fit is refused, nothing changed."""
        own: dict[str, Tensor] = {name: value for name, value in self._parameters.items() if value is not None}
        own["index"] = self.index
        saved = {name: state[prefix + name] for name in own if prefix + name in state}
        assign = metadata.get("assign_to_params_buffers", False)
        problem = _blocks.misfit(saved, own, self.matrix, self.block, assign)
        if problem:
            rest[-1].append(f"block-sparse layer {prefix.rstrip('.') or 'at the root'}: {problem}")
            return
        self._room_for(len(saved.get("values", self.values)))
        nn.Module._load_from_state_dict(self, state, prefix, metadata, *rest)
