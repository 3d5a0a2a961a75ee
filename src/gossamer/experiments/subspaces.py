"""Runs in a random subspace: what can be put in one, and how many of its weights are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ConfigError
from ..subspace import Disjoint, Fastfood, SubspaceModel
from .config import ResolvedConfig, RunConfig
from .values import spell


@dataclass(frozen=True)
class Kept:
    """A weight of which `count` entries train, the others zero."""

    count: int

    def bytes(self) -> int:
        """Bytes held beside it."""
        return 0


def check(config: RunConfig) -> None:
    """Raise ConfigError if the run asks for what only a subspace has, or for something beside it that cannot be."""
    projection, origin = f"projection = {spell(config.projection)!r}", f"origin = {config.origin!r}"
    if config.subspace is None:
        for what, given in {projection: config.projection != Fastfood(), origin: config.origin != "init"}.items():
            if given:
                raise ConfigError(f"{what} is of a subspace, and the run has none; add e.g. --subspace 500")
        return
    problem = None
    if config.offset is not None:
        problem = f"the weights of an offset layer start at zero on offset = {spell(config.offset)!r}; leave one out"
    elif config.method != "dense":
        problem = f"all weights move in it, so method {config.method!r} has none to choose; use --method dense"
    elif config.execution != "masked":
        problem = f"every step makes all weights, so execution = {config.execution!r} gains nothing; use masked"
    elif config.origin == "zero" and not isinstance(config.projection, Disjoint):
        problem = f"{origin} with {projection} starts with all weights at zero, which nothing trains; use disjoint"
    if problem:
        raise ConfigError(f"subspace = {config.subspace}: {problem}")


def put(model: nn.Module, dimension: int, config: ResolvedConfig) -> tuple[SubspaceModel, Mapping[str, Kept]]:
    """Let the trainable weights of a model move in the run's subspace; returns what is not zero of sparse ones, too.

    Raises:
        ConfigError: more dimensions than weights, or a projection too large to hold.
    """
    try:
        put_in = SubspaceModel(model, dimension, config.projection, offset=config.origin, seed=config.seed)
    except ConfigError as error:
        raise ConfigError(f"subspace = {dimension}: {error}") from error
    if config.origin != "zero":
        return put_in, {}
    sizes = [put_in.model.get_parameter(name).numel() for name in put_in.names]
    chosen = put_in.embedding(torch.ones_like(put_in.theta)).split(sizes)
    return put_in, {name: Kept(int(part.sum())) for name, part in zip(put_in.names, chosen, strict=True)}
