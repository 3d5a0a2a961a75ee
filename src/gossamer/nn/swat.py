"""Weight gradients from sparse activations or sparse output gradients. Experimental."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from ..errors import ConfigError
from ..topology import check_density
from ..topology.selection import select_top
from .convert import put


class _Kept:
    """The entries of largest magnitude of a tensor: values and 32-bit positions, or all of it where that is less."""

    def __init__(self, tensor: Tensor, density: float) -> None:
        self.shape, self.whole = tensor.shape, tensor
        count = round(density * tensor.numel())
        self.thinned = count < tensor.numel()
        if self.thinned and 2 * count < tensor.numel() < 2**31:
            flat = _mask(tensor, count).view(-1).nonzero().view(-1)
            self.values, self.at = tensor.reshape(-1)[flat], flat.int()
            self.whole = tensor.new_empty(0)
        elif self.thinned:
            self.whole = torch.where(_mask(tensor, count), tensor, 0.0)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.whole,) if self.whole.numel() or not self.thinned else (self.values, self.at)


def _mask(tensor: Tensor, count: int) -> Tensor:
    """Of the largest; NaN is among them, so that the weight gradient shows it."""
    magnitude = tensor.detach().abs().contiguous()
    return select_top([magnitude.nan_to_num_(torch.inf, torch.inf)], count)[0]


def _restored(shape: torch.Size, tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    values, at = tensors
    return values.new_zeros(shape.numel()).index_copy_(0, at.long(), values).view(shape)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activations: float, gradients: float
    ) -> Tensor:
        kept = _Kept(x, activations)
        ctx.shape, ctx.gradients = kept.shape, gradients
        ctx.save_for_backward(weight, *kept.tensors())
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weight, *tensors = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        dweight = None
        if to_weight:
            x = _restored(ctx.shape, tensors)
            dweight = _rows(_thinned(slope, ctx.gradients)).t() @ _rows(x)
        dbias = _rows(slope).sum(0) if to_bias else None
        return slope @ weight if to_x else None, dweight, dbias, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activations: float, gradients: float, how: Any
    ) -> Tensor:
        kept = _Kept(x, activations)
        ctx.shape, ctx.gradients, ctx.how = kept.shape, gradients, how
        ctx.save_for_backward(weight, *kept.tensors())
        return functional.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weight, *tensors = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        dx = conv2d_input(list(ctx.shape), weight, slope, *ctx.how) if to_x else None
        dweight = None
        if to_weight:
            x = _restored(ctx.shape, tensors)
            dweight = conv2d_weight(x, list(weight.shape), _thinned(slope, ctx.gradients), *ctx.how)
        return dx, dweight, slope.sum((0, 2, 3)) if to_bias else None, None, None, None


def _thinned(slope: Tensor, density: float) -> Tensor:
    kept = _Kept(slope, density)
    return _restored(kept.shape, kept.tensors())


class _Swat(nn.Module):
    activations: float
    gradients: float
    _dense: type[nn.Module]

    @classmethod
    def from_dense(cls, module: nn.Module, activations: float = 1.0, gradients: float = 1.0) -> Self:
        """The same layer with the same Parameters, hooks and mode."""
        if type(module) is not cls._dense:
            raise ConfigError(f"{cls.__name__} is made of a {cls._dense.__name__}, not of a {type(module).__name__}")
        made = cls.__new__(cls)
        made.__dict__ = dict(module.__dict__)
        made.activations, made.gradients = check_density(activations), check_density(gradients)
        return made

    def _exact(self) -> bool:
        """Whether no weight gradient will be asked for."""
        return not (torch.is_grad_enabled() and self.get_parameter("weight").requires_grad)

    def _cast(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias, under autocast of its dtype, as it would do."""
        given, kind = (x, self.get_parameter("weight"), self._parameters["bias"]), x.device.type
        if x.is_meta or not torch.is_autocast_enabled(kind):
            return given
        dtype = torch.get_autocast_dtype(kind)

        def cast(t: Tensor) -> Tensor:
            return t if t.dtype == torch.float64 else t.to(dtype)

        x, weight, bias = given
        return cast(x), cast(weight), None if bias is None else cast(bias)

    def extra_repr(self) -> str:
        """As the dense layer, with both densities."""
        return f"{super().extra_repr()}, activations={self.activations:g}, gradients={self.gradients:g}"


class SwatLinear(_Swat, nn.Linear):
    """A linear layer whose weight gradient sees only the largest activations or output gradients; see `swat`."""

    _dense = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Linear`."""
        if self._exact():
            return super().forward(x)
        if x.ndim == 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return _Linear.apply(*self._cast(x), self.activations, self.gradients)


class SwatConv2d(_Swat, nn.Conv2d):
    """A convolution whose weight gradient sees only the largest activations or output gradients; see `swat`."""

    _dense = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Conv2d`."""
        if self._exact():
            return super().forward(x)
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        how = (self.stride, self.padding, self.dilation, self.groups)
        return _Conv2d.apply(*self._cast(x), self.activations, self.gradients, how)


def swat(model: nn.Module, activations: float = 1.0, gradients: float = 1.0) -> nn.Module:
    """Let the weight gradients of linear layers and 2-d convolutions see only the largest entries; experimental.

    The forward pass and the gradient of the input are exact. In the product that gives the weight gradient, each
    layer's input keeps a share ``activations`` of its entries, those of largest magnitude over the whole batch, and
    the gradient of its output a share ``gradients``. Kept activations are saved as values and positions, 8 bytes each,
    so below a density of one half the backward pass holds less memory. The products themselves are dense here: nothing
    is faster.

    With a method of sparse weights beside it (`gossamer.sparsify`), this is SWAT: Raihan and Aamodt 2020,
    arXiv:2001.01969, algorithm 1, which thins activations; thinning gradients is what they compare with.

    Args:
        model: changed in place; Parameters, hooks and mode stay. Layers of other classes stay as they are.
        activations, gradients: densities in (0, 1]; 1 is exact.

    Returns:
        the model, or the new layer if the model is one.

    Raises:
        ConfigError: no layer can be changed, or a density cannot be.

    >>> swat(nn.Linear(4, 3), activations=0.2)
    SwatLinear(in_features=4, out_features=3, bias=True, activations=0.2, gradients=1)
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    check_density(activations), check_density(gradients)
    kinds: dict[type[nn.Module], type[_Swat]] = {nn.Linear: SwatLinear, nn.Conv2d: SwatConv2d}
    found = [module for module in model.modules() if type(module) in kinds and _fits(module)]
    if not found:
        raise ConfigError(
            "the model has no torch.nn.Linear to change, and no torch.nn.Conv2d that pads with zeros by a number of "
            "pixels"
        )
    return put(model, {module: kinds[type(module)].from_dense(module, activations, gradients) for module in found})


def _fits(module: nn.Module) -> bool:
    """Convolutions of other paddings pad before the product; attention reads its weights without calling the layer."""
    plain = not isinstance(module, nn.Conv2d) or (
        module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )
    return plain and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
