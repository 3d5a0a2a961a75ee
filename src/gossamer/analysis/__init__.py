"""What a sparse network is doing: measurements that change nothing."""

from __future__ import annotations

from .exploration import UNWATCHED, Exploration, WeightTopology

__all__ = ["UNWATCHED", "Exploration", "WeightTopology"]
