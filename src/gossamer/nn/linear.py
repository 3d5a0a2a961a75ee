"""A linear layer that holds and computes its active weights only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels import sparse
from ..topology import Support
from ._checks import check_input, check_sizes, check_tensor
from ._forms import check_module, check_place, check_support, refuse_tracers
from ._moves import Pass
from .weight import Beside, FanIn, SparseWeight


class SparseLinear(SparseWeight):
    """y = x W^T + b with a sparse W, in time and memory of its active entries.

    Takes (..., in_features), gives (..., out_features), as `torch.nn.Linear`. Computes in float32, or in float64 if its
    values are; bfloat16 and float16 values are converted for each product. Under autocast the output is float32.

    Deviations from the dense layer: inactive entries do not exist, so NaN or infinity in an input reaches only the
    outputs that are connected to it. The initialisation scales with the active fan-in (``fan_in="live"``).

    Args:
        in_features, out_features: sizes of a sample.
        density: fraction of W that is kept, ``count = round(density * in_features * out_features)``, drawn uniformly
            from torch's global generator.
        bias: whether there is a b.
        support: the active entries, instead of a density.
        fan_in: "live" or "dense", see `reset_parameters`.
        device, dtype: as for torch's layers.

    Raises:
        ConfigError: an argument cannot be, or an input does not fit.

    >>> layer = SparseLinear(400, 100, density=0.05)
    >>> layer, layer(torch.zeros(2, 400)).shape
    (SparseLinear(in_features=400, out_features=100, count=2000, density=0.05, bias=True), torch.Size([2, 100]))
    """

    _features = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float | None = None,
        bias: bool = True,
        *,
        support: Support | None = None,
        fan_in: FanIn = "live",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        check_place(device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self._new((out_features, in_features), density, support, bias, fan_in, device, dtype)

    @classmethod
    def from_dense(cls, module: nn.Linear, support: Support | Tensor) -> Self:
        """Take over the active weights and the bias (the same Parameter) of a dense layer. Draws no random numbers.

        support: a Support or a bool mask of its weight.

        Raises:
            ConfigError: the module is of another class, or the support of another shape.
        """
        check_module(cls, module, nn.Linear)
        weight = module.weight
        check_support(support, weight.shape)
        support = support if isinstance(support, Support) else Support.from_mask(support)
        layer = cls._shaped(weight.shape, support, module.bias, device=weight.device, dtype=weight.dtype)
        layer._take_over(module)
        return layer

    def dense_module(self) -> nn.Linear:
        """Return the layer as a dense one, with zeros; the bias is the same Parameter."""
        return self._give_back(nn.Linear(self.in_features, self.out_features, bias=False, device="meta"))

    @classmethod
    def _shaped(cls, shape: torch.Size, support: Support, bias: Tensor | None, **options: Any) -> Self:
        if len(shape) != 2:
            raise ConfigError(f"the weight of a linear layer has 2 dimensions, got shape {tuple(shape)}")
        check_place(options.get("device"), options.get("dtype"))
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.out_features, layer.in_features = shape
        layer._given(shape, support, bias, **options)
        return layer

    def forward(self, x: Tensor, beside: Beside | None = None) -> Tensor:
        """(..., in_features) -> (..., out_features).

        beside: of the packed input, adds what it returns to the packed output.
        """
        refuse_tracers(x)
        check_tensor(x)
        fits = x.ndim > 0 and x.shape[-1] == self.in_features
        check_input(x, self.values, fits, f"(..., {self.in_features})")
        return self._run(x, beside)

    def _agrees(self) -> bool:
        return self.weight_shape == (self.out_features, self.in_features)

    def _product(self, packed: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return sparse.linear(packed, values, self.index, bias, self.out_features)

    @torch.no_grad()
    def dense_gradient(self, rows: slice, captured: Iterable[Pass]) -> Tensor:
        """Gradient of the dense weight's ``rows``, (rows, columns), of what `capture` holds; summed over its items."""
        total: Tensor | None = None
        for x, slope in (each.features for each in captured):
            total = slope[rows] @ x.t() if total is None else total.addmm_(slope[rows], x.t())
        return self.values.new_zeros(self.weight_shape)[rows] if total is None else total

    @torch.no_grad()
    def gradient_factors(self, captured: Iterable[Pass]) -> tuple[Tensor, Tensor]:
        """Return (rows, samples) and (columns, samples) whose product is the gradient of the dense weight."""
        inputs, slopes = zip(*(each.features for each in captured), strict=True)
        left, right = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in (slopes, inputs))
        return left, right

    def _sizes(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
