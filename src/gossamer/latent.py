"""The dense trainable weights of a live method, and their swap with the sparse view around each optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import distributed
from .errors import AttachError
from .kernels.select import split
from .masking import keep_on
from .topology import NM, Rule, Select, Structure, Unstructured, scores


class Latent:
    """Holds the trainable weights of one Parameter, whose own values are the sparse view of them.

    values: the local part of the trainable weights. handed_over: whether the Parameter has them at the moment.
    """

    def __init__(self, module: nn.Module, parameter: nn.Parameter) -> None:
        self._module, self._parameter = module, parameter
        self.values = self._weight.clone()
        self.handed_over = False
        self._view: Tensor | None = None
        self._shown: Tensor | None = None  # the mask that `_view` was made with ahead of time
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
            if self._shown is not mask:
                keep_on(mask, self.values, out=view)
            parameter.data = view
            torch.autograd.graph.increment_version(parameter)  # the view was written to behind its back
        self._view = self._shown = None
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


def choose_at_once(
    rule: Rule, structure: Structure, latents: Sequence[Latent | None], active: Sequence[Tensor], count: int
) -> list[Tensor] | None:
    """The rule's new masks of a group, the sparse views made in the same native pass; None: let the rule decide.

    It is for choice by magnitude, unstructured or N:4. `show_sparse` with such a mask, before the weights change again,
    then only swaps. None is also the answer while a weight is not handed over, where it stays in place, and as `split`
    says.
    """
    by_size = isinstance(rule, Select) and rule.score is scores.magnitude and isinstance(structure, Unstructured | NM)
    ready = [latent for latent in latents if latent is not None and latent._view is not None]
    if not by_size or not ready or len(ready) < len(latents):
        return None
    views = [latent._view for latent in ready if latent._view is not None]
    weights = [latent._weight for latent in ready]
    if isinstance(structure, NM):  # a structure of one weight
        mask = structure.at_once(weights[0], active[0], magnitudes=True, view=views[0])
        masks = None if mask is None else [mask]
    else:
        masks = split(weights, active, views, count)
    for latent, mask in zip(ready, masks or [], strict=False):
        latent._shown = mask
    return masks
