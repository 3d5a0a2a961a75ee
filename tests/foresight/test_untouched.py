"""Scoring leaves no trace: weights, statistics, modes, flags, gradients, hooks, generators."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gossamer import foresight
from gossamer.foresight import INITS, Saliency

from .measure import masks, names, same
from .nets import NETS, Residual, images, seeded, vectors

pytestmark = pytest.mark.filterwarnings("ignore:.*(without any weight|no path from input|cut in round):UserWarning")
NEEDY = ["snip", "iter-snip", "force", "grasp", "slope"]


def saliency(name: str, data: Any, shape: tuple[int, ...] = (3, 8, 8)) -> Saliency:
    rounds = {"rounds": 3} if name in {"iter-snip", "force", "synflow"} else {}
    if name in NEEDY:
        return INITS[name](data, batches=2, allow_collapse=True, **rounds)
    return INITS[name]() if name == "random" else INITS[name](shape, allow_collapse=True, **rounds)


def shuffling(data: list[tuple[Tensor, Tensor]]) -> DataLoader:
    return DataLoader(TensorDataset(*map(torch.cat, zip(*data, strict=True))), batch_size=6, shuffle=True)


def state(model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules())
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "places": {name: value.data_ptr() for name, value in model.state_dict().items()},
        "modes": {path: module.training for path, module in modules.items()},
        "attributes": {path: list(vars(module)) for path, module in modules.items()},
        "hooks": {
            path: {key: len(value) for key, value in vars(module).items() if key.endswith("hooks")}
            for path, module in modules.items()
        },
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()},
        "flat": [[id(w) for w in m._flat_weights] for m in modules.values() if isinstance(m, nn.RNNBase)],
        "own": [[id(w) for w in m.parameters()] for m in modules.values() if isinstance(m, nn.RNNBase)],
        "draws": (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),
        "graph": torch.is_grad_enabled(),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def assert_untouched(model: nn.Module, act: Callable[[], Any]) -> None:
    before = state(model)
    act()
    after = state(model)
    for key, value in before.items():
        assert equal(value, after[key]), key


def worn(model: nn.Module) -> nn.Module:
    """A model with statistics, mixed modes, a frozen weight, hooks, and gradients on some of its parameters."""
    first, *_, last = model.parameters()
    first.grad = torch.ones_like(first)
    last.requires_grad_(False)
    modules = list(model.modules())
    modules[-1].train(not modules[-1].training)
    modules[1].register_forward_hook(lambda module, args, output: None)
    return model


@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize("training", [True, False])
def test_a_convolutional_net_is_untouched(name: str, training: bool) -> None:
    model = seeded(lambda: Residual(drop=0.5), dtype=torch.float32)
    for x, _ in images(dtype=torch.float32):
        model(x)
    model = worn(model.train(training))
    assert_untouched(model, lambda: masks(model, saliency(name, shuffling(images(dtype=torch.float32))), 0.2))


@pytest.mark.parametrize("name", [*NEEDY, "synflow"])
@pytest.mark.parametrize("net", ["recurrent", "attention", "tied"])
def test_nets_on_tokens_are_untouched(name: str, net: str) -> None:
    make, data, ones = NETS[net]
    model = worn(seeded(make, dtype=torch.bfloat16))
    model(data[0][0])
    found = saliency(name, data).bound(ones=ones) if name != "synflow" else foresight.synflow((5,), 3, tokens=True)
    assert_untouched(model, lambda: masks(model, found, 0.4))
    copy.deepcopy(model)


def test_a_failure_leaves_no_trace_either() -> None:
    model = worn(seeded(Residual, dtype=torch.float32))

    def fails(output: Tensor, target: Tensor) -> Tensor:
        raise KeyError("loss")

    def act() -> None:
        with pytest.raises(KeyError, match="loss"):
            masks(model, foresight.snip(shuffling(images(dtype=torch.float32)), loss=fails), 0.2)

    assert_untouched(model, act)


@pytest.mark.parametrize("name", NEEDY)
def test_neither_the_global_seed_nor_dropout_matters(name: str) -> None:
    found = []
    for seed, drop in [(0, 0.0), (1, 0.0), (2, 0.9)]:
        model = seeded(lambda drop=drop: Residual(drop=drop))  # type: ignore[misc]
        torch.manual_seed(seed)
        found.append(masks(model, saliency(name, shuffling(images())), 0.2))
        found.append(masks(model, saliency(name, shuffling(images())), 0.2))
    assert all(same(found[0], other) for other in found)


def test_the_seed_decides_what_a_shuffling_loader_gives() -> None:
    model = seeded(Residual)
    data = shuffling(images())
    assert not same(*(masks(model, foresight.snip(data), 0.2, seed=seed) for seed in (0, 1)))


@contextmanager
def half() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, half], ids=["no_grad", "inference", "autocast"]
)
@pytest.mark.parametrize("name", INITS)
def test_contexts_change_nothing(name: str, context: Any) -> None:
    model, data = seeded(Residual, dtype=torch.float32), shuffling(images(dtype=torch.float32))
    wanted = masks(model, saliency(name, data), 0.2)
    with context():
        found = masks(model, saliency(name, data), 0.2)
        assert torch.is_autocast_enabled("cpu") == (context is half)
    assert same(found, wanted)


def test_examples_made_in_inference_mode_serve() -> None:
    model = seeded(Residual)
    with torch.inference_mode():
        data = [(x.clone(), y.clone()) for x, y in images()]
    assert same(masks(model, foresight.grasp(data), 0.2), masks(model, foresight.grasp(images()), 0.2))


@pytest.mark.parametrize("name", INITS)
def test_modes_of_the_model_change_nothing(name: str) -> None:
    model = seeded(lambda: Residual(drop=0.3))
    trained = masks(model.train(), saliency(name, images()), 0.2)
    assert same(trained, masks(model.eval(), saliency(name, images()), 0.2))


@pytest.mark.parametrize("name", INITS)
def test_wrappers_change_nothing(name: str) -> None:
    """A compiled model is scored as the one inside, in eager mode; so is one with a compiled part."""
    model = seeded(Residual)
    wanted = masks(model, saliency(name, images()), 0.2)
    for wrapped in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):  # type: ignore[arg-type]
        assert names(wrapped) == names(model)
        assert same(masks(wrapped, saliency(name, images()), 0.2), wanted)
    compiled, part = copy.deepcopy(model), copy.deepcopy(model)
    compiled.compile(backend="aot_eager")
    part.grouped = torch.compile(part.grouped, backend="aot_eager")
    for changed in (compiled, part):
        assert same(masks(changed, saliency(name, images()), 0.2), wanted)


def test_frozen_weights_are_scored_through_but_not_pruned() -> None:
    model, data = seeded(NETS["mlp"][0]), vectors(6, 3)
    model[2].weight.requires_grad_(False)
    found = masks(model, foresight.snip(data), 0.5)
    assert list(found) == ["0.weight", "4.weight"]
    assert list(masks(model, foresight.synflow(6), 0.5)) == ["0.weight", "4.weight"]
