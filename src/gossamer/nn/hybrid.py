"""Layers for live methods: a dense weight to train, products with the sparse view that it holds between steps."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels import sparse
from ..topology import Support
from ._forms import check_module, check_support, recorded, same_as
from .packed import PackedActivation


class Hybrid(nn.Module):
    """What both layers share: the support, its index, and when to use them.

    The sparse products are right only while the weight is zero off the support. That is looked up (one pass over the
    weight) whenever the weight's storage or version is another one than when it was last known, unless the owner of the
    support says that it is so (`confirm`). Writes to ``weight.data`` raise no version and go unnoticed.
    """

    break_even: ClassVar[float]  # densities above it are computed densely
    _dense: ClassVar[type[nn.Module]]
    weight: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_support(None)

    @classmethod
    def from_dense(cls, module: nn.Module, support: Support | Tensor) -> Self:
        """The same layer with the same Parameters, hooks and mode; the weight is left as it is.

        support: a Support or a bool mask of its weight.

        Raises:
            ConfigError: the module is of another class, or the support of another shape.
        """
        check_module(cls, module, cls._dense)
        check_support(support, module.get_parameter("weight").shape)
        layer = same_as(module, cls)
        layer.set_support(support)
        return layer

    def to_dense(self) -> Tensor:
        """The weight with zeros off its support, if it has one; differentiable."""
        return self.weight if self._mask is None else torch.where(self._mask, self.weight, 0.0)

    def dense_module(self) -> nn.Module:
        """Return the plain torch layer with the same Parameters, hooks and mode; the weight is left as it is."""
        return same_as(self, self._dense, without=("_mask", "_index", "_count", "_seen", "_agrees"))

    def set_support(self, support: Support | Tensor | None) -> None:
        """Take the support that the weight is zero off, None for none; the index is made when it is next needed.

        support: a Support, or a bool mask of the shape of the weight; a mask is kept, so do not change it in place.

        Raises:
            ConfigError: it is no such thing.
        """
        if support is not None:
            check_support(support, self.weight.shape)
        self._mask = support.mask if isinstance(support, Support) else support
        self._index: Tensor | None = None
        self._count = 0
        self._seen: tuple[int, int] | None = None  # storage and version of the weight when it was last looked at
        self._agrees = False

    def support(self) -> Support | None:
        """The support, or None."""
        return None if self._mask is None else Support.from_mask(self._mask)

    def confirm(self) -> None:
        """Say that the weight is zero off the support as it is now."""
        self._seen, self._agrees = self._state(), True

    def forward(self, x: Tensor) -> Tensor:
        """As the dense layer; by sparse products where these are right and pay."""
        if isinstance(x, PackedActivation):
            x = x.unpacked()
        if not self._suits(x) or not self._is_sparse():
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias, self)

    def _suits(self, x: Tensor) -> bool:
        """Whether these tensors are the kernels' kind, in plain reverse-mode differentiation."""
        if self._mask is None or torch.compiler.is_compiling() or recorded(x):
            return False
        if torch._C._are_functorch_transforms_active():
            return False
        weight = self.weight
        float32 = x.dtype == torch.float32 or (x.is_floating_point() and torch.is_autocast_enabled("cpu"))
        here = x.device.type == weight.device.type == self._mask.device.type == "cpu"
        return here and float32 and weight.dtype == torch.float32 and x.numel() > 0 and not weight.is_inference()

    def _is_sparse(self) -> bool:
        """Whether the support is small enough and holds all that is not zero."""
        assert self._mask is not None
        if self._index is None:
            flat = torch.from_numpy(np.flatnonzero(self._mask.numpy()))
            self._count = len(flat)
            if self._count <= self.break_even * self._mask.numel():
                self._index, _ = sparse.build(flat, self._matrix(), math.prod(self.weight.shape[2:]))
        if self._index is None:
            return False
        if self._seen != self._state():
            held = torch.count_nonzero(self._values(self.weight.detach()))
            self._seen = self._state()
            self._agrees = bool(torch.count_nonzero(self.weight.detach()) == held)
        return self._agrees

    def _state(self) -> tuple[int, int]:
        return self.weight.data_ptr(), self.weight._version

    def _matrix(self) -> tuple[int, int]:
        rows = self.weight.shape[0]
        return rows, self.weight.numel() // rows

    def _values(self, weight: Tensor) -> Tensor:
        assert self._index is not None
        return sparse.gather(weight, self._index, self._count)

    def _product(self, x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _to_input(self, x: Tensor, values: Tensor, index: Tensor, dy: Tensor) -> Tensor:
        raise NotImplementedError

    def _dense_backward(self, x: Tensor, weight: Tensor, dy: Tensor, wanted: list[bool]) -> list[Tensor | None]:
        """Gradients of input, weight and bias by torch's own, differentiable products."""
        raise NotImplementedError


class _Product(torch.autograd.Function):
    """Sparse forward, sparse gradient of the input, dense gradient of the weight."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Hybrid) -> Tensor:
        index = layer._index
        assert index is not None
        values = layer._values(weight)
        ctx.save_for_backward(x, weight, values, index)
        ctx.layer = layer
        return layer._product(x, values, index, bias)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, index = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # create_graph: the kernels have no second derivative
            return (*ctx.layer._dense_backward(x, weight, dy, wanted), None)
        dx = ctx.layer._to_input(x, values, index, dy) if wanted[0] else None
        _, dweight, dbias = ctx.layer._dense_backward(x, weight, dy, [False, *wanted[1:]])
        return dx, dweight, dbias, None


class HybridLinear(Hybrid, nn.Linear):
    """`nn.Linear` for live methods on the CPU: sparse forward, sparse gradient of the input, dense one of the weight.

    The same arguments, Parameters, ``state_dict`` and results as `nn.Linear`, of which it is a subclass. Once it has a
    support (`set_support`; a controller gives it its own), products with the weight touch only what is in it.
    Where that cannot be or does not pay it computes as `nn.Linear`: while the weight is not zero off the support, above
    the density `break_even`, other types than float32 on the CPU, `torch.compile`, functorch transforms. Under autocast
    it computes in float32. A second derivative uses the dense products.

    Source: sparse forward and activation gradient with dense weight gradients, as the first source document asks
    (Advances in Sparse Neural Model Training, algorithm 1).
    """

    break_even = 0.5
    _dense = nn.Linear

    def _product(self, x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
        samples = x.reshape(-1, self.in_features)
        packed = sparse.linear(sparse.pack(samples), values, index, bias, self.out_features)
        return sparse.unpack(packed, len(samples)).view(*x.shape[:-1], self.out_features)

    def _to_input(self, x: Tensor, values: Tensor, index: Tensor, dy: Tensor) -> Tensor:
        packed = sparse.pack(dy.reshape(-1, self.out_features))
        like = packed.new_empty(len(packed), self.in_features, sparse.LANES)  # for its shape only
        dx, _ = torch.ops.gossamer.linear_backward(like, values, index, packed, True, False)
        return sparse.unpack(dx, x.numel() // self.in_features).view(x.shape)

    def _dense_backward(self, x: Tensor, weight: Tensor, dy: Tensor, wanted: list[bool]) -> list[Tensor | None]:
        samples, rows = x.reshape(-1, self.in_features), dy.reshape(-1, self.out_features)
        return [
            dy @ weight if wanted[0] else None,
            rows.T @ samples if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        ]


class HybridConv2d(Hybrid, nn.Conv2d):
    """`nn.Conv2d` for live methods on the CPU, as `HybridLinear` is `nn.Linear`.

    Computes as `nn.Conv2d` also for a ``padding_mode`` other than "zeros" and for ``padding="same"`` that pads the two
    sides differently.
    """

    break_even = 0.2
    _dense = nn.Conv2d

    def _suits(self, x: Tensor) -> bool:
        return super()._suits(x) and self.padding_mode == "zeros" and self._padding() is not None and x.ndim in (3, 4)

    def _padding(self) -> list[int] | None:
        if self.padding == "valid":
            return [0, 0]
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return None if any(t % 2 for t in total) else [t // 2 for t in total]
        return [int(pad) for pad in self.padding]

    def _how(self) -> tuple[Any, ...]:
        return list(self.weight.shape), list(self.stride), self._padding(), list(self.dilation), self.groups

    def _product(self, x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None) -> Tensor:
        images = x if x.ndim == 4 else x.unsqueeze(0)
        packed = sparse.conv(sparse.pack(images), values, index, bias, *self._how())
        y = sparse.unpack(packed, len(images))
        return y if x.ndim == 4 else y.squeeze(0)

    def _to_input(self, x: Tensor, values: Tensor, index: Tensor, dy: Tensor) -> Tensor:
        batch = len(x) if x.ndim == 4 else 1
        packed = sparse.pack(dy.reshape(batch, *dy.shape[-3:]))
        like = packed.new_empty(len(packed), *x.shape[-3:], sparse.LANES)  # for its shape only
        dx, _ = torch.ops.gossamer.conv_backward(like, values, index, packed, *self._how(), True, False)
        return sparse.unpack(dx, batch).view(x.shape)

    def _dense_backward(self, x: Tensor, weight: Tensor, dy: Tensor, wanted: list[bool]) -> list[Tensor | None]:
        _, stride, padding, dilation, groups = self._how()
        images, maps = (t if t.ndim == 4 else t.unsqueeze(0) for t in (x, dy))
        how = ([self.out_channels], stride, padding, dilation, False, [0, 0], groups, wanted)
        dx, dweight, dbias = torch.ops.aten.convolution_backward(maps, images, weight, *how)
        return [dx.view(x.shape) if wanted[0] else None, dweight, dbias]
