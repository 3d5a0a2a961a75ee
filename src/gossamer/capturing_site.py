"""A site without a dense gradient: backward passes leave what that of inactive entries can be computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from . import distributed
from .captures import Captures
from .errors import AttachError
from .kernels import rewire
from .site import Site
from .sparse_layer import SparseLayer, is_sparse_layer

_LOOKED_AT = 1 << 12  # entries of a gradient, for one that is large


@dataclass(frozen=True)
class _Growth:
    """What is kept of a step that decides where to grow.

    captured: of its backward passes. factor: from the gradient these give to the one that the optimizer consumes.
    gradient: that one, of the values.
    """

    captured: list[Any]
    factor: float
    gradient: Tensor


@dataclass
class CapturingSite(Site):
    """The values of a sparse layer, and the gradient of its whole weight, a range of rows at a time."""

    _growth: _Growth | None = field(init=False, default=None, repr=False)
    _captures: Captures | None = field(init=False, default=None, repr=False)

    @property
    def layer(self) -> SparseLayer:
        """The module."""
        assert is_sparse_layer(self.module)
        return self.module

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole weight."""
        return self.layer.weight_shape

    @property
    def count(self) -> int:
        """Number of active entries."""
        return self.parameter.numel()

    def install(self) -> list[RemovableHandle]:
        """Register the hooks that see gradients arrive."""
        disable = torch.compiler.disable
        return [*self.gate.install(), self.parameter.register_hook(disable(self._arriving))]

    def release(self) -> None:
        """Stop capturing."""
        self._captures = self.layer.capture = None
        self.forget_gradient()

    def arm(self, *, growing: bool) -> None:
        """Set whether the next backward pass keeps what a dense gradient can be had from."""
        self._captures = self.layer.capture = Captures() if growing else None

    def _arriving(self, grad: Tensor) -> None:
        if self._captures is not None:
            held = self.parameter.grad
            self._captures.confirm(begins=held is None or not bool(held.count_nonzero()))

    def stash_gradient(self, scale: float) -> None:
        """Keep what the dense, unscaled gradient can be had from."""
        grad, captured = self.parameter.grad, self._captures.held if self._captures else []
        if grad is None:  # the weight took no part in this backward pass
            return
        if not captured:
            raise AttachError(
                f"{self.name} got a gradient, but its layer kept nothing to compute that of inactive entries from, as "
                "in a compiled forward pass; leave the model uncompiled, or use a method that grows without gradients, "
                "such as set"
            )
        self._growth = _Growth(list(captured), self._factor(grad, captured) / scale, grad.detach() / scale)

    def forget_gradient(self) -> None:
        """Drop what was stashed."""
        self._growth = None

    def _factor(self, grad: Tensor, captured: list[Any]) -> float:
        """What unscaling and clipping multiplied gradients by, read off the row of a large one."""
        if not self.count:
            return 1.0
        step = max(1, self.count // _LOOKED_AT)
        step = step if bool(grad[::step].count_nonzero()) else 1  # then look at all of them
        largest = step * int(grad[::step].abs().argmax())
        width = self.shape.numel() // self.shape[0]
        row, columns, places = rewire.row_of(self.layer.checked_index(), self.count, largest, width)
        mine = self._raw_gradient(captured, row, row + 1)[columns].double()
        kept = grad[places].double()
        return self._ratio(mine, kept)

    @staticmethod
    def _ratio(mine: Tensor, kept: Tensor) -> float:
        """What `mine` was multiplied by to give `kept`."""
        factor = float((mine @ kept) / (mine @ mine))
        alike = bool((kept - factor * mine).norm() <= 1e-2 * kept.norm())
        tolerance = 1e-3 if alike else 1.0  # rounding; or a penalty on the values, which is none of other entries
        return 1.0 if not math.isfinite(factor) or abs(math.log2(max(factor, 1e-30))) < tolerance else factor

    def _raw_gradient(self, captured: list[Any], first: int, last: int) -> Tensor:
        """The gradient of some rows, flat, averaged over ranks."""
        part = self.layer.dense_gradient(slice(first, last), captured).reshape(-1)
        if distributed.active():
            dist.all_reduce(part)
            part /= dist.get_world_size()
        return part

    def _gradient(self, begin: int, end: int) -> Tensor:
        """The unscaled gradient of a range of flat positions, whole rows."""
        if self._growth is None:
            return torch.zeros(end - begin, dtype=self.parameter.dtype)
        columns = self.shape.numel() // self.shape[0]
        part = self._raw_gradient(self._growth.captured, begin // columns, end // columns)
        return part if self._growth.factor == 1.0 else part.mul_(self._growth.factor)

    def abandon_step(self) -> None:
        """Forget a step that raised."""
        self.forget_gradient()
        self.arm(growing=self._captures is not None)
