"""Fast linear maps along one axis of a tensor, whose matrix is never stored, and their plain-torch references."""

from __future__ import annotations

from .choice import cosine_map, faster
from .fast import BlockCosine, Cosine, Hadamard
from .maps import LinearMap, Product

__all__ = ["BlockCosine", "Cosine", "Hadamard", "LinearMap", "Product", "cosine_map", "faster"]
