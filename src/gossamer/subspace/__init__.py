"""Training in a random subspace: all weights move, along a few fixed directions."""

from __future__ import annotations

from .model import SubspaceModel
from .projections import PROJECTIONS, Dense, Disjoint, Embedding, Fastfood, Projection, Sparse

__all__ = [
    "PROJECTIONS",
    "Dense",
    "Disjoint",
    "Embedding",
    "Fastfood",
    "Projection",
    "Sparse",
    "SubspaceModel",
]
