"""The conformance kit: inherit a class, return your part from `make`, and its laws are your tests.

The classes are plain: pytest collects a subclass whose name begins with ``Test``, `run_laws` runs one without a test
runner. A broken law is an AssertionError that says what was seen; a law that cannot apply raises `unittest.SkipTest`.
"""

from __future__ import annotations

from .conformance_lab import not_applicable, run_laws
from .conformance_learned import LearnedLaws
from .conformance_method import MethodLaws, Task
from .conformance_parts import AllocationLaws, QuotaLaws, ScoreLaws
from .conformance_structure import StructureLaws
from .conformance_tickets import TicketLaws

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
    "run_laws",
]
