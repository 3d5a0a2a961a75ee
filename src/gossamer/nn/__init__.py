"""Layers that execute sparsity: they hold the active weights only, and compute with nothing else."""

from __future__ import annotations

from . import _packed_operators as _packed_operators  # teaches packed activations PyTorch's operators
from ._moves import Moves
from .convert import ConversionReport, conversion_report
from .convolution import SparseConv1d, SparseConv2d
from .hybrid import HybridConv2d, HybridLinear
from .linear import SparseLinear
from .packed import PackedActivation
from .weight import SparseWeight

__all__ = [
    "ConversionReport",
    "HybridConv2d",
    "HybridLinear",
    "Moves",
    "PackedActivation",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseWeight",
    "conversion_report",
]
