"""Layers whose weight is a fixed dense matrix, which costs no memory, plus a trained sparse one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..offsets import Offset
from ..topology import Support
from ._checks import check_sizes
from ._forms import check_place
from ._offset_base import DEFAULT, OffsetLayer, check_options, seed_of
from ._offset_operator import convolution_shape
from .convolution import Size, SparseConv2d
from .hybrid import HybridConv2d, HybridLinear
from .linear import SparseLinear

__all__ = ["OffsetConv2d", "OffsetLayer", "OffsetLinear"]


class OffsetLinear(OffsetLayer):
    """y = alpha D x + S x + b: D fixed, dense and never stored, S sparse, trained, and 0 at first.

    Takes (..., in_features), gives (..., out_features), as `torch.nn.Linear`. Without a density S is dense, for
    `sparsify` to mask; with one it is a `SparseLinear`.

    Nothing is rescaled: a D of unit singular values gives a gain of 1, less than the usual initialisation of ReLU
    networks. Number formats and limits are those of the layer of S; alpha D x is computed in float32, of float64 inputs
    in float64. Optimizers that decay weights decay alpha too, unless a parameter group of its own says otherwise.

    Args:
        in_features, out_features: sizes of a sample.
        density: fraction of S that is kept, drawn uniformly from torch's global generator.
        offset: which D.
        bias: whether there is a b, drawn as torch does.
        alpha, train_alpha: the factor of D at first, and whether it is trained.
        support: the active entries of S, instead of a density.
        seed: of a D that is drawn; by default one from torch's global generator.
        device, dtype: as for torch's layers.

    Raises:
        ConfigError: an argument cannot be, or an input does not fit.

    Source: DCTpS, Price and Tanner 2021, arXiv:2102.07655.

    >>> layer = OffsetLinear(400, 100, density=0.01)
    >>> layer(torch.zeros(2, 400)).shape, [name for name, _ in layer.named_parameters()]
    (torch.Size([2, 100]), ['alpha', 'sparse.values', 'sparse.bias'])
    """

    _features = 1
    _layers = (nn.Linear, SparseLinear, HybridLinear)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float | None = None,
        offset: Offset = DEFAULT,
        bias: bool = True,
        *,
        alpha: float = 1.0,
        train_alpha: bool = True,
        support: Support | None = None,
        seed: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_options(offset, alpha, train_alpha, seed)
        check_sizes(in_features=in_features, out_features=out_features)
        check_place(device, dtype)
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        layer = (
            nn.Linear(in_features, out_features, bias, **kind)
            if density is None and support is None
            else SparseLinear(in_features, out_features, density, bias, support=support, **kind)
        )
        self._assemble(layer, offset, alpha, train_alpha, seed)

    @property
    def in_features(self) -> int:
        """Size of an input."""
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        """Size of an output."""
        return self.weight_shape[0]

    def offset_weight(self) -> Tensor:
        """D, (out_features, in_features), float64: of the size of the dense weight."""
        return self.offset.matrix(self.out_features, self.in_features, seed_of(self.offset_seed))


class OffsetConv2d(OffsetLayer):
    """The convolution of that kind: (batch, in_channels, height, width) -> (batch, out_channels, \\*size').

    Arguments are those of `torch.nn.Conv2d`, with a ``density`` and an ``offset`` after the kernel size, and the others
    of `OffsetLinear`. D reads the patch at each position in the order kernel row, kernel column, channel, with the
    channel fastest (not the order of ``torch.nn.functional.unfold``), and is that of a linear layer from it to the
    outputs; with groups each output reads the channels of its group. Padding is with zeros only.

    Raises:
        ConfigError: an argument cannot be, or an input does not fit.

    >>> OffsetConv2d(16, 32, 3, density=0.01, stride=2, padding=1)(torch.zeros(2, 16, 10, 10)).shape
    torch.Size([2, 32, 5, 5])
    """

    _features = 3
    _layers = (nn.Conv2d, SparseConv2d, HybridConv2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        density: float | None = None,
        offset: Offset = DEFAULT,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        alpha: float = 1.0,
        train_alpha: bool = True,
        support: Support | None = None,
        seed: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_options(offset, alpha, train_alpha, seed)
        how: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
        how |= {"padding_mode": padding_mode, "dtype": dtype, "device": device}
        sizes: Any = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        if density is None and support is None:
            SparseConv2d(**sizes, density=1.0, **{**how, "device": "meta"})  # for what it refuses
            check_place(device, dtype)
            layer: nn.Module = nn.Conv2d(**sizes, **how)
        else:
            layer = SparseConv2d(**sizes, density=density, support=support, **how)
        self._assemble(layer, offset, alpha, train_alpha, seed)

    def offset_weight(self) -> Tensor:
        """D, (out_channels, in_channels / groups, height, width), float64: of the size of the dense weight."""
        return self.offset.kernel(convolution_shape(self.weight_shape, self._how()), seed_of(self.offset_seed))

    def _how(self) -> list[int]:
        layer: Any = self.sparse
        return [*layer.stride, *(before for before, _ in _pads(layer)), *layer.dilation, layer.groups]

    def _offset_of(self, x: Tensor, *, packed: bool) -> Tensor:
        """What "same" pads more behind than before is padded here."""
        down, right = (after - before for before, after in _pads(self.sparse))
        if down or right:
            x = functional.pad(x, [*[0, 0] * packed, 0, right, 0, down])
        return super()._offset_of(x, packed=packed)


def _pads(layer: Any) -> list[tuple[int, int]]:
    """Padding before and after, per axis; "same" puts what is odd behind, as torch does."""
    if layer.padding == "valid":
        return [(0, 0)] * 2
    if layer.padding == "same":
        spans = [gap * (taps - 1) for gap, taps in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(pad, pad) for pad in layer.padding]
