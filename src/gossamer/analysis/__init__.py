"""What a sparse network is doing: measurements that change nothing."""

from __future__ import annotations

from .exploration import UNWATCHED, Exploration, WeightTopology
from .intrinsic import intrinsic_dimension
from .jacobian import LayerSpectra, Spectrum, end_to_end, layerwise

__all__ = [
    "UNWATCHED",
    "Exploration",
    "LayerSpectra",
    "Spectrum",
    "WeightTopology",
    "end_to_end",
    "intrinsic_dimension",
    "layerwise",
]
