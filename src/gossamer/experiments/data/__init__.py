"""Data sets: in the package, from Debian or a folder, or the running Python's own sources."""

from .batches import augment, batch_indices, epoch_order, keyed_generator, token_batch
from .dataset import DataInfo, Dataset, Examples, Split, Tokens
from .registry import DATASETS, available, data_options, load

__all__ = [
    "DATASETS",
    "DataInfo",
    "Dataset",
    "Examples",
    "Split",
    "Tokens",
    "augment",
    "available",
    "batch_indices",
    "data_options",
    "epoch_order",
    "keyed_generator",
    "load",
    "token_batch",
]
