"""What an offset does to a signal: singular values of its matrix and of its convolution, energy in one output, cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..offsets import ConvolutionShape, Offset
from ..offsets.cost import convolution_multiplications, linear_multiplications

FREQUENCIES = 8  # per side: the figures of a 3 x 3 kernel hardly change with more
_MEAN, _VARIANCE = 1 / math.sqrt(2 * math.pi), 0.5 - 0.5 / math.pi  # of ReLU(N(0, 1))
_ROUNDING = 1e-9  # of the largest singular value


@dataclass(frozen=True)
class OperatorSpectrum:
    """Singular values of a convolution as an operator on images, at all spatial frequencies, without borders.

    max, min: the largest and the smallest. passed: the share above 0.1 max. effective_rank: mean over frequencies of
    (sum s^2)^2 / sum s^4, of min(inputs, outputs) at most (summed over groups). A linear layer has a single frequency.
    """

    max: float
    min: float
    passed: float
    effective_rank: float


@dataclass(frozen=True)
class OffsetSpectrum:
    """Figures of one offset for one shape of a layer.

    max, min, rank, frobenius: of the matrix D from inputs (of a convolution, from the patch of a group) to outputs;
        the number of singular values above 1e-9 max, and the root of the sum of their squares.
    operator: of the convolution as a whole.
    largest_output: share of the energy of all outputs that falls on the one with most, if the inputs are independent
        ReLU(N(0, 1)). It is 1 / pi for a square DCT, whose output 0 sums all inputs (about: + 1 / n of the rest).
    theoretical, executed: multiplications per sample, for a convolution per position of its output at stride 1: with
        the best transform known, and as the map here really does it.
    """

    max: float
    min: float
    rank: int
    frobenius: float
    operator: OperatorSpectrum
    largest_output: float
    theoretical: float
    executed: float


def offset_spectrum(offset: Offset, shape: tuple[int, ...], groups: int = 1, seed: int = 0) -> OffsetSpectrum:
    """Figures of an offset in a layer whose weight has that shape.

    shape: (outputs, inputs), or (outputs, inputs / groups, kernel height, kernel width). seed: of a seeded offset.
    Makes the matrix and, of a convolution, its singular values at 64 frequencies (more for kernels wider than 8): for
    channels in the hundreds.

    Raises:
        ConfigError: `shape` or `groups` is none of a layer.
    """
    check_shape(shape, groups)
    if len(shape) == 2:
        weight = (*shape, 1, 1)
        kernel = offset.matrix(*shape, seed).view(weight)
        theoretical = offset.multiplications(*shape)
        executed = linear_multiplications(offset.linear(*shape, seed))
    else:
        layer = ConvolutionShape(shape, groups=groups)  # type: ignore[arg-type]
        kernel, theoretical = offset.kernel(layer, seed), offset.kernel_multiplications(layer)
        executed = convolution_multiplications(offset.convolution(layer, seed), layer)
    values = torch.linalg.svdvals(kernel.reshape(groups, len(kernel) // groups, -1))
    largest = float(values.max())
    return OffsetSpectrum(
        max=largest,
        min=float(values.min()),
        rank=int((values > _ROUNDING * largest).sum()),
        frobenius=float(values.norm()),
        operator=operator_spectrum(kernel, groups),
        largest_output=_largest_output(kernel),
        theoretical=theoretical,
        executed=executed,
    )


def operator_spectrum(kernel: Tensor, groups: int = 1, frequencies: int = FREQUENCIES) -> OperatorSpectrum:
    """Singular values of the circular convolution with a kernel (outputs, inputs / groups, height, width), stride 1.

    At `frequencies` x `frequencies` spatial frequencies, or as many as the kernel has taps if that is more.
    """
    size = [max(frequencies, taps) if taps > 1 else 1 for taps in kernel.shape[2:]]  # one tap sees no frequency
    responses = torch.fft.fft2(kernel.to(torch.float64), s=size).permute(2, 3, 0, 1).flatten(0, 1)
    squares = torch.linalg.svdvals(responses.unflatten(1, (groups, -1))).flatten(1).square()
    fourth = squares.square().sum(1)
    live = fourth > 0  # a kernel may be blind to a frequency
    effective = torch.where(live, squares.sum(1).square() / fourth.where(live, fourth.new_ones(())), 0.0)
    largest = squares.max()
    return OperatorSpectrum(
        max=float(largest.sqrt()),
        min=float(squares.min().sqrt()),
        passed=float((squares > 0.01 * largest).double().mean()),
        effective_rank=float(effective.mean()),
    )


def check_shape(shape: tuple[int, ...], groups: int = 1) -> None:
    """Raise ConfigError unless a layer can have a weight of that shape."""
    if len(shape) not in (2, 4) or any(type(size) is not int or size < 1 for size in shape):
        raise ConfigError(
            f"shape {shape} is none of a layer; give outputs,inputs or outputs,inputs/groups,height,width"
        )
    if type(groups) is not int or groups < 1 or shape[0] % groups or (len(shape) == 2 and groups > 1):
        raise ConfigError(f"groups={groups} with a weight of shape {shape}: groups divide the outputs of a convolution")


def _largest_output(kernel: Tensor) -> float:
    rows = kernel.flatten(1)
    energy = _VARIANCE * rows.square().sum(1) + (_MEAN * rows.sum(1)).square()
    return float(energy.max() / energy.sum())
