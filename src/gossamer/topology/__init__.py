"""The pure vocabulary of sparse training: tensors in, tensors out; knows no module and no optimizer."""

from . import scores
from .allocations import (
    ALLOCATIONS,
    Allocation,
    Explicit,
    check_density,
    equal_per_filter,
    equal_per_layer,
    er,
    erk,
    resolve_allocation,
    uniform,
)
from .counting import spread
from .entries import Entries
from .rules import DropGrow, Rule, Select, Static, own
from .schedules import Clock, Constant, Cosine, Cubic, Linear, Piecewise, Schedule, as_schedule
from .scores import Score, score
from .selection import select_top
from .structures import FanIn, Structure, Unstructured
from .support import Support

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Clock",
    "Constant",
    "Cosine",
    "Cubic",
    "DropGrow",
    "Entries",
    "Explicit",
    "FanIn",
    "Linear",
    "Piecewise",
    "Rule",
    "Schedule",
    "Score",
    "Select",
    "Static",
    "Structure",
    "Support",
    "Unstructured",
    "as_schedule",
    "check_density",
    "equal_per_filter",
    "equal_per_layer",
    "er",
    "erk",
    "own",
    "resolve_allocation",
    "score",
    "scores",
    "select_top",
    "spread",
    "uniform",
]
