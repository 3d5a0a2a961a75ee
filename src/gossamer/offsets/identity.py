"""The offset that does nothing: what every other one has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_flag
from ..kernels.transforms import LinearMap
from ._maps import Transposed, along, per_entry
from ._registry import named
from .centre import CentreTap


@named
@dataclass(frozen=True)
class Identity(CentreTap):
    """D = I[:rows, :columns]: inputs beyond the last output are ignored, outputs beyond the last input are zero.

    wrap: read the longer side modulo the shorter instead: output o gets input o mod columns, or the sum of the inputs
        i with i mod rows = o, divided by the root of how many share an entry. Nothing is ignored and no output is dead.

    Of a convolution it is the centre tap. All singular values are 1; it mixes nothing, S has to do all of it.
    """

    name = "identity"
    summary = "the input itself, cropped or padded with zeros, or wrapped around"
    cost = "0"
    wrap: bool = False

    def __post_init__(self) -> None:
        """Check the argument."""
        check_flag("wrap", self.wrap)

    def multiplications(self, rows: int, columns: int) -> float:
        """None but the factors of a wrapped one."""
        return min(rows, columns) if self.wrap and rows != columns else 0

    def matrix(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """D in float64."""
        if not self.wrap:
            return torch.eye(rows, columns, dtype=torch.float64)
        short, long = sorted((rows, columns))
        wrapped = (torch.arange(short)[:, None] == torch.arange(long) % short) * _factors(short, long)[:, None]
        return wrapped if rows <= columns else wrapped.t().contiguous()

    def linear(self, rows: int, columns: int, seed: int = 0) -> LinearMap:
        """Copies."""
        if not self.wrap:
            return Crop(rows, columns)
        return Fold(rows, columns) if rows <= columns else Transposed(Fold(columns, rows))


class Crop:
    """Leading entries along an axis, zeros after them."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns, self.multiplications = rows, columns, 0

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D x."""
        return _cropped(x, axis, self.rows)

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D^T g."""
        return _cropped(g, axis, self.columns)


def _cropped(x: Tensor, axis: int, size: int) -> Tensor:
    if x.shape[axis] >= size:
        return x.narrow(axis, 0, size).clone(memory_format=torch.contiguous_format)
    return along(x, axis, 0, size)


class Fold:
    """Sums of the entries that are equal modulo `rows`, each over the root of how many they are; rows <= columns."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.factors = _factors(rows, columns)
        self.multiplications = rows if rows < columns else 0

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """D x."""
        axis %= x.ndim
        turns = -(-self.columns // self.rows)
        whole = along(x, axis, 0, turns * self.rows)
        y = whole.unflatten(axis, (turns, self.rows)).sum(axis)
        return y.mul_(per_entry(self.factors, y, axis))

    def transpose(self, g: Tensor, axis: int) -> Tensor:
        """D^T g."""
        axis %= g.ndim
        turns = -(-self.columns // self.rows)
        scaled = g * per_entry(self.factors, g, axis)
        return torch.cat([scaled] * turns, axis).narrow(axis, 0, self.columns).contiguous()


def _factors(short: int, long: int) -> Tensor:
    """1 / root of how many of `long` entries have each remainder modulo `short`."""
    return torch.bincount(torch.arange(long) % short).to(torch.float64).rsqrt()
