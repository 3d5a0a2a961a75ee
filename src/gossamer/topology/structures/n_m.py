"""N of every M: groups along the inputs, along the outputs, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError, check_choice
from ...kernels import n_m as kernel
from ...kernels.patterns import best_patterns
from ..selection import check_no_nan, comparable
from .assignment import best_assignments, upper_bounds
from .base import one_weight, top_of_rows

Axis = Literal["inputs", "outputs"]


@dataclass(frozen=True)
class NM:
    """N of every M consecutive inputs of each output, at the same kernel position: 2:4 and its like.

    A weight is (out, in, *kernel), linear or convolution. No group crosses a row or a kernel position. The density is
    N/M in every weight; a dimension that M does not divide is refused.

    Args:
        n: N, how many of a group are active.
        m: M, how many form a group.
        transposable: N of every M along inputs *and* outputs ("2D"), so that the product of the forward pass and that
            of the input's gradient can both use it: the largest sum of scores over every tile of M x M inputs and
            outputs. For 2:4 it is the exact optimum over the 90 patterns, to the bit as `transposable` says; for
            others that of `assignment`, about a million weights a second and CPU core: re-choose it now and then.
        axis: along which groups run. "inputs" suits the forward product y = W x, "outputs" that of the input's
            gradient, W^T dy (for a convolution M consecutive filters, at the same input channel and kernel position).

    Source: Zhou et al. 2021 (2102.04010); the layout of Mishra et al. 2021 (2104.08378); transposable: Stosic and
    Stosic 2021 (2105.12920), appendix E.2, Hubara et al. 2021 (2102.08124).

    >>> NM(1, 2).select([torch.tensor([[3.0, -1.0, 0.5, 2.0]])], 2)
    [tensor([[ True, False, False,  True]])]
    """

    n: int
    m: int
    transposable: bool = False
    axis: Axis = "inputs"
    single = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not (type(self.n) is int and type(self.m) is int and 1 <= self.n <= self.m):
            raise ConfigError(f"NM({self.n!r}, {self.m!r}): expected whole numbers 1 <= n <= m, e.g. NM(2, 4)")
        if not isinstance(self.transposable, bool):
            raise ConfigError(f"transposable = {self.transposable!r}: expected True or False")
        check_choice("axis", self.axis, ("inputs", "outputs"))
        if self.transposable and self.axis != "inputs":
            raise ConfigError(
                f"NM({self.n}, {self.m}, transposable=True) holds along both axes; leave axis={self.axis!r} out"
            )

    @property
    def name(self) -> str:
        """As ``2:4``, ``2:4 transposable`` or ``2:4 along outputs``."""
        told = " transposable" if self.transposable else " along outputs" if self.axis == "outputs" else ""
        return f"{self.n}:{self.m}{told}"

    def round(self, count: int, shape: Sequence[int]) -> int:
        """Return N/M of the weight.

        Raises:
            ConfigError: a dimension does not divide into groups of M, or ``count`` asks for another density.
        """
        if self.misfit(shape):
            raise ConfigError(
                f"{self.name} does not fit a weight of shape {tuple(shape)}: {self.misfit(shape)}; leave such weights "
                "out with targets"
            )
        exact = math.prod(shape) * self.n // self.m
        if abs(count - exact) > 1:
            raise ConfigError(
                f"{self.name} keeps {self.n / self.m:.4g} of every weight, {exact} of shape {tuple(shape)}, but "
                f"density and allocation ask for {count}; use density={self.n / self.m:.4g} and allocation='uniform'"
            )
        return exact

    def misfit(self, shape: Sequence[int], groups: int = 1) -> str:
        """Return why a weight of ``shape`` cannot have this structure, or ''.

        groups: of a grouped convolution, whose products run over the filters of one group.
        """
        if len(shape) < 2:
            return "it has no inputs and outputs"
        for axis in self._axes:
            size, each = shape[_DIMENSION[axis]], groups if axis == "outputs" else 1
            if size // each % self.m:
                told = f"{axis[:-1]} dimension {size}" if each == 1 else f"{size // each} outputs of each group"
                return f"{self.m} does not divide its {told}"
        return ""

    def select(self, scores: Sequence[Tensor], count: int, active: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the mask of the best N in every group; ``count`` must be N/M of the weight.

        Of a transposable structure: of the best pattern in every tile. Equally good is what is active, then what comes
        first.
        """
        score = one_weight(self.name, scores)
        if count != self.round(count, score.shape):
            raise ConfigError(f"{self.name} cannot select {count} entries from shape {tuple(score.shape)}")
        known = None if active is None else active[0]
        mask = self.at_once(score.detach(), known)
        return [self._select(score, known) if mask is None else mask]

    def at_once(
        self, scores: Tensor, active: Tensor | None, *, magnitudes: bool = False, view: Tensor | None = None
    ) -> Tensor | None:
        """Return what `select` does from one native pass, or None where there is none: see `kernels.n_m`."""
        if self.m != kernel.GROUP or (self.transposable and self.n != 2):
            return None
        along = "both" if self.transposable else self.axis
        return kernel.best_patterns(scores, self.n, along, active, magnitudes=magnitudes, view=view)

    def _select(self, score: Tensor, known: Tensor | None) -> Tensor:
        flat = comparable([score])
        check_no_nan(flat)
        values = flat[0].view(score.shape)
        if self.transposable:
            return self._select_tiles(values, known)
        groups = groups_of(values, self.m, self.axis)
        nothing = torch.zeros_like(groups, dtype=torch.bool)
        chosen = top_of_rows(groups, self.n, nothing if known is None else groups_of(known, self.m, self.axis))
        return _ungrouped(chosen, score.shape, self.axis)

    def is_valid(self, mask: Tensor) -> bool:
        """Whether every group has N entries; of a transposable structure along both axes."""
        return not self.misfit(mask.shape) and all(
            bool((groups_of(mask, self.m, axis).sum(1) == self.n).all()) for axis in self._axes
        )

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return ("inputs", "outputs") if self.transposable else (self.axis,)

    def _select_tiles(self, values: Tensor, active: Tensor | None) -> Tensor:
        tiles, known = tiles_of(values, self.m), None if active is None else tiles_of(active, self.m)
        if (self.n, self.m) == (2, 4):
            return untiled(best_patterns(tiles, known), values.shape)
        return untiled(best_assignments(tiles, self.n, known), values.shape)


