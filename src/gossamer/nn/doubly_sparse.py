"""Inference with sparse weights on sparse activations: one multiplication for each pair of non-zeros that meet."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..kernels import skip
from ..topology import Support
from ._checks import check_input, check_tensor
from .convert import put, share_hooks, swapped
from .convolution import SparseConv1d, SparseConv2d
from .linear import SparseLinear
from .weight import SparseWeight

_SPARSE: dict[type[nn.Module], Any] = {nn.Linear: SparseLinear, nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d}


class DoublySparse(nn.Module):
    """What a linear layer or a convolution computes, in time of the products that are not zero; for inference.

    With a share d of the weights active and a share a of the inputs non-zero, as behind `KWinners` or a ReLU, it does a
    share d a of the dense multiplications: 4 % where both are .2. Time falls less than that, for these products come
    one by one; `benchmarks/doubly_sparse.py` says how much is left on a machine. Zeros of an input meet nothing: an
    infinite weight times zero is zero here.

    Attributes:
        multiplications: of the last call, over the whole batch; compiled code does not tell.
        dense_multiplications: what a dense layer would have done for it.

    >>> layer = DoublySparse.of(nn.Linear(4, 3, bias=False))
    >>> _ = layer(torch.tensor([[0.0, 2.0, 0.0, 1.0]])); layer.multiplications, layer.dense_multiplications
    (6, 12)
    """

    start: Tensor
    row: Tensor
    values: Tensor
    bias: Tensor | None
    multiplications: int
    dense_multiplications: int

    @classmethod
    def of(cls, layer: nn.Module) -> Self:
        """Take over a sparse layer, or a dense one with zeros; its weights are copied, the bias is shared.

        Raises:
            ConfigError: the layer is no linear layer or convolution in one or two dimensions that pads with zeros, or
                has sizes only.
        """
        if type(layer) in _SPARSE:
            weight = layer.get_parameter("weight").detach()
            if weight.is_meta:
                raise ConfigError("a layer on the meta device has sizes only; use to_empty and load_state_dict first")
            mask = weight != 0
            layer = _SPARSE[type(layer)].from_dense(layer, Support.from_mask(mask))
        if type(layer) not in _SPARSE.values():
            known = ", ".join(kind.__name__ for kind in (*_SPARSE, *_SPARSE.values()))
            raise ConfigError(f"a {type(layer).__name__} has no doubly sparse form; expected one of {known}")
        made = cls()
        made._take(layer)  # type: ignore[arg-type]
        return made

    def _take(self, layer: SparseLinear | SparseConv1d | SparseConv2d) -> None:
        conv = None if isinstance(layer, SparseLinear) else layer
        shape = (*layer.weight_shape, 1, 1) if conv is None else conv._settings()[0]
        self.kernel = tuple(shape[2:])
        self.how = ((1, 1), (0, 0), (1, 1)) if conv is None else conv._settings()[1:4]
        self.axes = 0 if conv is None else conv.axes
        self.groups = 1 if conv is None else conv.groups
        self.weight_shape, self.inputs = layer.weight_shape, shape[1] * self.groups
        self.more = [] if conv is None else [after - before for before, after in conv._pads()]
        flat, place = layer.ascending()
        columns = skip.by_columns(flat, layer.values.detach()[place], shape, self.groups)
        for name, tensor in zip(("start", "row", "values"), columns, strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().to(self.values.dtype))
        self._trusted: tuple[skip.Columns, list[tuple[int, int]]] | None = None
        self.multiplications = self.dense_multiplications = 0
        self.eval()

    @property
    def density(self) -> float:
        """Active share of the entries of the dense weight."""
        return len(self.values) / max(1, math.prod(self.weight_shape))

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that it was made of.

        Raises:
            ConfigError: an input of another shape, or one that wants a gradient, which there is none of.
        """
        check_tensor(x)
        wanted = f"(..., {self.inputs})" if self.axes == 0 else f"([batch,] {self.inputs}, *size)"
        fits = (
            x.ndim > self.axes and x.shape[-self.axes - 1] == self.inputs and (not self.axes or x.ndim < self.axes + 3)
        )
        check_input(x, self.values, fits, wanted)
        if torch.is_grad_enabled() and x.requires_grad:
            raise ConfigError(
                "a doubly sparse layer has no gradients; call it under torch.no_grad(), or train the model "
                "that it was made of"
            )
        tracing = torch.compiler.is_compiling()
        if not tracing:
            self._check_entries()
        lead = x.shape[: x.ndim - self.axes - 1]
        images = x.to(self.values.dtype).reshape(math.prod(lead), *x.shape[x.ndim - self.axes - 1 :])
        with torch.no_grad():
            images = self._image(images)
            y, count = skip.forward(images, self._columns(), self.bias, self.weight_shape[0], self.kernel, self.how)
        if not tracing:
            self.multiplications = int(count)
            self.dense_multiplications = math.prod(self.weight_shape) * len(y) * math.prod(y.shape[2:])
        y = y[:, :, 0, 0] if self.axes == 0 else y.squeeze(2) if self.axes == 1 else y
        return y.reshape(*lead, *y.shape[1:])

    def _image(self, x: Tensor) -> Tensor:
        """Two axes for every kind; what "same" pads more behind than before is padded here."""
        if any(self.more):
            x = nn.functional.pad(x, [side for pad in reversed(self.more) for side in (0, pad)])
        return x[:, :, None, None] if self.axes == 0 else x.unsqueeze(2) if self.axes == 1 else x

    def _columns(self) -> skip.Columns:
        return skip.Columns(self.start, self.row, self.values)

    def _check_entries(self) -> None:
        """The kernel trusts the entries: look through them once after they were loaded, moved or changed."""
        entries = self._columns()
        known = not any(tensor.is_inference() for tensor in entries)  # those do not count their changes
        stamps = [(tensor.data_ptr(), tensor._version) for tensor in entries] if known else []
        if self._trusted is not None and known:
            before, then = self._trusted
            if then == stamps and all(one is other for one, other in zip(entries, before, strict=True)):
                return
        skip.check(entries, self.weight_shape[0], self.inputs * math.prod(self.kernel))
        self._trusted = (entries, stamps) if known else None

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        """Entries may be more or fewer; what is no such weight is refused, nothing changed."""
        names = [name for name in skip.Columns._fields if prefix + name in state]
        given = {name: state[prefix + name] for name in names}
        if names:
            try:
                for tensor in given.values():
                    check_tensor(tensor)
                entries = self._columns()._replace(**given)
                skip.check(entries, self.weight_shape[0], self.inputs * math.prod(self.kernel))
            except ConfigError as error:
                where = prefix.rstrip(".") or "at the root"
                raise CheckpointError(f"doubly sparse layer {where}: {error}; load what it saved") from error
            for name, tensor in given.items():
                if len(tensor) != len(getattr(self, name)):
                    setattr(self, name, getattr(self, name).new_empty(len(tensor)))
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        """Shape and density, for ``repr``."""
        return (
            f"weight={'x'.join(map(str, self.weight_shape))}, density={self.density:.4g}, bias={self.bias is not None}"
        )


def doubly_sparse(model: nn.Module) -> nn.Module:
    """Swap the sparse layers of a model for doubly sparse ones, in place, for inference; returns the model.

    Raises:
        ConfigError: the model is no module, or has no `SparseLinear`, `SparseConv1d` or `SparseConv2d`.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    made: dict[nn.Module, nn.Module] = {
        layer: DoublySparse.of(layer) for layer in swapped(model) if isinstance(layer, SparseWeight)
    }
    if not made:
        raise ConfigError(
            "the model has no sparse layers; call gossamer.convert(model, method) first, or DoublySparse.of"
        )
    for layer, sparse in made.items():
        share_hooks(layer, sparse)
    return put(model, made).eval()
