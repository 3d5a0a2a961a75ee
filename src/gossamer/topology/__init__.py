"""The pure vocabulary of sparse training: tensors in, tensors out; knows no module and no optimizer."""

from . import scores
from .allocations import Explicit, Held, resolve_allocation
from .clock import Clock
from .counting import spread
from .drop_grow import DropGrow, PruneThen
from .entries import Entries
from .fan_in import FanInDropGrow
from .proportional import ALLOCATIONS, Allocation, check_density, equal_per_filter, equal_per_layer, er, erk, uniform
from .quotas import Quota, gain_below, mean_gradient, mean_momentum, own, quota, survivors
from .rules import Rule, Select, Static
from .schedules import Constant, Cosine, Cubic, Linear, Piecewise, Schedule, as_schedule
from .scores import Score, score
from .selection import select_top
from .structures import NM, Block, Channels, Complementary, FanIn, Structure, Units, Unstructured, transposable_gap
from .support import Support
from .thresholds import Adaptive, Below, Memory, Threshold

__all__ = [
    "ALLOCATIONS",
    "Adaptive",
    "Allocation",
    "Below",
    "Block",
    "Channels",
    "Clock",
    "Complementary",
    "Constant",
    "Cosine",
    "Cubic",
    "DropGrow",
    "Entries",
    "Explicit",
    "FanIn",
    "FanInDropGrow",
    "Held",
    "Linear",
    "Memory",
    "NM",
    "Piecewise",
    "PruneThen",
    "Quota",
    "Rule",
    "Schedule",
    "Score",
    "Select",
    "Static",
    "Structure",
    "Support",
    "Threshold",
    "Units",
    "Unstructured",
    "as_schedule",
    "check_density",
    "equal_per_filter",
    "equal_per_layer",
    "er",
    "erk",
    "gain_below",
    "mean_gradient",
    "mean_momentum",
    "own",
    "quota",
    "resolve_allocation",
    "score",
    "scores",
    "select_top",
    "spread",
    "survivors",
    "transposable_gap",
    "uniform",
]
