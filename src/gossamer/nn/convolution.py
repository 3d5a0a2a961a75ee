"""Convolutions that hold and compute their active weights only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from ..errors import ConfigError
from ..kernels import sparse
from ..topology import Support
from ._checks import check_input, check_sizes, check_tensor
from ._forms import check_module, check_place, check_support, refuse_tracers
from ._moves import Pass
from .weight import Beside, FanIn, SparseWeight

Size = int | Sequence[int]


class _SparseConv(SparseWeight):
    """What both convolutions share; the kernel has two axes, that of the 1-d one a first one of length 1."""

    axes: ClassVar[int]
    _dense: ClassVar[Any]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        density: float | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        support: Support | None = None,
        fan_in: FanIn = "live",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_place(device, dtype)
        self._set_geometry(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self._new(shape, density, support, bias, fan_in, device, dtype)

    def _set_geometry(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        if padding_mode != "zeros":
            raise ConfigError(
                f"padding_mode={padding_mode!r}: sparse convolutions pad with zeros only; pad the input with "
                "torch.nn.functional.pad before the layer"
            )
        check_sizes(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"{in_channels} input and {out_channels} output channels, groups={groups}: both must be multiples of it"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = self._per_axis("kernel_size", kernel_size, 1)
        self.stride = self._per_axis("stride", stride, 1)
        self.dilation = self._per_axis("dilation", dilation, 1)
        self.padding_mode = padding_mode
        if isinstance(padding, str):
            if padding not in ("same", "valid") or (padding == "same" and max(self.stride) > 1):
                raise ConfigError(f'padding={padding!r}: write "valid", "same" (with stride 1 only) or numbers')
            self.padding = padding
        else:
            self.padding = self._per_axis("padding", padding, 0)

    def _per_axis(self, name: str, value: Size, least: int) -> tuple[int, ...]:
        numbers = tuple(value) if isinstance(value, Sequence) else (value,) * self.axes
        if len(numbers) != self.axes or not all(isinstance(n, Integral) and n >= least for n in numbers):
            raise ConfigError(f"{name}={value!r}: expected one whole number from {least} on, or {self.axes} of them")
        return tuple(int(n) for n in numbers)

    @classmethod
    def from_dense(cls, module: Any, support: Support | Tensor) -> Self:
        """Take over the active weights and the bias (the same Parameter) of a dense layer. Draws no random numbers.

        support: a Support or a bool mask of its weight.

        Raises:
            ConfigError: the module is of another class, or the support of another shape.
        """
        check_module(cls, module, cls._dense)
        check_support(support, module.weight.shape)
        support = support if isinstance(support, Support) else Support.from_mask(support)
        weight, names = module.weight, ("stride", "padding", "dilation", "groups", "padding_mode")
        options = {name: getattr(module, name) for name in names}
        kind = {"device": weight.device, "dtype": weight.dtype}
        layer = cls._shaped(weight.shape, support, module.bias, **options, **kind)
        layer._take_over(module)
        return layer

    def dense_module(self) -> Any:
        """Return the layer as a dense one, with zeros; the bias is the same Parameter."""
        sizes = (self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation)
        return self._give_back(self._dense(*sizes, groups=self.groups, bias=False, device="meta"))

    @classmethod
    def _shaped(cls, shape: torch.Size, support: Support, bias: Tensor | None, **options: Any) -> Self:
        if len(shape) != cls.axes + 2:
            raise ConfigError(f"the weight of a {cls.__name__} has {cls.axes + 2} dimensions, got shape {tuple(shape)}")
        check_place(options.get("device"), options.get("dtype"))
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        kind = {name: options.pop(name) for name in ("fan_in", "device", "dtype") if name in options}
        layer._set_geometry(shape[1] * options.get("groups", 1), shape[0], shape[2:], **options)
        layer._given(shape, support, bias, **kind)
        return layer

    def forward(self, x: Tensor, beside: Beside | None = None) -> Tensor:
        """(batch, in_channels, \\*size) -> (batch, out_channels, \\*size'); without the batch too.

        beside: of the packed input, adds what it returns to the packed output.
        """
        refuse_tracers(x)
        check_tensor(x)
        axes = self.axes
        wanted = f"(batch, {self.in_channels}, {'length' if axes == 1 else 'height, width'}) or one sample of it"
        check_input(x, self.values, x.ndim in (axes + 1, axes + 2) and x.shape[-axes - 1] == self.in_channels, wanted)
        sizes = zip(x.shape[-axes:], self._span(), self._pads(), strict=True)
        if any(size + sum(pads) < span for size, span, pads in sizes):
            raise ConfigError(
                f"an input of size {tuple(x.shape[-axes:])} padded by {self.padding} is smaller than the kernel, which "
                f"spans {self._span()}; enlarge the padding or the input"
            )
        return self._run(x, beside)

    def _span(self) -> tuple[int, ...]:
        return tuple(gap * (taps - 1) + 1 for gap, taps in zip(self.dilation, self.kernel_size, strict=True))

    def _pads(self) -> list[tuple[int, int]]:
        """Padding before and after, per axis; "same" puts what is odd behind, as torch does."""
        if self.padding == "valid":
            return [(0, 0)] * self.axes
        if isinstance(self.padding, str):
            return [((span - 1) // 2, span // 2) for span in self._span()]
        return [(pad, pad) for pad in self.padding]

    def _two(self, numbers: Sequence[int], first: int) -> tuple[int, ...]:
        return (first,) * (2 - self.axes) + tuple(numbers)

    def _settings(self) -> tuple[Any, ...]:
        """Weight shape, stride, padding, dilation and groups of the two-dimensional kernel."""
        rows, channels, *kernel = self.weight_shape
        shape = (rows, channels, *self._two(kernel, 1))
        padding = self._two([before for before, _ in self._pads()], 0)
        return shape, self._two(self.stride, 1), padding, self._two(self.dilation, 1), self.groups

    def _prepare(self, packed: Tensor) -> Tensor:
        """What "same" pads more behind than before is padded here; a first axis of length 1 is put in."""
        more = [after - before for before, after in self._pads()]
        if any(more):
            packed = functional.pad(packed, [0, 0, *(side for pad in reversed(more) for side in (0, pad))])
        return packed.unsqueeze(2) if self.axes == 1 else packed

    def _agrees(self) -> bool:
        rows, channels, *kernel = self.weight_shape
        said = (self.out_channels, self.in_channels, *self.kernel_size)
        return said == (rows, channels * self.groups, *kernel) and rows % self.groups == 0

    def _product(self, packed: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return sparse.conv(packed, values, self.index, bias, *self._settings())

    def _finish(self, packed: Tensor) -> Tensor:
        return packed.squeeze(2) if self.axes == 1 else packed

    @torch.no_grad()
    def dense_gradient(self, rows: slice, captured: Iterable[Pass]) -> Tensor:
        """Gradient of the dense weight's ``rows``, (rows, columns), of what `capture` holds; summed over its items."""
        wanted = range(*rows.indices(self.out_channels))
        total = torch.zeros(len(wanted), self.matrix[1], dtype=self.values.dtype)
        for x, slope in (each.samples for each in captured):
            for group, at in self._parts(wanted):
                total[at] += self._weight_gradient(x, slope[:, rows][:, at], group)
        return total

    def _parts(self, rows: range) -> Iterable[tuple[int, slice]]:
        """The groups that `rows` reach into, and which of the rows are theirs."""
        each = self.out_channels // self.groups
        for group in range(rows.start // each, -(-rows.stop // each)):
            first, last = max(rows.start, group * each), min(rows.stop, (group + 1) * each)
            yield group, slice(first - rows.start, last - rows.start)

    def _weight_gradient(self, inputs: Tensor, slopes: Tensor, group: int) -> Tensor:
        (_, channels, *kernel), *how, _ = self._settings()
        inputs = inputs[:, group * channels : (group + 1) * channels]
        size = (slopes.shape[1], channels, *kernel)
        return conv2d_weight(inputs, size, slopes, *how).flatten(1)

    def _sizes(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        defaults = {"padding": (0,) * self.axes, "dilation": (1,) * self.axes, "groups": 1}
        told = [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([text, *told])


class SparseConv1d(_SparseConv):
    """1-d convolution with a sparse kernel: (batch, in_channels, length) -> (batch, out_channels, length').

    Arguments are those of `torch.nn.Conv1d` with a ``density`` after the kernel size (of the weight (out_channels,
    in_channels / groups, length)), and ``support`` and ``fan_in``; see `SparseLinear` for these, for number formats and
    deviations. Padding is with zeros only.

    Raises:
        ConfigError: an argument cannot be, or an input does not fit.

    >>> SparseConv1d(16, 32, 3, density=0.1, padding="same")(torch.zeros(2, 16, 10)).shape
    torch.Size([2, 32, 10])
    """

    axes = 1
    _dense = nn.Conv1d
    _features = 2


class SparseConv2d(_SparseConv):
    """2-d convolution with a sparse kernel: (batch, in_channels, height, width) -> (batch, out_channels, *size').

    Arguments are those of `torch.nn.Conv2d` with a ``density`` after the kernel size (of the weight (out_channels,
    in_channels / groups, height, width)), and ``support`` and ``fan_in``; see `SparseLinear` for these, for number
    formats and deviations. Padding is with zeros only.

    Raises:
        ConfigError: an argument cannot be, or an input does not fit.

    >>> SparseConv2d(16, 32, 3, density=0.1, stride=2, padding=1)(torch.zeros(2, 16, 10, 10)).shape
    torch.Size([2, 32, 5, 5])
    """

    axes = 2
    _dense = nn.Conv2d
    _features = 3
