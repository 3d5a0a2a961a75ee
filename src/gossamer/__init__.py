"""Train neural networks sparse from scratch: every method a small composition, on any model and optimizer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import analysis, foresight, lottery, methods, nn, offsets, subspace, topology
    from .conversion import convert
    from .coverage import Coverage
    from .entry import sparsify
    from .errors import GossamerError
    from .learned import LearnedSparsifier
    from .method import Fix, Given, Live, Method, Regularize, Reset, Zero
    from .reparametrise import Learned
    from .sparsifier import Sparsifier
    from .topology import Support

__version__ = "0.1.0"

# Public name -> module that defines it; loaded at first use, so that `gossamer --help` does not wait for torch.
_HOME = {
    "Coverage": "coverage",
    "Fix": "method",
    "Given": "method",
    "GossamerError": "errors",
    "Learned": "reparametrise",
    "LearnedSparsifier": "learned",
    "Live": "method",
    "Method": "method",
    "Regularize": "method",
    "Reset": "method",
    "Sparsifier": "sparsifier",
    "Support": "topology",
    "Zero": "method",
    "analysis": "",
    "convert": "conversion",
    "foresight": "",
    "lottery": "",
    "methods": "",
    "nn": "",
    "offsets": "",
    "sparsify": "entry",
    "subspace": "",
    "topology": "",
}

__all__ = [
    "Coverage",
    "Fix",
    "Given",
    "GossamerError",
    "Learned",
    "LearnedSparsifier",
    "Live",
    "Method",
    "Regularize",
    "Reset",
    "Sparsifier",
    "Support",
    "Zero",
    "__version__",
    "analysis",
    "convert",
    "foresight",
    "lottery",
    "methods",
    "nn",
    "offsets",
    "sparsify",
    "subspace",
    "topology",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gossamer' has no attribute {name!r}")
    home = _HOME[name]
    value = (
        getattr(importlib.import_module(f".{home}", __name__), name)
        if home
        else importlib.import_module(f".{name}", __name__)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
