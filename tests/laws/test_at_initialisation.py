"""Methods that prune at initialisation are static training of what their saliency finds; and what `init` takes."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import Given, Method, foresight, methods
from gossamer.errors import ConfigError

from .settings import examples, mlp
from .test_equal_methods import D, assert_same_course, course

DATA, INPUTS = examples((20,)), foresight.Ones((20,))


def at_initialisation(scope: str) -> dict[str, tuple[Method, foresight.Saliency]]:
    """With arguments of which none but the scope is at its default: the method, and what it is to start from."""
    s = foresight
    within = {"scope": scope, "allocation": "uniform", "allow_collapse": True, "inputs": INPUTS}
    return {
        "snip": (
            methods.snip(D, 2, "random", "eval", data=DATA, **within),
            s.snip(DATA, 2, "random", "eval", scope, True, inputs=(20,)),
        ),
        "iter-snip": (
            methods.iter_snip(D, 3, 2, "random", "eval", data=DATA, **within),
            s.iter_snip(DATA, 3, 2, "random", "eval", scope, True, inputs=(20,)),
        ),
        "force": (
            methods.force(D, 3, 2, "random", "eval", data=DATA, **within),
            s.force(DATA, 3, 2, "random", "eval", scope, True, inputs=(20,)),
        ),
        "grasp": (
            methods.grasp(D, 2, "random", 7.0, "eval", data=DATA, **within),
            s.grasp(DATA, 2, "random", 7.0, "eval", scope, True, inputs=(20,)),
        ),
        "synflow": (methods.synflow(D, 5, "random", **within), s.synflow((20,), 5, "random", scope, True)),
        "magnitude": (methods.magnitude(D, "random", **within), s.magnitude((20,), "random", scope, True)),
    }


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", at_initialisation("global"))
def test_it_is_static_training_of_what_is_found(name: str, scope: str) -> None:
    method, first = at_initialisation(scope)[name]
    assert method.name == name
    assert method.init == first
    found = foresight.find(mlp(), first, D, allocation="uniform", seed=3)  # the seed of a sparse run
    run = course(method)
    for init in (first, Given(found)):
        assert_same_course(run, course(methods.static(D, "uniform", init=init)), moves=False)


def test_own_batches_and_losses_come_as_examples() -> None:
    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model(batch["inputs"]), batch["target"]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    torch.manual_seed(0)
    batch = {"inputs": torch.randn(8, 20), "target": torch.randn(8, 4)}
    data = foresight.Examples([batch], forward, loss)
    for name in ("snip", "iter_snip", "force", "grasp"):
        assert getattr(methods, name)(D, data=data).init == getattr(foresight, name)(
            data.loader, forward=forward, loss=loss
        )
    gossamer.sparsify(mlp(), methods.snip(D, data=data)).detach()


def test_inputs_of_whole_numbers() -> None:
    tokens, words = foresight.Ones((7,), tokens=True), nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4))
    assert methods.synflow(D, inputs=(7,), tokens=True).init == foresight.synflow(tokens)
    assert methods.synflow(D, tokens=True).init == foresight.synflow()  # a run fills in both
    for method in (methods.synflow(D, inputs=(7,), tokens=True), methods.magnitude(D, inputs=tokens)):
        sparsifier = gossamer.sparsify(words, method, targets="*")
        assert sparsifier.summary().active == round(D * sparsifier.summary().eligible)
        sparsifier.detach()


TAKE_INIT = [n for n, info in methods.REGISTRY.items() if "init" in inspect.signature(info.build).parameters]


@pytest.mark.parametrize("wrong", [False, 0, "", [], torch.ones(2), True, "snip"], ids=str)
@pytest.mark.parametrize("name", TAKE_INIT)
def test_only_none_leaves_the_first_support_to_the_method(name: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match="init is "):
        methods.REGISTRY[name].build(0.25, init=wrong)
    assert methods.REGISTRY[name].build(0.25, init=None) == methods.REGISTRY[name].build(0.25)
