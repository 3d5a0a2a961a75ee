"""Which Parameters a controller owns: one at a time, from `sparsify` to `detach`."""

from __future__ import annotations

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from .errors import AttachError

owned: WeakIdKeyDictionary = WeakIdKeyDictionary()  # Parameter -> name, while a Sparsifier owns it


def check_free(name: str, parameter: nn.Parameter) -> None:
    """Raise AttachError if a controller owns this Parameter."""
    if parameter in owned:
        raise AttachError(f"{name} is sparsified already; call detach() on its Sparsifier before sparsify() again")
