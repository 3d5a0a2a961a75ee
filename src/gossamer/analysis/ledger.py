"""What training costs: FLOPs and bytes per layer and phase, in theory and as executed.

A multiplication with its addition is 2 FLOPs; values have 4 bytes. With N entries of a weight, n of them active, g of
them that get a gradient in every step, and P uses of the weight per batch (rows of a linear layer, output positions of
a convolution):

==========================  ==================================  =================================================
phase                       FLOPs in theory                     executed, where that differs
==========================  ==================================  =================================================
forward                     2 n P                               masked: 2 N P
backward to activations     2 n P, 0 in the first layer         masked: 2 N P
backward to weights         2 g P                               masked, hybrid: 2 N P
dense-gradient step         2 (N - g) P                         masked, hybrid: 0 (it is there); sparse: 2 N P
rewiring                    N (one per scored entry)
offset forward, backward    2 o P each                          what the layer's transform does
==========================  ==================================  =================================================

g is n, or what else is trained: N of methods whose inactive weights keep a value, the backward set of Top-KAST. o are
the multiplications of an offset D x by a fast transform.

Bytes of these phases are traffic, every operand counted once; those of weights, gradients, slots, indices and
activations are held during training. The dense-gradient step and the rewiring are charged once per rewiring, the first
only for methods that grow by the gradient of inactive weights (RigL) and have none of it otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .work import Work

STEP = ("forward", "backward to activations", "backward to weights")
OFFSET = ("offset forward", "offset backward")
REWIRING = ("dense-gradient step", "rewiring")
HELD = ("weights", "gradients", "slots", "indices", "activations")
_VALUE, _LANES = 4, 16  # bytes of a float32; examples in a vector of packed activations


@dataclass(frozen=True)
class Entry:
    """One phase of one layer: FLOPs and bytes of one step or one rewiring, or bytes held (FLOPs 0)."""

    layer: str
    phase: str
    flops: int
    flops_executed: int
    bytes: int
    bytes_executed: int


@dataclass(frozen=True)
class Stretch:
    """A part of training at constant counts (weight name -> active entries): its steps and rewirings."""

    steps: int
    rewirings: int = 0
    counts: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over a whole training, and the same of dense training; bytes are held at its end."""

    flops: int
    flops_executed: int
    flops_dense: int
    bytes: int
    bytes_executed: int
    bytes_dense: int


@dataclass(frozen=True)
class Ledger:
    """All entries of a model and the totals of a training. `str()` is a table for people.

    accumulate: micro-batches per step, each with a forward and a backward pass.
    """

    works: tuple[Work, ...]
    training: tuple[Stretch, ...] = ()
    accumulate: int = 1

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Of every layer, as it is now."""
        return tuple(entry for work in self.works for entry in entries(work))

    @property
    def totals(self) -> Totals:
        """Of the whole training; a dense one makes as many steps and rewires nothing."""
        steps = sum(stretch.steps for stretch in self.training)
        dense = [_as_dense(work) for work in self.works]
        theory = executed = 0
        for stretch in self.training:
            for work in self.works:
                count = (stretch.counts or {}).get(work.name, work.count)
                theory += _flops(at_count(work, count), stretch, self.accumulate, "flops")
                executed += _flops(at_count(work, count), stretch, self.accumulate, "flops_executed")
        held = [entry for entry in self.entries if entry.phase in HELD]
        return Totals(
            theory,
            executed,
            sum(_flops(work, Stretch(steps), self.accumulate, "flops") for work in dense),
            sum(entry.bytes for entry in held),
            sum(entry.bytes_executed for entry in held),
            sum(e.bytes for work in dense for e in entries(work) if e.phase in HELD),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the totals, and per layer and phase [FLOPs, FLOPs executed, bytes, bytes executed]."""
        layers: dict[str, Any] = {
            work.name: {"execution": work.execution, "entries": work.numel, "active": work.count} for work in self.works
        }
        for e in self.entries:
            phases = layers[e.layer].setdefault("phases", {})
            phases[e.phase] = [e.flops, e.flops_executed, e.bytes, e.bytes_executed]
        return {"totals": vars(self.totals), "layers": layers}

    def rows(self) -> list[tuple[str, str, str, int, int, int, int]]:
        """Layer, execution, phase and its four figures, as a table wants them; phases without any are left out."""
        how = {work.name: work.execution for work in self.works}
        return [
            (e.layer, how[e.layer], e.phase, e.flops, e.flops_executed, e.bytes, e.bytes_executed)
            for e in self.entries
            if e.flops or e.flops_executed or e.bytes or e.bytes_executed
        ]

    def __str__(self) -> str:
        header = ("layer", "execution", "phase", "FLOPs", "executed", "bytes", "executed")
        lines = [header, *((*row[:3], *(f"{number:,}" for number in row[3:])) for row in self.rows())]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def entries(work: Work) -> list[Entry]:
    """The ledger of one parameter."""
    return [*_compute(work), *_held(work)]


