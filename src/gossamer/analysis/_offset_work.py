"""What an offset D costs: multiplications of D x and of D^T g, by a fast transform and as executed."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from ..kernels.cpu.library import native
from ..nn.layer_shape import LayerShape
from ..offsets import ConvolutionShape, Offset
from ..offsets.convolution import GAIN, PACKED_GAIN, Factored
from ..offsets.cost import convolution_multiplications, linear_multiplications

REAL_FFT = 1.25  # what offsets charge for each q log2 q of a fast transform


@dataclass(frozen=True)
class OffsetWork:
    """Multiplications of D at one output position; D^T takes as many.

    theory: of a fast transform of each patch, or of the dense product where that is less. executed: of the map that the
    layer runs. backward: whether D^T g is computed in the first layer too, for the gradient of alpha.
    """

    theory: float
    executed: float
    backward: bool = True


def offset_work(
    offset: Offset, shape: LayerShape, *, packed: bool = False, alpha: bool = True, factor: float = REAL_FFT
) -> OffsetWork:
    """What an offset costs in a layer of that shape.

    packed: whether activations are, as beside a sparse layer. alpha: whether it is trained. factor: c_T,
    multiplications for each q log2 q of a transform.
    """
    executed = _executed(offset, replace(shape, batch=1, inner=True), packed)
    return OffsetWork(by_transform(offset, shape, factor), executed, alpha)


def by_transform(offset: Offset, shape: LayerShape, factor: float = REAL_FFT) -> float:
    """Multiplications of a fast transform of the patch at a position, or of the dense product where that is less."""
    if shape.kind == "linear":
        fast = offset.multiplications(*shape.weight)
    else:
        fast = offset.kernel_multiplications(_convolution(shape))
    return min(factor / REAL_FFT * fast, shape.numel)


@functools.lru_cache(maxsize=1024)
def _executed(offset: Offset, shape: LayerShape, packed: bool) -> float:
    """Those of the map that the offset makes for the shape; maps that hold a dense matrix are not made to find out."""
    made = type(offset).linear if shape.kind == "linear" else type(offset).convolution
    if made in (Offset.linear, Offset.convolution):
        return shape.numel
    if shape.kind == "linear":
        return linear_multiplications(offset.linear(*shape.weight))
    geometry = _convolution(shape)
    convolution = offset.convolution(geometry)
    if isinstance(convolution, Factored):  # whose channels are mixed at every position of the input
        left_to_torch = native() is None or convolution.gain < (PACKED_GAIN if packed else GAIN)
        return shape.numel / (1 if left_to_torch else convolution.gain)
    return convolution_multiplications(convolution, geometry)


def _convolution(shape: LayerShape) -> ConvolutionShape:
    pairs = (shape.stride, shape.padding, shape.dilation)
    return ConvolutionShape(shape.weight, *pairs, groups=shape.groups)  # type: ignore[arg-type]
