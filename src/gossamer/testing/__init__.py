"""Checks that ship with the library: the conformance kit, and literal transcriptions of the published procedures."""

from .conformance import (
    AllocationLaws,
    MethodLaws,
    QuotaLaws,
    ScoreLaws,
    StructureLaws,
    Task,
    not_applicable,
    run_laws,
)
from .oracles import Step, Trace, rewire_oracle, rigl_oracle, set_oracle, static_oracle

__all__ = [
    "AllocationLaws",
    "MethodLaws",
    "QuotaLaws",
    "ScoreLaws",
    "Step",
    "StructureLaws",
    "Task",
    "Trace",
    "not_applicable",
    "rewire_oracle",
    "rigl_oracle",
    "run_laws",
    "set_oracle",
    "static_oracle",
]
