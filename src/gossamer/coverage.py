"""The coverage table: what is sparse, what is not, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .distributed import local
from .targets import Candidate


class Held(Protocol):
    """A sparse weight as its controller holds it: a site, or a gate."""

    @property
    def count(self) -> int:
        """Number of active entries."""

    def bytes(self) -> int:
        """What is held beside model and optimizer on this rank."""


@dataclass(frozen=True)
class Row:
    """One parameter. `bytes` is what this process (rank) holds for it now: weight, support, trainable weights."""

    name: str
    shape: tuple[int, ...]
    numel: int
    sparse: bool
    reason: str
    count: int
    density: float
    bytes: int


@dataclass(frozen=True)
class Coverage:
    """Every parameter of a model, in order. `str()` is a table for people."""

    rows: tuple[Row, ...]

    @property
    def active(self) -> int:
        """Active entries of the sparse weights."""
        return sum(row.count for row in self.rows if row.sparse)

    @property
    def eligible(self) -> int:
        """Entries of the sparse weights, active or not."""
        return sum(row.numel for row in self.rows if row.sparse)

    @property
    def total(self) -> int:
        """Entries of all parameters."""
        return sum(row.numel for row in self.rows)

    @property
    def density(self) -> float:
        """active / eligible."""
        return self.active / self.eligible

    def __str__(self) -> str:
        header = ("parameter", "shape", "count", "of", "density", "bytes", "why")
        lines = [header]
        for r in self.rows:
            why = r.reason if r.sparse else f"dense: {r.reason}"
            shape = "x".join(map(str, r.shape)) or "scalar"
            lines.append((r.name, shape, f"{r.count:,}", f"{r.numel:,}", f"{r.density:.4f}", f"{r.bytes:,}", why))
        size = sum(row.bytes for row in self.rows)
        lines.append(("sparse weights", "", f"{self.active:,}", f"{self.eligible:,}", f"{self.density:.4f}", "", ""))
        kept = self.active + self.total - self.eligible
        lines.append(
            (
                "all parameters",
                "",
                f"{kept:,}",
                f"{self.total:,}",
                f"{kept / self.total:.4f}",
                f"{size:,}",
                "",
            )
        )
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        left = (0, 1, 6)
        return "\n".join(
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def coverage(candidates: Sequence[Candidate], sites: Mapping[str, Held]) -> Coverage:
    """Build the table of all parameters from their classification and the sparse ones' sites."""
    rows = []
    for c in candidates:
        site, numel = sites.get(c.name), math.prod(c.shape)
        count = site.count if site else c.parameter.numel()
        held = local(c.parameter).nbytes + (site.bytes() if site else 0)
        density = count / numel if numel else 1.0
        rows.append(Row(c.name, tuple(c.shape), numel, c.sparse, c.reason, count, density, held))
    return Coverage(tuple(rows))