def transposable_gap(structure: NM, scores: Tensor, mask: Tensor) -> float:
    """Return by what share the best transposable mask may exceed this one: (bound - kept) / bound, 0 for the best.

    The bound is a proven one, see `assignment`: no mask of the structure keeps a larger sum of scores, which are finite
    and not negative. For masks that were found another way, or some steps ago.

    Raises:
        ConfigError: the structure is not transposable, the mask has not got it, or a score is negative or not finite.

    >>> scores = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    >>> transposable_gap(NM(1, 2, transposable=True), scores, torch.tensor([[False, True], [True, False]]))
    0.6
    """
    if not structure.transposable or mask.shape != scores.shape or not structure.is_valid(mask):
        raise ConfigError(
            f"the gap of a mask of shape {tuple(mask.shape)} for scores of shape {tuple(scores.shape)}: it must have a "
            f"transposable structure, given is {structure.name}"
        )
    if not bool((scores.isfinite() & (scores >= 0)).all()):
        raise ConfigError("the gap is a share of a sum: scores must be finite and not negative, such as magnitudes")
    tiles, chosen = tiles_of(scores.detach(), structure.m), tiles_of(mask, structure.m)
    bound = float(upper_bounds(tiles, chosen, structure.n).sum())
    kept = float(tiles.double().where(chosen, 0.0).sum())
    return max(0.0, bound - kept) / bound if bound else 0.0


_DIMENSION = {"outputs": 0, "inputs": 1}


def groups_of(values: Tensor, m: int, axis: Axis = "inputs") -> Tensor:
    """(out, in, *kernel) -> (groups, M): consecutive inputs, or outputs, with everything else the same."""
    by_position = values.reshape(*values.shape[:2], math.prod(values.shape[2:]))
    order = (0, 2, 1) if axis == "inputs" else (1, 2, 0)
    return by_position.permute(order).reshape(values.numel() // m, m)


def _ungrouped(groups: Tensor, shape: Sequence[int], axis: Axis) -> Tensor:
    out, inputs, positions = shape[0], shape[1], math.prod(shape[2:])
    if axis == "inputs":
        return groups.view(out, positions, inputs).transpose(1, 2).reshape(shape).contiguous()
    return groups.view(inputs, positions, out).permute(2, 0, 1).reshape(shape).contiguous()


def tiles_of(values: Tensor, m: int) -> Tensor:
    """(out, in, *kernel) -> (tiles, M outputs, M inputs), each at one kernel position."""
    out, inputs = values.shape[:2]
    parts = values.reshape(out // m, m, inputs // m, m, math.prod(values.shape[2:]))
    return parts.permute(0, 2, 4, 1, 3).reshape(values.numel() // m**2, m, m)


def untiled(tiles: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse of `tiles_of`."""
    m, (out, inputs) = tiles.shape[-1], shape[:2]
    parts = tiles.view(out // m, inputs // m, math.prod(shape[2:]), m, m)
    return parts.permute(0, 3, 1, 4, 2).reshape(tuple(shape)).contiguous()
