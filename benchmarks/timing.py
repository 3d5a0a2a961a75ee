"""Shared by the benchmarks: a quiet process, interleaved rounds, one statistic and its spread; as `gossamer bench`."""

from gossamer._timing import QUIET, ROUNDS, STATISTIC, faster_half, interleave, restart_pinned, spread

__all__ = ["QUIET", "ROUNDS", "STATISTIC", "faster_half", "interleave", "restart_pinned", "spread"]
