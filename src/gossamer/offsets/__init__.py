"""Fixed dense matrices that cost nothing to store: what an offset layer adds to its sparse weight."""

from __future__ import annotations

from ._registry import REGISTRY, find, named
from .base import ConvolutionMap, ConvolutionShape, Direct, Offset
from .block import BlockDCT
from .dct import DCT, dct_matrix
from .delta import DeltaDCT
from .dense import Gaussian, Orthogonal
from .hadamard import SignedHadamard
from .identity import Identity
from .rows import RandomRows
from .shift import ShiftDCT
from .signed import ChannelSignedDCT, SignedDCT, TapSignedDCT

__all__ = [
    "DCT",
    "REGISTRY",
    "BlockDCT",
    "ChannelSignedDCT",
    "ConvolutionMap",
    "ConvolutionShape",
    "DeltaDCT",
    "Direct",
    "Gaussian",
    "Identity",
    "Offset",
    "Orthogonal",
    "RandomRows",
    "ShiftDCT",
    "SignedDCT",
    "SignedHadamard",
    "TapSignedDCT",
    "dct_matrix",
    "find",
    "named",
]
