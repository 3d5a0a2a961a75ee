"""Train neural networks sparse from scratch: every method a small composition, on any model and optimizer."""

from . import methods
from .coverage import Coverage
from .errors import GossamerError
from .method import Fix, Given, Live, Method, Regularize, Reset, Zero
from .sparsifier import Sparsifier, sparsify
from .topology import Support

__version__ = "0.1.0"

__all__ = [
    "Coverage",
    "Fix",
    "Given",
    "GossamerError",
    "Live",
    "Method",
    "Regularize",
    "Reset",
    "Sparsifier",
    "Support",
    "Zero",
    "__version__",
    "methods",
    "sparsify",
]
