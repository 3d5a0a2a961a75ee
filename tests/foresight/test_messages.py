"""Bad input: what is wrong is said, before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import foresight, methods
from gossamer.errors import AttachError, ConfigError, DivergedError, TargetError
from gossamer.foresight import Examples, Ones

from .measure import masks
from .nets import NETS, Residual, images, mlp, seeded, vectors


def net() -> nn.Module:
    return seeded(lambda: mlp(6, 8, 3))


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", [foresight.snip, foresight.iter_snip, foresight.force, foresight.grasp])
def test_without_examples(maker: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^(snip|iter-snip|force|grasp) scores weights on examples and has none; pass"
    ):
        masks(net(), maker(), 0.5)


def test_without_a_shape() -> None:
    with pytest.raises(ConfigError, match=r"^synflow sends ones through the network .* pass inputs=, e\.g\."):
        masks(net(), foresight.synflow(), 0.5)


@pytest.mark.parametrize("data", [3, "loader", torch.zeros(3, 3), {"x": 1}])
def test_data_that_is_no_loader(data: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"^data is {type(data).__name__}; expected an iterable of batches such as a"
    ):
        foresight.snip(data)


@pytest.mark.parametrize("argument", ["forward", "loss"])
def test_what_is_no_function(argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{argument} = 'mse' is no function$"):
        Examples([], **{argument: "mse"})  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [torch.zeros(2, 6), (torch.zeros(2, 6),), {"x": torch.zeros(2, 6)}])
def test_a_batch_that_is_no_pair(batch: Any) -> None:
    with pytest.raises(ConfigError, match=r"not a pair \(inputs, target\); give forward=lambda model, batch:"):
        masks(net(), foresight.snip([batch]), 0.5)


def test_an_empty_loader() -> None:
    with pytest.raises(ConfigError, match=r"^the loader of examples has no batches$"):
        masks(net(), foresight.snip([]), 0.5)


def test_a_generator_that_ends() -> None:
    with pytest.raises(
        ConfigError, match=r"^the loader of examples ended and cannot be iterated again; pass a list or"
    ):
        masks(net(), foresight.iter_snip(iter(vectors(6, 3)), 4), 0.5)


@pytest.mark.parametrize("loss", [lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"), lambda o, t: 3.0])
def test_a_loss_that_is_no_number(loss: Any) -> None:
    with pytest.raises(ConfigError, match=r"^the loss of the examples must be one number, a mean over the batch$"):
        masks(net(), foresight.snip(vectors(6, 3), loss=loss), 0.5)


@pytest.mark.parametrize("loss", [lambda o, t: torch.tensor(3.0), lambda o, t: o.detach().sum()])
@pytest.mark.parametrize("maker", [foresight.snip, foresight.grasp])
def test_a_loss_of_something_else(maker: Any, loss: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^the objective does not depend on any weight that is to be sparse: check for"
    ):
        masks(net(), maker(vectors(6, 3), loss=loss), 0.5)


def test_a_loss_that_is_linear_in_the_weights_has_no_gradient_flow() -> None:
    """H is 0: autograd knows no second derivative."""
    with pytest.raises(ConfigError, match=r"^the objective does not depend on any weight"):
        masks(seeded(lambda: nn.Linear(6, 3)), foresight.grasp(vectors(6, 3), loss=lambda o, t: o.sum()), 0.5)


def test_outputs_that_no_temperature_divides() -> None:
    data = [({"x": x}, y) for x, y in vectors(6, 3)]

    def forward(model: Any, batch: Any) -> Any:
        return {"logits": model(batch[0]["x"])}, batch[1]

    def loss(output: Any, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output["logits"], target)

    masks(net(), foresight.snip(data, forward=forward, loss=loss), 0.5)
    with pytest.raises(
        ConfigError, match=r"^the output is dict, not logits that a temperature can divide; give forward="
    ):
        masks(net(), foresight.grasp(data, forward=forward, loss=loss), 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_examples_that_are_not_finite(value: float) -> None:
    data = [(torch.full_like(x, value), y) for x, y in vectors(6, 3)]
    with pytest.raises(
        DivergedError, match=r"^snip: scores of 0\.weight are not finite in round 1 of 1: the weights or"
    ):
        masks(net(), foresight.snip(data), 0.5)


@pytest.mark.parametrize("maker", [lambda: foresight.magnitude(6), lambda: foresight.synflow(6)])
def test_weights_that_are_not_finite(maker: Any) -> None:
    model = seeded(lambda: mlp(6, 8, 8, 3))
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"^(magnitude: scores of 4|synflow: scores of 0)\.weight are not finite"):
        masks(model, maker(), 0.5)


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["abc", (), (3, 0), (3.0, 2), 2.5, (True,), (-1,)])
@pytest.mark.parametrize(
    "maker", [foresight.synflow, foresight.magnitude, lambda inputs: foresight.snip([], inputs=inputs)]
)
def test_what_is_no_shape(maker: Any, inputs: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^inputs = .*expected (the shape|whole sizes) of one example, e\.g\. \(3, 32"
    ):
        maker(inputs)


def test_one_size_is_a_shape() -> None:
    assert foresight.synflow(6) == foresight.synflow((6,)) == foresight.synflow([6])
    assert foresight.synflow(6).ones == Ones((6,))


@pytest.mark.parametrize(
    ("make", "shape", "as_tokens"),
    [
        (Residual, (8, 8), False),
        (Residual, (4, 8, 8), False),
        (lambda: mlp(6, 3), (7,), False),
        (NETS["attention"][0], (5,), False),
        (lambda: nn.Sequential(nn.Embedding(1, 4), nn.Linear(4, 2)), (5,), True),
    ],
)
def test_a_shape_that_the_model_does_not_take(make: Any, shape: tuple[int, ...], as_tokens: bool) -> None:
    with pytest.raises(
        ConfigError, match=r"^the model does not take one example of ones of shape \(.*\); pass its shape"
    ):
        masks(seeded(make), foresight.synflow(shape, tokens=as_tokens), 0.5)


def test_a_model_without_one_tensor_of_outputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            return {"out": self.fc(x)}

    with pytest.raises(ConfigError, match=r"^the model returns dict; its flow needs one tensor of outputs$"):
        masks(seeded(Named), foresight.synflow(6), 0.5)


# -- fields ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
@pytest.mark.parametrize("field", ["rounds", "batches"])
def test_numbers_of_rounds_and_batches(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} = .*: expected a whole number of .*, at least 1$"):
        foresight.iter_snip([], **{field: value})


@pytest.mark.parametrize("field", ["schedule", "scope", "positions"])
def test_words_that_are_none_of_the_choices(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} is 'cubic'; expected one of '"):
        foresight.Saliency(foresight.SynapticFlow(), **{field: "cubic"})


@pytest.mark.parametrize("field", ["revive", "invert", "allow_collapse"])
def test_flags(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}='no': expected True or False$"):
        foresight.Saliency(foresight.SynapticFlow(), **{field: "no"})


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True])
def test_temperatures(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^temperature = .*: expected a finite number above 0, e\.g\. 200$"):
        foresight.grasp([], temperature=value)


@pytest.mark.parametrize("maker", [foresight.snip, foresight.grasp])
def test_modes_of_batch_norm(maker: Any) -> None:
    with pytest.raises(ConfigError, match=r"^batch_norm is 'test'; expected one of 'train', 'eval'$"):
        maker([], batch_norm="test")


# -- models and methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["synflow", 3, methods.static(0.1), foresight.synflow])
def test_what_is_no_first_support(init: Any) -> None:
    with pytest.raises(ConfigError, match=r"^init is .*: expected a Saliency.*, a score or Given\(supports\)$"):
        methods.rigl(0.1, init=init)


def test_a_method_that_starts_dense_has_no_first_support() -> None:
    method = methods.granet(0.1, initial=1.0, init=foresight.synflow(6))
    with pytest.raises(
        ConfigError, match=r"starts dense, so there is no first support for synflow to find; leave init ou"
    ):
        gossamer.sparsify(net(), method, total_steps=10)


def test_a_model_without_values() -> None:
    with torch.device("meta"):
        model = mlp(6, 8, 3)
    for saliency in (foresight.synflow(6), foresight.magnitude(6), foresight.snip(vectors(6, 3))):
        with pytest.raises(AttachError, match=r"^0\.weight is on the meta device and has no values"):
            masks(model, saliency, 0.5)


def test_a_model_without_weights_to_prune() -> None:
    model = net().requires_grad_(False)
    with pytest.raises(TargetError, match=r"match no weight that can be sparse"):
        masks(model, foresight.synflow(6), 0.5)


@pytest.mark.parametrize("density", [0, 1.5, float("nan"), "0.1", None])
def test_densities(density: Any) -> None:
    with pytest.raises(ConfigError, match=r"density"):
        masks(net(), foresight.synflow(6), density)


def test_a_refused_first_support_changes_nothing() -> None:
    model = seeded(Residual, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.full_like(x, torch.nan), y) for x, y in images(dtype=torch.float32)]
    with pytest.raises(DivergedError, match=r"^snip: scores of stem\.weight are not finite"):
        gossamer.sparsify(model, methods.set_(0.1, init=foresight.snip(data)), optimizer, total_steps=9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    gossamer.sparsify(model, methods.set_(0.1), optimizer, total_steps=9)  # nothing was attached
