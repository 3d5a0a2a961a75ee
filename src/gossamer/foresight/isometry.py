"""Layer-wise isometry of sparse weights: how far from it they are, and moving the kept weights towards it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from .. import distributed
from ..errors import ConfigError, DivergedError, check_flag, check_number, did_you_mean
from ..targets import CONVOLUTION, RECURRENT, Candidate, choose
from ..topology import Support

WINDOW = 100  # steps over which the best objective must still fall
RATES = (1e-12, 100.0)  # that can lead anywhere
SETTLED = 1e-5  # by at least this part of itself


@dataclass(frozen=True)
class Isometry:
    """How far a weight, as one or several matrices W, is from an isometry.

    gap: Frobenius norm of W W^T - I or W^T W - I, whichever is smaller in size; summed over the matrices.
    mean_square: mean of the squared singular values, min(rows, columns) per matrix; 1 for an isometry.
    matrices: (number, rows, columns).
    """

    gap: float
    mean_square: float
    matrices: tuple[int, int, int]


@dataclass(frozen=True)
class Enforced:
    """What `approximate_isometry` did to one weight.

    before, after: the gap as in `Isometry`; with `squared`, the root of the sum of squares over its matrices.
    steps: that were taken.
    settled: whether it stopped by itself, since 100 more steps lowered the gap by less than 1e-5 of it. False: the
        steps ran out. Settled is not isometric: a support may forbid isometry, and descent on a support has local
        minima, with a singular value of 0 and a gap of 1; `after` says how far it got.
    """

    before: float
    after: float
    steps: int
    settled: bool


def measure_isometry(weight: Tensor, support: Support | Tensor | None = None, *, parts: int = 1) -> Isometry:
    """Measure how far the weights alone are from an isometry, without any input.

    The matrix is the weight flattened to (shape[0], rest), as a linear map on one patch of the input: padding, stride
    and the overlap of patches are not in it (`gossamer.analysis.layerwise` measures these).

    weight: (out, in, *kernel) or (out, in), any floating type.
    support: a `Support` or boolean mask; entries off it count as zero.
    parts: number of matrices that lie under each other: groups of a convolution, 3 for packed query, key and value.

    Source: Lee et al. 2020 (1906.06307), layer-wise dynamical isometry.

    Raises:
        ConfigError: fewer than two dimensions, not floating point, or `parts` or `support` do not fit.
        DivergedError: the weight is not finite.

    >>> measure_isometry(2 * torch.eye(3))
    Isometry(gap=5.196152422706632, mean_square=4.0, matrices=(1, 3, 3))
    """
    if not isinstance(weight, Tensor):
        raise ConfigError(f"weight is {type(weight).__name__}; expected a tensor, (out, in, ...)")
    if weight.ndim < 2 or not weight.is_floating_point() or not weight.numel():
        raise ConfigError(
            f"a weight of shape {tuple(weight.shape)} and type {weight.dtype} is no real matrix; pass (out, in, ...)"
        )
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1 or weight.shape[0] % parts:
        raise ConfigError(
            f"parts={parts!r}: the {weight.shape[0]} rows of the weight must divide into so many matrices"
        )
    kept = weight.detach()
    if support is not None:
        kept = kept * _mask("the weight", weight, support)
    if not bool(torch.isfinite(kept).all()):
        raise DivergedError("the weight is not finite, so it has no distance from an isometry")
    matrices = _matrices(kept.double(), parts)
    number, rows, columns = matrices.shape
    mean_square = float(matrices.square().sum()) / (number * min(rows, columns))
    return Isometry(float(_gaps(matrices)[1].sum()), mean_square, (number, rows, columns))


def _matrices(weight: Tensor, parts: int) -> Tensor:
    return weight.reshape(parts, weight.shape[0] // parts, -1)


def _gaps(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """E, the smaller Gram matrix minus the identity, and its norm per matrix."""
    rows, columns = matrices.shape[1:]
    gram = matrices @ matrices.mT if rows <= columns else matrices.mT @ matrices
    error = gram - torch.eye(min(rows, columns), dtype=gram.dtype, device=gram.device)
    return error, error.norm(dim=(1, 2))


def gap_gradient(matrices: Tensor, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Gap of each matrix, or its square, and the gradient: 2 E W / gap, or 4 E W; 0 where the gap is 0.

    matrices: (number, rows, columns). Returns (number,) and (number, rows, columns). For more rows than columns, E is
    of the columns and stands behind W.
    """
    error, gap = _gaps(matrices)
    rows, columns = matrices.shape[1:]
    product = error @ matrices if rows <= columns else matrices @ error
    if squared:
        return gap.square(), 4 * product
    return gap, 2 * product / torch.where(gap > 0, gap, 1.0)[:, None, None]


