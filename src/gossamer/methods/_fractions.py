"""Drop fractions: a number that decays, or a schedule that is taken as it is."""

from __future__ import annotations

from ..topology import Cosine, Schedule


def cosine(fraction: float | Schedule, last: float = 0.0, end: int | float = 1.0) -> Schedule:
    """Return ``fraction`` if it is a schedule, else its cosine decay to ``last`` (or less) at time ``end``."""
    return Cosine(fraction, min(fraction, last), end=end) if isinstance(fraction, int | float) else fraction
