"""Law 4: a sparse layer trains as the masked weight does, through rewirings: same supports, same values to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gossamer import Method, candidates, methods
from gossamer.topology import Constant, DropGrow, mean_gradient, own, scores

from ..kernels.forcing import PATHS, forced
from .executions import close, data, pair, same_supports
from .settings import compose, convnet, mlp

STEPS = 24


def quota_by_gradient(density: float) -> Method:
    rule = DropGrow(scores.magnitude, scores.gradient, 0.4, quota=mean_gradient)
    return compose("by-gradient", density, rule=rule, scope="global")


METHODS: dict[str, Callable[[], Method]] = {
    "static": lambda: methods.static(0.3),
    "set": lambda: methods.set_(0.3, every=2),
    "set-unsigned": lambda: methods.set_(0.3, every=2, split_signs=False, newborn="zero"),
    "set-drawn": lambda: methods.set_(0.3, every=3, newborn_std=0.1),
    "set-grace": lambda: methods.set_(0.3, every=2, grace=5),
    "set-itop": lambda: methods.set_itop(0.3, every=3),
    "rigl": lambda: methods.rigl(0.3, every=3, fraction=0.5),
    "rigl-global": lambda: methods.rigl(0.3, every=3, fraction=0.5, scope="global", allocation="uniform"),
    "rigl-grace": lambda: methods.rigl(0.3, every=3, fraction=0.5, grace=4),
    "rigl-itop": lambda: methods.rigl_itop(0.3, every=3),
    "dsr": lambda: methods.dsr(0.3, every=2, target=0.2, threshold=0.02),
    "dsr-fixed": lambda: methods.dsr(0.3, every=2, target=20, threshold=0.02, reallocate=False, grace=3),
    "by-gradient": lambda: quota_by_gradient(0.3),
    "saliency": lambda: compose("saliency", 0.3, rule=DropGrow(scores.saliency, scores.gradient, 0.4)),
    "own-quota": lambda: compose(
        "own-quota", 0.3, rule=DropGrow(scores.magnitude, scores.random, Constant(0.3), quota=own), scope="global"
    ),
    "gmp": lambda: methods.gmp(0.3, every=2, stop=0.6),
    "gmp-global": lambda: methods.gmp(0.3, every=3, start=2, stop=0.75, initial=0.8, scope="global"),
    "one-shot": lambda: methods.one_shot(0.3, at=5),
    "granet": lambda: methods.granet(0.3, every=2),
}
FEW = ["set", "rigl", "dsr", "granet"]


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_sparse_run_equals_the_masked_run(method: str, optimizer: str) -> None:
    masked, sparse = pair(METHODS[method](), optimizer, torch.float64, steps=STEPS)
    rewired = 0
    same_supports(masked, sparse)
    for batch in data((20,), torch.float64, STEPS):
        before = masked.sparsifier.supports
        masked.step(batch), sparse.step(batch)
        same_supports(masked, sparse)
        rewired += any(support != before[name] for name, support in masked.sparsifier.supports.items())
    close(sparse.tensors(), masked.tensors(), 1e-8)
    assert rewired >= 1 or method == "static"


@pytest.mark.parametrize("method", FEW)
def test_a_sparse_convolution_network_equals_the_masked_one(method: str) -> None:
    masked, sparse = pair(METHODS[method](), "sgd-momentum", torch.float64, convnet, steps=STEPS)
    for batch in data((2, 6, 6), torch.float64, STEPS):
        masked.step(batch), sparse.step(batch)
        same_supports(masked, sparse)
    close(sparse.tensors(), masked.tensors(), 1e-8)


@pytest.mark.parametrize(
    "method", ["set", "set-drawn", "rigl", "rigl-global", "dsr", "own-quota", "by-gradient", "gmp"]
)
def test_tiles_do_not_matter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "TILE", 64)
    masked, sparse = pair(METHODS[method](), "adamw", torch.float64, steps=12)
    for batch in data((20,), torch.float64, 12):
        masked.step(batch), sparse.step(batch)
        same_supports(masked, sparse)
    close(sparse.tensors(), masked.tensors(), 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", [mlp, convnet])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_a_hundred_steps_in_single_precision(
    method: str, optimizer: str, make: Callable[[], nn.Module], path: str
) -> None:
    every, shape = 10, (20,) if make is mlp else (2, 6, 6)
    chosen = {"set": methods.set_(0.3, every=every), "rigl": methods.rigl(0.3, every=every)}[method]
    masked, sparse = pair(chosen, optimizer, torch.float32, make, steps=100)
    with forced(path):
        for batch in data(shape, torch.float32, 100, size=32):
            masked.step(batch), sparse.step(batch)
            same_supports(masked, sparse)
    close(sparse.tensors(), masked.tensors(), 1e-5)
