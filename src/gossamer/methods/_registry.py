"""The table of named methods. A method module adds its row with `@named`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import ConfigError, did_you_mean

Build = TypeVar("Build", bound=Callable[..., Any])


@dataclass(frozen=True)
class MethodInfo:
    """One named method.

    name: what the command line calls it; build: function(density, ...) -> a `Method`, a
        `Learned` or a `Tickets`; summary: one line.
    needs: what it costs beyond a static sparse network, in words; source: authors, year, arXiv.
    """

    name: str
    build: Callable[..., Any]
    summary: str
    needs: str
    source: str


REGISTRY: dict[str, MethodInfo] = {}


def named(name: str, *, needs: str, source: str) -> Callable[[Build], Build]:
    """Register a method function under its command-line name; its docstring's first line is the summary."""

    def register(build: Build) -> Build:
        if name in REGISTRY:
            raise ConfigError(f"there are two methods named {name!r}")
        summary = (inspect.getdoc(build) or "").split("\n", 1)[0]
        REGISTRY[name] = MethodInfo(name, build, summary, needs, source)
        return build

    return register


def find(name: str) -> MethodInfo:
    """Return the row of a named method, or raise `ConfigError` with the nearest names."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown method {name!r}{did_you_mean(name, REGISTRY)}")
    return REGISTRY[name]
