"""Convolutions by rows of the discrete cosine transform, without unfolding the image and without holding their kernel.

Entry i = tap * C + c of a patch of C channels meets row o of the transform of length q as

    cos(pi o (2i + 1) / 2q) = cos(A + B) = cos A cos B - sin A sin B,
    A = pi o C (2 tap + 1) / 2q,    B = pi o (2c + 1 - C) / 2q,

so an output is what one filter, of the taps, makes of the channels' products with cos B, less what another one makes of
those with sin B. With B counted from the middle of the channels these two are an even and an odd function of them. Of
few outputs, o << q, they are slow waves besides: of C channels only about C (outputs) / q + 15 waves are independent
(Slepian 1978), and a singular value decomposition finds them. What remains of a 3 x 3 convolution of 256 channels are
20 times fewer multiplications, of one of 64 channels 10 times fewer.

Signs that differ from tap to tap and from channel to channel need waves for each tap: 2.6 times fewer multiplications
remain for 256 channels, and 1.6 times for 64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels import sparse
from ..kernels.cpu.library import native
from ..kernels.taps import Taps
from ..kernels.transforms import LinearMap
from .base import ConvolutionMap, ConvolutionShape, Direct

TOLERANCE = 1e-9  # of the largest singular value: what is left out of the waves
GAIN = 2.0  # multiplications saved on plain images that pay for packing them
PACKED_GAIN = 0.5  # and on packed ones, which torch would have to unpack


class Factored:
    """A convolution map that mixes channels first, and then does what `Taps` do.

    Where that saves too little, or there are no native kernels for the numbers, the kernel is made for the call and the
    work left to torch: by multiplications saved, counting the lanes that a small batch leaves empty.

    mixer: (groups, channels of z of each, inputs of each), or None where z is the image itself. multiplications: of the
    factors, per position of the output at stride 1. gain: how many times more the kernel takes, at the stride.
    """

    def __init__(self, shape: ConvolutionShape, mixer: Tensor | None, taps: Taps) -> None:
        self.shape, self.mixer, self.taps = shape, mixer, taps
        outputs, inputs, *_ = shape.weight
        mixing = 0 if mixer is None else taps.mix[0].numel() * (inputs * shape.groups + outputs)
        filtering = int(taps.filters.count_nonzero())
        self.multiplications = mixing + filtering
        self.gain = math.prod(shape.weight) / (mixing * math.prod(shape.stride) + filtering)

    def apply(self, x: Tensor) -> Tensor:
        """Convolve."""
        if self._left_to_torch(x):
            return self._direct(x).apply(x)
        return self.taps.apply(x if self.mixer is None else _mixed(self.mixer.to(x.dtype), x))

    def transpose(self, g: Tensor, size: torch.Size) -> Tensor:
        """Gradient of the input."""
        if self._left_to_torch(g):
            return self._direct(g).transpose(g, size)
        dz = self.taps.transpose(g, size[2:4])
        return dz if self.mixer is None else _mixed(self.mixer.to(g.dtype).mT, dz)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """(outputs, inputs of a group, kernel height, kernel width)."""
        outputs, parts, rank = self.taps.mix.shape
        planes = self.taps.mix.to(dtype)
        if self.mixer is not None:
            grouped = planes.view(self.shape.groups, -1, parts, rank).transpose(1, 2)
            waves = self.mixer.to(dtype).view(self.shape.groups, parts, rank, -1)
            planes = (grouped @ waves).transpose(1, 2).reshape(outputs, parts, -1)
        made = planes.mT @ self.taps.filters.to(dtype).flatten(2)
        return made.view(self.shape.weight)

    def _left_to_torch(self, x: Tensor) -> bool:
        if x.dtype != torch.float32 or native() is None:
            return True
        if x.ndim == 5:
            return self.gain < PACKED_GAIN
        used = len(x) / max(1, -(-len(x) // sparse.LANES) * sparse.LANES)
        return self.gain * used < GAIN

    def _direct(self, x: Tensor) -> Direct:
        return Direct(self.kernel(torch.promote_types(x.dtype, torch.float32)), self.shape)


def _mixed(mixer: Tensor, x: Tensor) -> Tensor:
    """Each group's channels times its matrix; of packed and of plain images."""
    groups, rows, columns = mixer.shape
    grouped = x.reshape(len(x), groups, columns, math.prod(x.shape[2:]))
    return (mixer @ grouped).view(len(x), groups * rows, *x.shape[2:])


