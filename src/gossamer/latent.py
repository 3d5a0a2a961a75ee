"""The dense trainable weights of a live method, and their swap with the sparse view around each optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import distributed
from .errors import AttachError
from .masking import keep_on


class Latent:
    """Holds the trainable weights of one Parameter, whose own values are the sparse view of them.

    values: the local part of the trainable weights. handed_over: whether the Parameter has them at the moment.
    """

    def __init__(self, module: nn.Module, parameter: nn.Parameter) -> None:
        self._module, self._parameter = module, parameter
        self.values = self._weight.clone()
        self.handed_over = False
        self._view: Tensor | None = None
        self._version = -1  # of the parameter when the sparse view was last made

    @property
    def _weight(self) -> Tensor:
        return distributed.local(self._parameter.detach())

    @property
    def _in_place(self) -> bool:
        """Where addresses must stay: FSDP2 shards and cuDNN's flat RNN weights."""
        flat_rnn = isinstance(self._module, nn.RNNBase) and self._parameter.is_cuda
        return flat_rnn or distributed.is_sharded(self._parameter)

    def hand_over(self) -> None:
        """Put the trainable weights where the optimizer will step on them."""
        if self._in_place:
            self._weight.copy_(self.values)
        else:
            self._view, self._parameter.data = self._parameter.data, self.values
        self.handed_over = True

    def show_sparse(self, mask: Tensor) -> None:
        """Put the sparse view back: the trainable weights on the support, zero elsewhere."""
        parameter = self._parameter
        if self._in_place:
            if self.handed_over:
                self.values.copy_(self._weight)
            keep_on(mask, self.values, out=self._weight)
        else:
            if self.handed_over:
                self.values = parameter.data
            view = self._view if self.handed_over and self._view is not None else parameter.data
            keep_on(mask, self.values, out=view)
            parameter.data = view
        self._view = None
        self.handed_over = False
        self._version = parameter._version

    def check(self, mask: Tensor, name: str) -> None:
        """Raise AttachError if something wrote other weights over the sparse view: they would be lost."""
        if self.handed_over or self._parameter._version == self._version:
            return
        expected = torch.empty_like(self.values)
        keep_on(mask, self.values, out=expected)
        if not torch.equal(expected, self._weight):
            raise AttachError(
                f"the values of {name} were changed outside, but this method trains weights of its own: load "
                "weights before sparsify(), or a run with sparsifier.load_state_dict(); restore() undoes the change"
            )
        self._version = self._parameter._version
