"""Checks that ship with the library: the conformance kit, and literal transcriptions of the published procedures."""

from . import oracles
from .conformance import (
    AllocationLaws,
    LearnedLaws,
    MethodLaws,
    QuotaLaws,
    ScoreLaws,
    StructureLaws,
    Task,
    TicketLaws,
    not_applicable,
    run_laws,
)

__all__ = [
    "AllocationLaws",
    "LearnedLaws",
    "MethodLaws",
    "QuotaLaws",
    "ScoreLaws",
    "StructureLaws",
    "Task",
    "TicketLaws",
    "not_applicable",
    "oracles",
    "run_laws",
]