def _compute(work: Work) -> list[Entry]:
    """The phases that compute; bytes are those of the weight (or its gradient), the input and the output."""
    shape, n, g, total = work.shape, work.count, work.g, work.numel
    if shape is None:
        return []
    through = _VALUE * (shape.inputs + shape.outputs)
    read, index = (total, 0) if work.computes_densely else (n, work.index_bytes)
    updated = n if work.execution == "sparse" else total

    def phase(name: str, theory: int, executed: int, extra: int = 0) -> Entry:
        flops, done = 2 * theory * shape.positions, 2 * executed * shape.positions
        return Entry(work.name, name, flops, done, _VALUE * theory + through, _VALUE * executed + through + extra)

    made = [phase(STEP[0], n, read, index)]
    if shape.inner:
        made.append(phase(STEP[1], n, read, index))
    made.append(phase(STEP[2], g, updated))
    if work.offset is not None:
        flops, done = (round(2 * each * shape.positions) for each in (work.offset.theory, work.offset.executed))
        ways = OFFSET if shape.inner or work.offset.backward else OFFSET[:1]
        made += [Entry(work.name, way, flops, done, through, through) for way in ways]
    if work.grows_by_gradient:
        apart = phase(REWIRING[0], total - g, total)
        there = replace(apart, flops_executed=0, bytes_executed=0)  # every step has the whole gradient
        made.append(apart if work.execution == "sparse" else there)
    if work.rewires:
        made.append(Entry(work.name, REWIRING[1], total, total, _VALUE * total, _rewiring_bytes(work)))
    return made


def _rewiring_bytes(work: Work) -> int:
    """Scores of all entries are read; values move with their slots, or the weight and two masks are passed over."""
    scores = _VALUE * work.numel
    if work.execution == "sparse":
        return scores + 2 * _VALUE * work.count * (1 + work.slots) + 2 * work.index_bytes
    return scores + _VALUE * work.numel + 2 * work.numel + work.index_bytes


def _held(work: Work) -> list[Entry]:
    n, g, total, slots = work.count, work.g, work.numel, work.slots
    sparse, masked = work.execution == "sparse", work.execution in ("masked", "hybrid")
    stored = n if sparse else total
    inputs = _VALUE * work.shape.inputs if work.shape else 0
    padded = inputs
    if work.shape and sparse:
        padded = inputs // work.shape.batch * _LANES * math.ceil(work.shape.batch / _LANES)
    cheapest = 0 if work.execution == "dense" else cheapest_index(n, total)
    kept = total if work.live else 0  # beside the sparse view
    amounts = {
        "weights": (_VALUE * (n + kept), _VALUE * (stored + kept)),
        "gradients": (_VALUE * g, _VALUE * stored),
        "slots": (_VALUE * slots * (total if work.live else g), _VALUE * slots * stored),
        "indices": (cheapest, (total if masked else 0) + work.index_bytes),
        "activations": (inputs, padded),
    }
    return [Entry(work.name, phase, 0, 0, *amounts[phase]) for phase in HELD]


def cheapest_index(count: int, numel: int) -> int:
    """Bytes of a bit mask, or of 16-bit positions where that is less."""
    return min(math.ceil(numel / 8), 2 * count)


def _as_dense(work: Work) -> Work:
    return Work(work.name, work.shape, work.numel, work.numel, "dense", slots=work.slots)


def at_count(work: Work, count: int) -> Work:
    """The same at another count; what is trained beyond the active entries stays."""
    trained = None if work.trained is None else max(work.trained, count)
    return replace(work, count=count, trained=trained)


def _flops(work: Work, stretch: Stretch, accumulate: int, field: str) -> int:
    """FLOPs of one parameter over a stretch; the gradient of all entries is that of every micro-batch."""
    passes = dict.fromkeys((*STEP, *OFFSET), accumulate * stretch.steps)
    times = {**passes, REWIRING[0]: accumulate * stretch.rewirings, REWIRING[1]: stretch.rewirings}
    return sum(times.get(entry.phase, 0) * getattr(entry, field) for entry in entries(work))


def stretches(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> tuple[Stretch, ...]:
    """The parts of a training from its rows of metrics.jsonl: "step", "rewirings" and "counts" since the row before.

    sizes: weight name -> entries, the counts of rows without, which were trained dense.
    """
    made, before = [], 0
    for row in rows:
        made.append(Stretch(row["step"] - before, row["rewirings"], row["counts"] or sizes))
        before = row["step"]
    return tuple(made)
