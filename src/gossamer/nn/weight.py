"""A weight of which only the active entries exist: their values, and an index that says where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, check_choice
from ..kernels import rewire, sparse
from ..sparse_layer import Sink
from ..topology import Support
from . import _checks, _drawing
from ._forms import check_support
from ._indexed import IndexedValues
from ._moves import Moves, Pass
from .packed import enter, leave

FanIn = Literal["live", "dense"]
Beside = Callable[[Tensor], Tensor]


class SparseWeight(IndexedValues):
    """Base of the sparse layers: a 1-D Parameter ``values`` in the storage order of the buffer ``index``, and a bias.

    The order is that in which the kernels visit the entries; `positions` tells it. The weight's logical name is
    ``<path>.weight``, though there is no such Parameter.

    Attributes:
        weight_shape: shape of the dense weight, (outputs, inputs / groups, \\*kernel).
        fan_in: what `reset_parameters` scales by.
        keep_packed: whether outputs stay packed (`PackedActivation`); set by `gossamer.convert`.
        capture: None, or where each backward pass appends a `Pass`, of which `dense_gradient` makes the gradient of
            inactive entries too. Not filled in compiled code.
    """

    bias: nn.Parameter | None
    fan_in: FanIn
    keep_packed: bool
    capture: Sink | None
    _features: int  # dimensions of a sample

    def _assemble(
        self,
        weight_shape: Sequence[int],
        flat: Tensor | int,
        bias: bool,
        fan_in: FanIn,
        device: Any,
        dtype: Any,
    ) -> None:
        """Make parameters and index of the active flat positions, or of as many as are said, yet to be drawn."""
        self.weight_shape, self.fan_in = torch.Size(weight_shape), fan_in
        self.keep_packed, self.capture, self._trusted = False, None, None
        count = flat if isinstance(flat, int) else len(flat)
        self.values = nn.Parameter(torch.empty(count, device=device, dtype=dtype))
        _checks.check_device(self.values)
        if self.values.is_meta:  # there an index has a size only
            size = sparse.index_bytes(self.matrix, count, self.taps)
            index = torch.empty(size, dtype=torch.uint8, device=self.values.device)
        else:
            with torch.device("cpu"):
                if isinstance(flat, int):
                    flat = _drawing.draw_positions(math.prod(self.matrix), count)
                index = _checks.make_index(flat, self.matrix, self.taps)
        self.register_buffer("index", index)
        made = torch.empty(self.weight_shape[0], device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if made is None else nn.Parameter(made))

    def _new(self, weight_shape: Sequence[int], density: float | None, support: Support | None, *rest: Any) -> None:
        """As a constructor is asked: a density to draw at random, or a support. rest: see _assemble."""
        bias, fan_in, device, dtype = rest
        check_choice("fan_in", fan_in, ("live", "dense"))
        flat = _checks.chosen(torch.Size(weight_shape), density, support)
        self._assemble(weight_shape, flat, bias, fan_in, device, dtype)
        self.reset_parameters()

    # -- what it is --

    def dense_module(self) -> nn.Module:
        """Return the layer as a dense one, with zeros; the bias is the same Parameter."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes, count and density, for ``repr``."""
        return f"{self._sizes()}, count={self.count}, density={self.density:.4g}, bias={self.bias is not None}"

    def _sizes(self) -> str:
        raise NotImplementedError

    # -- values --

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw values and bias as torch does, uniform within 1 / sqrt(fan-in), from the global generator.

        The fan-in of a value is the number of active entries in its row (``fan_in="dense"``: of all entries, as torch
        has it); that of the bias counts all. The support stays; an index that is none, as after ``to_empty``, is drawn.
        """
        _checks.check_device(self.values)
        if self.values.is_meta:
            return
        rows, columns = self.matrix
        try:
            flat, place = self.ascending()
        except ConfigError:
            drawn = _drawing.draw_positions(rows * columns, self.count)
            self.index = sparse.build(drawn, self.matrix, self.taps)[0]
            flat, place = self.ascending()
        bound = _drawing.bounds(flat, rows, columns, self.fan_in).to(self.values.dtype)
        self.values[place] = torch.empty_like(self.values).uniform_(-1, 1) * bound  # in flat order, on any machine
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(columns), 1 / math.sqrt(columns))

    @torch.no_grad()
    def set_support(self, support: Support | Tensor, before: tuple[Tensor, Tensor] | None = None) -> Moves:
        """Change to another support: surviving values move with their entries, newborn ones are zero.

        support: a Support or a bool mask. before: what `ascending` returns, if that is known.

        At an equal count all happens in place. At another one, ``values`` stays the same Parameter, with new memory and
        without a gradient.

        Raises:
            ConfigError: the support is of another shape.
        """
        check_support(support, self.weight_shape)
        flat = (support if isinstance(support, Support) else Support.from_mask(support)).index.cpu()
        index, order = sparse.build(flat, self.matrix, self.taps)
        return self._follow(index, Moves(rewire.sources(before or self.ascending(), flat, order)))

    @torch.no_grad()
    def exchange(self, kept: Tensor, born: Tensor) -> Moves | None:
        """As `set_support`, to those of the values that are ``kept``, bool, and newborn ones.

        born: flat positions, ascending, of inactive entries. None: nothing was done, as the blocks of the index do not
        fit the new count or are very many. For the native library only.
        """
        index, count = self.checked_index(), int(np.count_nonzero(kept.numpy())) + len(born)
        if sparse.block_of(index) != sparse.blocks(self.matrix, count, self.taps):
            return None
        size = sparse.index_bytes(self.matrix, count, self.taps)
        found = rewire.exchange(index, kept, born, count, size)
        return None if found is None else self._follow(found[0], Moves(found[1]))

    def _follow(self, index: Tensor, moves: Moves) -> Moves:
        values = moves.carried(self.values)
        self._make_room(len(values), len(index))
        self.values.copy_(values)
        self.index.copy_(index)
        self._trust()
        return moves

    # -- other forms --

    def _given(
        self,
        shape: torch.Size,
        support: Support,
        bias: Tensor | None,
        *,
        fan_in: FanIn = "live",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Assemble for a given support; the values are not set yet."""
        check_choice("fan_in", fan_in, ("live", "dense"))
        flat = _checks.chosen(shape, None, support)
        if bias is not None and bias.shape != shape[:1]:
            raise ConfigError(f"bias has shape {tuple(bias.shape)}; expected ({shape[0]},)")
        self._assemble(shape, flat, False, fan_in, device, dtype)
        if bias is not None:
            self.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.to(self.values.dtype))

    @torch.no_grad()
    def _take_over(self, module: Any) -> None:
        """The active weights of a dense module, and its modes."""
        weight = module.weight.detach()
        if not weight.is_meta:
            self.values.copy_(sparse.gather(weight.reshape(self.matrix), self.index, self.count))
        self.values.requires_grad_(module.weight.requires_grad)
        self.train(module.training)

    @torch.no_grad()
    def _give_back(self, module: Any) -> Any:
        """A dense module of the same sizes, with this one's weight, bias and modes."""
        module.weight = nn.Parameter(self.to_dense(), requires_grad=self.values.requires_grad)
        module.bias = self.bias
        return module.train(self.training)

    @classmethod
    def from_coo(
        cls, indices: Tensor, values: Tensor, shape: Sequence[int], bias: Tensor | None = None, **options: Any
    ) -> Self:
        """Make a layer of coordinates and values, in any order.

        indices: integers, flat positions (n,) or coordinates (dimensions of ``shape``, n). values: (n,) of a floating
        dtype, whose dtype the layer takes. shape: of the dense weight. options: of the constructor, such as ``stride``.

        Raises:
            ConfigError: positions are out of range or repeated, or a tensor is of another kind.
        """
        flat, values = _checks.coordinates(indices, values, shape)
        support = Support(shape, len(flat), flat, "index")
        layer = cls._shaped(torch.Size(shape), support, bias, dtype=values.dtype, **options)
        with torch.no_grad():
            stored = torch.searchsorted(flat, layer.positions())
            layer.values.copy_(values[stored])
        return layer

    @classmethod
    def _shaped(cls, shape: torch.Size, support: Support, bias: Tensor | None, **options: Any) -> Self:
        """A layer for a weight of `shape`; only its values are not set yet."""
        raise NotImplementedError

    # -- computing --

    def _run(self, x: Tensor, beside: Beside | None) -> Tensor:
        """Pack, apply the kernel, unpack unless the next layer takes it packed."""
        self._check_itself()
        tracing, lead = torch.compiler.is_compiling(), x.shape[: x.ndim - self._features]
        dtype = torch.float64 if self.values.dtype == torch.float64 else torch.float32
        bias = None if self.bias is None else self.bias.to(dtype)
        entered = enter(x, len(lead), dtype)
        packed = self._prepare(entered)
        out = self._product(packed, self.values.to(dtype), bias)
        sink = self.capture
        if sink is not None and out.requires_grad and not tracing:
            seen = packed.detach()
            out.register_hook(lambda slope: sink.append(Pass(seen, slope.detach())))
        out = self._finish(out)
        if beside is not None:
            out = out + beside(entered)
        y = leave(out, lead, keep=self.keep_packed and not tracing and self.values.dtype == dtype)
        return y if torch.is_autocast_enabled("cpu") else y.to(self.values.dtype)

    def _check_itself(self) -> None:
        """Raise ConfigError if sizes were changed, or the index is damaged."""
        if not self._agrees():
            raise ConfigError(
                f"the sizes of {self} are not those of its weight, {tuple(self.weight_shape)}; put them back"
            )
        if not torch.compiler.is_compiling():
            self._check_index()

    def _agrees(self) -> bool:
        """Whether the attributes that tell sizes are as they were made: kernels read as much as the index says."""
        raise NotImplementedError

    def _prepare(self, packed: Tensor) -> Tensor:
        return packed

    def _product(self, packed: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _finish(self, packed: Tensor) -> Tensor:
        return packed

    def dense_gradient(self, rows: slice, captured: Iterable[Pass]) -> Tensor:
        """Gradient of the dense weight's ``rows``, (rows, columns), of what `capture` holds; summed over its items."""
        raise NotImplementedError

    def gradient_factors(self, captured: Iterable[Pass]) -> tuple[Tensor, Tensor] | None:
        """Return (rows, samples) and (columns, samples) whose product is the gradient, if there are such."""
        return None