class Pointwise:
    """A convolution map with one tap: a linear map along the channels, at the positions that the stride keeps."""

    def __init__(self, across: LinearMap, stride: tuple[int, int]) -> None:
        self.across, self.stride = across, stride
        self.multiplications = getattr(across, "multiplications", across.rows * across.columns)

    def apply(self, x: Tensor) -> Tensor:
        """Convolve."""
        down, right = self.stride
        return self.across.apply(x if down == right == 1 else x[:, :, ::down, ::right].contiguous(), 1)

    def transpose(self, g: Tensor, size: torch.Size) -> Tensor:
        """Gradient of the input."""
        kept, (down, right) = self.across.transpose(g, 1), self.stride
        if down == right == 1:
            return kept
        whole = g.new_zeros(size)
        whole[:, :, ::down, ::right] = kept
        return whole


def cosine_convolution(
    shape: ConvolutionShape, rows: Tensor, length: int, scale: Tensor, signs: Tensor | None = None
) -> ConvolutionMap:
    """The map whose output o has the kernel scale[o] signs[i] cos(pi rows[o] (2i + 1) / (2 length)), i along the patch.

    shape: of the convolution; its patches are read as `Offset.kernel` says, channel fastest. rows: (outputs,), whole
    numbers. scale: (outputs,). signs: of +-1, (taps, inputs of a group), or (groups, taps, inputs) of their own for
    each group. Signs that are products of one of the tap and one of the channel cost nothing.
    """
    outputs, inputs, height, width = shape.weight
    count, groups = height * width, shape.groups
    given = torch.ones(1) if signs is None else signs
    given = given.double().expand(groups, count, inputs)
    filters = _turns(rows[:, None] * (inputs * (2 * torch.arange(count) + 1)), length)
    waves, mix = _waves(rows.view(groups, -1, 1) * (2 * torch.arange(inputs) + 1 - inputs), length)
    by_tap = given * given[:, :1]
    if torch.equal(by_tap, by_tap[..., :1].expand_as(by_tap)):
        filters = filters * by_tap[..., 0].repeat_interleave(outputs // groups, 0)[:, None]
        mixer = (waves * given[:, None, :1]).flatten(1, 2)
    else:
        mixer = (waves[:, None] * given[:, :, None, None]).flatten(1, 3)
        mix = (filters.mT[..., None] * mix[:, None]).flatten(2)
        filters = torch.eye(count, dtype=torch.float64).expand(outputs, count, count)
    filters = (scale.double()[:, None, None] * filters).view(outputs, -1, height, width)
    place = (groups, shape.stride, shape.padding, shape.dilation)
    if inputs == 1:  # of a single channel the sine is 0, and its cosine 1
        signed = mix[:, :1] * mixer[:, :1].repeat_interleave(outputs // groups, 0)
        return Factored(shape, None, Taps(torch.ones_like(signed), filters[:, :1] * signed[..., None], *place))
    return Factored(shape, mixer, Taps(mix, filters, *place))


def _turns(turn: Tensor, length: int) -> Tensor:
    """(..., 2, n): the cosine and minus the sine of pi turn / (2 length), turn (..., n) being whole numbers."""
    both = torch.stack([turn, turn + length], -2)
    return torch.cos(math.pi / (2 * length) * torch.remainder(both, 4 * length).double())


def _waves(turn: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(groups, 2, rank, inputs) and (outputs, 2, rank), of cosine and sine; turn: (groups, outputs, inputs)."""
    kinds = _turns(turn, length) * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    left, values, right = torch.linalg.svd(kinds.transpose(1, 2), full_matrices=False)
    rank = int((values > TOLERANCE * values.amax(-1, keepdim=True)).sum(-1).max())
    mix = (left * values[..., None, :])[..., :rank]
    return right[..., :rank, :], mix.transpose(1, 2).flatten(0, 1)
