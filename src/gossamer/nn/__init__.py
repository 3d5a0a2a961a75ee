"""Layers that execute sparsity: they hold the active weights only, and compute with nothing else."""

from __future__ import annotations

from . import _packed_operators as _packed_operators  # teaches packed activations PyTorch's operators
from ._deployment import to_torch_semi_structured
from ._moves import Moves
from ._saved_winners import SavedWinners, compressed_winners
from .block import BlockSparseLinear
from .convert import ConversionReport, conversion_report
from .convolution import SparseConv1d, SparseConv2d
from .doubly_sparse import DoublySparse, doubly_sparse
from .hybrid import HybridConv2d, HybridLinear
from .k_winners import KWinners, KWinners2d, update_boost
from .linear import SparseLinear
from .offset import OffsetConv2d, OffsetLinear
from .packed import PackedActivation
from .semi_structured import SemiStructuredConv2d, SemiStructuredLinear
from .swat import SwatConv2d, SwatLinear, swat
from .weight import SparseWeight

__all__ = [
    "BlockSparseLinear",
    "ConversionReport",
    "DoublySparse",
    "HybridConv2d",
    "HybridLinear",
    "KWinners",
    "KWinners2d",
    "Moves",
    "OffsetConv2d",
    "OffsetLinear",
    "PackedActivation",
    "SavedWinners",
    "SemiStructuredConv2d",
    "SemiStructuredLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseWeight",
    "SwatConv2d",
    "SwatLinear",
    "compressed_winners",
    "conversion_report",
    "doubly_sparse",
    "swat",
    "to_torch_semi_structured",
    "update_boost",
]
