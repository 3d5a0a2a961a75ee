"""Law 8 for the methods whose inactive weights keep a value: STE, SR-STE, Top-KAST."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from gossamer import methods
from gossamer.testing import oracles
from gossamer.topology import Linear

from .following import KINDS, STEPS, beside
from .settings import convnet, mlp


def grouped() -> nn.Sequential:
    """Convolutions whose inputs divide by four; input 4 x 6 x 6."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, (1, 3), stride=2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 4))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_ste(build: Any, kind: str, every: int, scope: str) -> None:
    run = beside(build, kind, methods.ste(0.25, every=every, scope=scope))
    run.compare(oracles.ste_oracle, list(run.counts), run.counts, every=every, scope=scope)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_sr_ste_without_groups(build: Any, kind: str, every: int) -> None:
    run = beside(build, kind, methods.sr_ste(0.25, decay=0.02, group=None, every=every))
    run.compare(oracles.sr_ste_oracle, list(run.counts), run.counts, decay=0.02, every=every)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, grouped])
def test_sr_ste_in_groups(build: Any, kind: str, n: int, m: int) -> None:
    run = beside(build, kind, methods.sr_ste(n / m, decay=0.02, group=m))
    run.compare(oracles.sr_ste_oracle, list(run.counts), (n, m), decay=0.02)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("backward", ["twice", "all", "none", "shrinking"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [mlp, convnet])
def test_topkast(build: Any, kind: str, backward: str, scope: str) -> None:
    reach: Any = {"twice": None, "all": 1.0, "none": 0.2, "shrinking": Linear(0.6, 0.2, end=0.5)}[backward]
    method = methods.topkast(0.2, backward=reach, every=2, stop=0.9, decay=0.03, scope=scope)
    run = beside(build, kind, method)
    resolved = run.sparsifier.method

    def sizes(step: int) -> Mapping[str, int]:
        return resolved.reach_counts(run.shapes, step) or {}

    first = (list(run.counts), resolved.counts(run.shapes, 0), sizes)
    stop = round(0.9 * STEPS)
    run.compare(oracles.topkast_oracle, *first, density=0.2, decay=0.03, every=2, stop=stop, scope=scope)
