"""The gate on a weight's gradient: what of it passes off the support."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import distributed
from .masking import keep_on

_NOT_ATTACHED = (
    "gradients arrive at sparse weights, but no optimizer is attached to their Sparsifier: pass the optimizer to "
    "sparsify(), or call Sparsifier.attach(optimizer)"
)


class GradientGate:
    """Multiplies the gradient of one parameter off its support by `off_scale` as it arrives.

    mask: returns the support, of the shape of the local part. attached: whether an optimizer is there to consume it.
    """

    def __init__(self, parameter: nn.Parameter, mask: Callable[[], Tensor]) -> None:
        self.off_scale, self.attached = 1.0, False
        self._parameter, self._mask = parameter, mask
        self._arrived = False
        self._left: tuple[Any, int] | None = None  # the gradient and its version, as this gate left it

    def install(self) -> list[RemovableHandle]:
        """Register the hooks."""
        disable = torch.compiler.disable  # not as a decorator, which would load the whole compiler on import
        handles = [self._parameter.register_post_accumulate_grad_hook(disable(self._accumulated))]
        if not distributed.is_sharded(self._parameter):
            handles.append(self._parameter.register_hook(disable(self._incoming)))
        return handles

    def _incoming(self, grad: Tensor) -> Tensor | None:
        if self.off_scale in (0.0, 1.0):
            return None
        return torch.where(self._mask(), grad, grad * self.off_scale)

    @torch.no_grad()
    def _accumulated(self, parameter: Tensor) -> None:
        """Zeroing is idempotent and linear: done in place on the accumulated gradient, before DDP reduces it."""
        self._arrived = True
        if not self.attached:
            warnings.warn(_NOT_ATTACHED, stacklevel=2)
        self.reopen()
        self.close()

    def take_arrival(self) -> bool:
        """Whether a gradient arrived since this was last asked."""
        arrived, self._arrived = self._arrived, False
        return arrived

    def close(self) -> None:
        """Zero the gradient off the support, in place, if nothing may pass and it is not as this gate left it."""
        grad = self._parameter.grad
        if grad is None or self.off_scale != 0.0:
            return
        if self._left is not None and self._left[0]() is grad and self._left[1] == grad._version:
            return
        part = distributed.local(grad)
        keep_on(self._mask(), part, out=part)
        self._left = (weakref.ref(grad), grad._version)

    def reopen(self) -> None:
        """Forget what was gated: another gradient came, or another support."""
        self._left = None
