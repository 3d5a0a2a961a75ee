"""The table of named offsets. A module with one adds its row with `@named`."""

from __future__ import annotations

from typing import TypeVar

from ..errors import ConfigError, did_you_mean
from .base import Offset

Kind = TypeVar("Kind", bound=type[Offset])

REGISTRY: dict[str, type[Offset]] = {}
Offset.spellings = REGISTRY  # configs spell those that have a name


def named(kind: Kind) -> Kind:
    """Register an offset class under its `name`."""
    if kind.name in REGISTRY:
        raise ConfigError(f"there are two offsets named {kind.name!r}")
    REGISTRY[kind.name] = kind
    return kind


def find(name: str) -> type[Offset]:
    """Return the class of a named offset, or raise `ConfigError` with the nearest names."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown offset {name!r}{did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]