@torch.no_grad()
def approximate_isometry(
    model: nn.Module,
    supports: Mapping[str, Support | Tensor],
    *,
    steps: int = 10_000,
    lr: float = 0.1,
    squared: bool = False,
) -> dict[str, Enforced]:
    """Move the kept weights towards layer-wise isometry, without data: minimise sum_l ||(C_l W_l)^T (C_l W_l) - I||_F.

    Gradient descent on the weights of `supports`, each for itself; the supports stay, and weights off them are set to
    exactly zero. Written into the parameters in place, once all have been computed. Call it after the supports are
    chosen and before training; for methods whose inactive weights keep a value (live), before `sparsify`, which takes
    the parameters as they are then. Deterministic.

    supports: weight name -> support C_l (or boolean mask), such as `sparsifier.supports`; other weights stay as they
        are.
    steps, lr: at most so many steps of gradient descent of this rate, which is above 0 and at most 100.
    squared: minimise the squared norm. The norm itself (published) has a gradient of constant size near its minimum,
        so a constant rate circles there at a distance of about lr; the square does not, but is unstable at large
        weights: steps that would raise it are refused and halve the rate of that weight.

    Source: Lee et al. 2020 (1906.06307). Deviations: the identity is that of the smaller Gram matrix (with more outputs
    than inputs, the published objective cannot reach 0); groups of a convolution, gates of a recurrent weight and
    packed query, key and value are matrices of their own; the best weights of all steps are kept, so what is
    minimised never rises; a weight for which it no longer falls stops early.

    Raises:
        ConfigError: no supports, an unknown name, a weight that is sharded or no real matrix, another shape, or an
            argument out of range.
        DivergedError: a weight is not finite, at first or after a step. Nothing is changed then.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps={steps!r}: expected a whole number from 1 on")
    check_number("lr", lr, "the rate of gradient descent", *RATES)
    check_flag("squared", squared)
    results, values = {}, {}
    for name, (row, mask) in _rows(model, supports).items():
        start = row.parameter.detach()
        wide = torch.promote_types(start.dtype, torch.float32)
        parts = _parts(row)
        best, results[name] = _descend(
            name, _matrices(start.to(wide) * mask, parts), _matrices(mask, parts), steps, lr, squared
        )
        values[name] = (row.parameter, best.view(start.shape))
    for parameter, value in values.values():
        parameter.copy_(value)
    return results


def _descend(name: str, weight: Tensor, mask: Tensor, steps: int, lr: float, squared: bool) -> tuple[Tensor, Enforced]:
    """The best weights found, and what happened."""
    start, gradient = _evaluate(name, weight, squared)
    best, lowest, earlier, rate = weight, start, start, lr
    taken, settled = 0, start == 0.0
    while taken < steps and not settled:
        moved = torch.where(mask, weight - rate * gradient, 0.0)
        now, ahead = _evaluate(name, moved, squared, refuse=not squared)
        taken += 1
        if squared and not now <= lowest:
            rate /= 2
        else:
            weight, gradient = moved, ahead
        if now < lowest:
            best, lowest = moved, now
        if taken % WINDOW == 0:
            settled, earlier = earlier - lowest <= SETTLED * earlier, lowest
        settled = settled or lowest == 0.0
    before, after = (math.sqrt(value) if squared else value for value in (start, lowest))
    return best, Enforced(before, after, taken, settled)


def _evaluate(name: str, weight: Tensor, squared: bool, refuse: bool = True) -> tuple[float, Tensor]:
    """The objective of all matrices together, and its gradient."""
    terms, gradient = gap_gradient(weight, squared=squared)
    total = float(terms.sum())
    if refuse and not math.isfinite(total):
        raise DivergedError(
            f"{name} is not finite or its isometry diverged; start from finite weights, with a lower lr"
        )
    return total, gradient


@torch.no_grad()
def rescale_fan_in(model: nn.Module, supports: Mapping[str, Support | Tensor]) -> dict[str, int]:
    """Multiply the kept weights of each output unit by sqrt(fan_in / kept weights of the unit), in place.

    A dense initialisation whose variance is c / fan_in becomes one of c / (kept weights of the unit), so that a sparse
    layer passes on what the dense one did. Calling it twice scales twice. Weights off the supports are set to zero;
    units without weights stay. When to call it: as `approximate_isometry`.

    supports: weight name -> support or boolean mask, such as `sparsifier.supports`. Returns weight name -> units
        without any weight.

    Source: Evci et al. 2022 (2010.03533), who draw from N(0, 2 / kept weights of the unit); this scales what was drawn.

    Raises:
        ConfigError: as `approximate_isometry`.
    """
    empty = {}
    for name, (row, mask) in _rows(model, supports).items():
        shape, over = _unit_view(row)
        mask = mask.reshape(shape)
        counts = mask.sum(over, keepdim=True)
        fan_in = math.prod(shape[dim] for dim in over)
        scale = (fan_in / counts.clamp(min=1)).sqrt() * mask
        row.parameter.mul_(scale.view(row.parameter.shape).to(row.parameter.dtype))
        empty[name] = int((counts == 0).sum())
    return empty


def _rows(model: nn.Module, supports: Mapping[str, Support | Tensor]) -> dict[str, tuple[Candidate, Tensor]]:
    """The weight and the mask of each support, after checking that the weight can be changed."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(supports, Mapping):
        raise ConfigError(f"supports is {type(supports).__name__}; pass weight name -> Support")
    if not supports:
        raise ConfigError("supports is empty; pass weight name -> Support, such as sparsifier.supports")
    distributed.refuse(model)
    rows, found = {row.name: row for row in choose(model, "*")}, {}
    for name, support in supports.items():
        if name not in rows:
            raise ConfigError(f"the model has no weight {name!r}{did_you_mean(str(name), rows)}")
        row, weight = rows[name], rows[name].parameter
        if not row.sparse:
            raise ConfigError(f"{name} cannot be sparse: {row.reason.removeprefix('named in targets, but ')}")
        if distributed.is_sharded(weight):
            raise ConfigError(
                f"{name} is sharded (FSDP2), its Gram matrix is not on one rank; call this before sharding"
            )
        found[name] = row, _mask(name, weight, support)
    return found


