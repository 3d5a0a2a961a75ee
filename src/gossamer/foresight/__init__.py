"""Pruning at initialisation: the first supports found by scoring the initial weights.

A `Saliency` is a value. It is the ``init=`` of any method, ``methods.rigl(0.1, init=foresight.snip(loader))``, or is
run by itself with `find`.
"""

from .connectivity import effective_counts
from .examples import Examples, Ones
from .isometry import Enforced, Isometry, approximate_isometry, measure_isometry, rescale_fan_in
from .named import INITS, force, grasp, iter_snip, magnitude, random, slope, snip, synflow
from .objectives import GradientFlow, Objective, Plain, Sensitivity, Slope, SynapticFlow
from .saliency import Saliency
from .search import find

__all__ = [
    "Enforced",
    "Examples",
    "GradientFlow",
    "INITS",
    "Isometry",
    "Objective",
    "Ones",
    "Plain",
    "Saliency",
    "Sensitivity",
    "Slope",
    "SynapticFlow",
    "approximate_isometry",
    "effective_counts",
    "find",
    "force",
    "grasp",
    "iter_snip",
    "magnitude",
    "measure_isometry",
    "random",
    "rescale_fan_in",
    "slope",
    "snip",
    "synflow",
]
