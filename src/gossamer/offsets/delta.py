"""The discrete cosine transform of the channels, at the centre tap."""

from __future__ import annotations

from dataclasses import dataclass

from ._registry import named
from .centre import CentreTap
from .dct import DCT


@named
@dataclass(frozen=True)
class DeltaDCT(CentreTap, DCT):
    """The DCT of the channels at the centre tap of a convolution; in a linear layer `DCT` itself.

    K[o, c, centre] = C_q[o, c] with q = max(outputs, inputs) of a group, all other taps zero. The convolution as a
    whole is then an isometry where the stride is 1: all singular values of the operator are 1, which holds for none of
    the offsets that transform whole patches. It mixes channels, and nothing in space.

    Source: the idea of delta-orthogonal kernels, Xiao et al. 2018, arXiv:1806.05393, here with a fast transform.
    """

    name = "delta-dct"
    summary = "the DCT of the channels at the centre tap of a kernel; no mixing in space"
    cost = "q log q, q of the channels only"