def _mask(name: str, weight: Tensor, support: Support | Tensor) -> Tensor:
    """The mask of a support of `weight`, where the weight lies."""
    if not isinstance(support, Support):
        if not isinstance(support, Tensor) or support.dtype != torch.bool:
            kind = support.dtype if isinstance(support, Tensor) else type(support).__name__
            raise ConfigError(f"the support of {name} is {kind}; expected a Support or a boolean mask")
        support = Support.from_mask(support)
    if support.shape != weight.shape:
        raise ConfigError(f"the support of {name} has shape {tuple(support.shape)}, the weight {tuple(weight.shape)}")
    return support.mask.to(weight.device)


def _parts(row: Candidate) -> int:
    """Matrices that lie under each other in a weight."""
    module = row.module
    if isinstance(module, CONVOLUTION):
        return module.groups
    if isinstance(module, nn.MultiheadAttention) and row.attribute == "in_proj_weight":
        return 3
    if isinstance(module, RECURRENT) and row.attribute.startswith(("weight_ih", "weight_hh")):
        return row.parameter.shape[0] // int(module.hidden_size)
    return 1


def _unit_view(row: Candidate) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """A shape (groups, rows, columns, kernel) of the weight, and the two dimensions that are one unit's fan-in."""
    weight, module = row.parameter, row.module
    outputs_second = isinstance(module, _ConvTransposeNd)
    groups = module.groups if isinstance(module, _ConvTransposeNd) else 1
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2's transposed linear layer
        outputs_second = True
    shape = (groups, weight.shape[0] // groups, weight.shape[1], math.prod(weight.shape[2:]))
    return shape, (1, 3) if outputs_second else (2, 3)
