"""Law 8 for the methods whose inactive weights are zero: DeepR, DSR, SNFS, rebalance, SRigL, pruning, GraNet."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import methods
from gossamer.seeding import generator_for
from gossamer.testing import oracles
from gossamer.testing.oracles.reallocate import rebalance_oracle

from .following import KINDS, SEED, STEPS, Beside, beside, cosine, draws
from .settings import convnet, mlp

BUILDS = [mlp, convnet]
MOMENTUM = ["sgd-momentum", "adamw", "adam-amsgrad-foreach"]


def coin(name: str, shape: torch.Size) -> Tensor:
    """The signs of what is zero at first."""
    return torch.rand(shape, generator=generator_for(SEED, name, "sign")) < 0.5


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("density", "every", "l1", "temperature"),
    [(0.3, 1, 1e-2, 1e-4), (0.3, 4, 1e-1, 0.0), (0.95, 3, 1e-2, 1e-2), (0.02, 1, 1e-2, 1e-2)],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_deepr(build: Any, kind: str, density: float, every: int, l1: float, temperature: float, scope: str) -> None:
    run = beside(build, kind, methods.deepr(density, l1, temperature, every=every, scope=scope))
    run.compare(
        oracles.deepr_oracle, run.masks, l1=l1, temperature=temperature, every=every, stop=round(0.95 * STEPS),
        coin=coin, noise=draws("action", torch.randn), draw=draws("rewire"), scope=scope,
    )  # fmt: skip


@pytest.mark.parametrize("reallocate", [True, False])
@pytest.mark.parametrize(("density", "target"), [(0.3, 0.1), (0.3, 12), (0.9, 0.2), (0.03, 4)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_dsr(build: Any, kind: str, density: float, target: float, reallocate: bool) -> None:
    method = methods.dsr(density, target, 0.01, every=2, double_at=(7, 0.5), reallocate=reallocate)
    run = beside(build, kind, method)
    run.compare(
        oracles.dsr_oracle, run.masks, target=target, threshold=0.01, tolerance=0.1, every=2,
        double_at=(7, round(0.5 * STEPS)), stop=round(0.95 * STEPS), draw=draws("rewire"), reallocate=reallocate,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("drop", "grow", "reallocate"),
    [
        ("magnitude", "momentum", True),
        ("magnitude", "momentum", False),
        ("momentum", "momentum", True),
        ("magnitude", "random", True),
    ],
)
@pytest.mark.parametrize("density", [0.2, 0.85, 0.02])
@pytest.mark.parametrize("kind", MOMENTUM)
@pytest.mark.parametrize("build", BUILDS)
def test_snfs(build: Any, kind: str, density: float, drop: Any, grow: Any, reallocate: bool) -> None:
    run = beside(build, kind, methods.snfs(density, every=5, drop=drop, grow=grow, reallocate=reallocate))
    run.compare(
        oracles.snfs_oracle, run.masks, every=5, stop=STEPS, fraction=cosine(0.5, 0.005, STEPS), drop=drop, grow=grow,
        reallocate=reallocate, draw=draws("rewire"),
    )  # fmt: skip


@pytest.mark.parametrize("target", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("density", "fraction"), [(0.3, 0.5), (0.85, 0.3), (0.02, 0.5)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_rebalance(build: Any, kind: str, density: float, fraction: float, target: float) -> None:
    run = beside(build, kind, methods.rebalance(density, fraction, every=5, target=target))
    stop = round(0.75 * STEPS)
    run.compare(
        rebalance_oracle, run.masks, every=5, stop=stop, fraction=cosine(fraction, 0.0, stop), target=target
    )  # fmt: skip


@pytest.mark.parametrize("density", [0.3, 0.02])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_rebalance_where_no_layer_needs_anything_is_rigl(build: Any, kind: str, density: float) -> None:
    run = beside(build, kind, methods.rebalance(density, 0.5, every=5, target=1e-9))
    stop = round(0.75 * STEPS)
    run.compare(oracles.rigl_oracle, run.masks, every=5, stop=stop, fraction=cosine(0.5, 0.0, stop))


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize(("density", "min_salient"), [(0.3, 0.3), (0.2, 0.95), (0.1, 2), (0.5, 0.0)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_srigl(build: Any, kind: str, density: float, min_salient: float, newborn: str) -> None:
    method = methods.srigl(density, 0.5, every=5, min_salient=min_salient, newborn=newborn)
    run = beside(build, kind, method)
    stop, counts = round(0.75 * STEPS), run.sparsifier.method.counts(run.shapes, 0)
    arguments = {"fraction": cosine(0.5, 0.0, stop), "min_salient": min_salient, "newborn": newborn}
    run.compare(oracles.srigl_oracle, run.masks, counts, every=5, stop=stop, **arguments)


def parts(run: Beside, allocation: str) -> dict[str, int]:
    """What counts are in proportion to."""
    return {n: math.prod(shape) if allocation == "uniform" else sum(shape) for n, shape in run.shapes.items()}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("density", "initial", "start", "stop", "allocation"),
    [(0.1, 1.0, 0, 40, "uniform"), (0.02, 0.6, 7, 43, "uniform"), (0.15, 0.8, 0, 41, "erk")],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_gmp(
    build: Any, kind: str, density: float, initial: float, start: int, stop: int, allocation: str, scope: str
) -> None:
    method = methods.gmp(density, 5, start, stop, initial, scope, allocation)
    run = beside(build, kind, method)
    run.compare(
        oracles.gmp_oracle, parts(run, allocation), density=density, initial=initial, every=5, start=start, stop=stop,
        scope=scope,
    )  # fmt: skip


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("density", [0.2, 0.02])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_one_shot(build: Any, kind: str, density: float, scope: str) -> None:
    run = beside(build, kind, methods.one_shot(density, at=20, scope=scope))
    run.compare(oracles.one_shot_oracle, parts(run, "uniform"), density=density, at=20, scope=scope)


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize(("density", "initial"), [(0.1, 0.5), (0.2, 1.0), (0.01, 0.2)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", BUILDS)
def test_granet(build: Any, kind: str, density: float, initial: float, newborn: str) -> None:
    run = beside(build, kind, methods.granet(density, initial, every=4, prune_until=0.6, newborn=newborn))
    run.compare(
        oracles.granet_oracle, run.masks, density=density, initial=initial, fraction=cosine(0.5, 0.005, STEPS), every=4,
        prune_until=round(0.6 * STEPS), stop=STEPS, newborn=newborn,
    )  # fmt: skip
