"""Named methods: each module of this package holds one family and registers itself.

To add one, write one module here: a function decorated with ``@named`` that returns a `Method`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._registry import REGISTRY, MethodInfo, find, named

if TYPE_CHECKING:
    from ..method import Method

    def __getattr__(name: str) -> Callable[..., Method]: ...


for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
for _info in REGISTRY.values():
    globals()[_info.build.__name__] = _info.build

__all__ = ["REGISTRY", "MethodInfo", "find", "named", *(info.build.__name__ for info in REGISTRY.values())]
