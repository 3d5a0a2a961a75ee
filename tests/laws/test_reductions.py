"""Law 3: d=1 is dense training, and switched-off rewiring is static training, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

import gossamer
from gossamer import Fix, Method, Regularize, Reset, Zero, methods
from gossamer.topology import Static, scores

from .settings import (
    ELEMENTWISE,
    OPTIMIZERS,
    STEPS,
    assert_same,
    batches,
    cases,
    make_optimizer,
    mlp,
    small_methods,
    sparse_run,
    train_step,
    trained,
    weights,
)

# RigL and SRigL consume their growth steps, see below; DeepR adds noise.
DENSE = [(m, o) for m, o in cases(1.0) if small_methods(1.0)[m].at == "after" and small_methods(1.0)[m].action is None]


@pytest.mark.parametrize(("method", "optimizer"), DENSE)
def test_density_one_is_dense_training(method: str, optimizer: str) -> None:
    assert_same(trained(small_methods(1.0)[method], optimizer), trained(None, optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rigl_at_density_one_is_dense_training_without_the_consumed_steps(optimizer: str) -> None:
    model = mlp()
    optimizers = make_optimizer(optimizer, model)
    stop = 9
    for step, batch in enumerate(batches()):
        if not (step and step % 3 == 0 and step < stop):
            train_step(model, optimizers, batch)
    for build in (methods.rigl, methods.srigl):
        assert_same(trained(build(1.0, every=3, stop=stop), optimizer), weights(model))


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "lbfgs"])
def test_deepr_without_noise_at_density_one_is_dense_training(optimizer: str) -> None:
    """What crosses zero has nowhere to go: it is grown again as it is."""
    assert_same(trained(methods.deepr(1.0, l1=0.0, temperature=0.0), optimizer), trained(None, optimizer))


def static_by_magnitude() -> Method:
    return Method(name="static-magnitude", density=0.3, init=scores.magnitude, rule=Static(), inactive=Zero())


OFF_SWITCHES = {
    "every=inf": methods.rewire(0.3, every=math.inf, exploit=None),
    "z=1": methods.rewire(0.3, exploit=Reset(1)),
    "v=0": methods.rewire(0.3, exploit=Fix(0.0)),
    "beta=1": methods.rewire(0.3, exploit=Regularize(1.0)),
}


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
@pytest.mark.parametrize("switch", OFF_SWITCHES)
def test_rewire_switched_off_is_static(switch: str, optimizer: str) -> None:
    assert_same(trained(OFF_SWITCHES[switch], optimizer, 30), trained(static_by_magnitude(), optimizer, 30))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fraction_zero_is_static(optimizer: str) -> None:
    assert_same(trained(methods.set_(0.3, fraction=0.0, every=2), optimizer), trained(methods.static(0.3), optimizer))
    assert_same(trained(methods.set_(0.3, every=math.inf), optimizer), trained(methods.static(0.3), optimizer))
    assert_same(trained(methods.rigl(0.3, every=math.inf), optimizer), trained(methods.static(0.3), optimizer))


def test_scale_one_on_gradient_or_update_is_the_same_and_zero_differs() -> None:
    def final(scale: float, on: str) -> dict[str, torch.Tensor]:
        return trained(methods.rewire(0.3, scale=scale, scale_on=on, exploit=None), "sgd")

    assert_same(final(1.0, "gradient"), final(1.0, "update"))
    plain = final(0.5, "gradient")
    for name, value in final(0.5, "update").items():  # plain SGD: s on either is the same up to rounding
        torch.testing.assert_close(value, plain[name])


def test_default_of_scale_on_follows_the_optimizer_family() -> None:
    method = methods.rewire(0.3, scale=0.1, exploit=None)
    by_hand = {on: methods.rewire(0.3, scale=0.1, scale_on=on, exploit=None) for on in ("gradient", "update")}
    assert_same(trained(method, "sgd-momentum"), trained(by_hand["gradient"], "sgd-momentum"))
    for adaptive in ("adam", "muon", "rmsprop"):
        assert_same(trained(method, adaptive), trained(by_hand["update"], adaptive))


def test_fix_freezes_the_support_and_empties_inactive_weights() -> None:
    model = mlp()
    with sparse_run(model, methods.rewire(0.3, exploit=Fix(0.5)), "sgd-momentum") as (sparsifier, optimizers):
        frozen = None
        for step, batch in enumerate(batches()):
            train_step(model, optimizers, batch)
            if step >= STEPS // 2:
                masks = {n: s.digest() for n, s in sparsifier.supports.items()}
                assert frozen is None or masks == frozen
                frozen = masks
                for site in sparsifier.sites.values():
                    assert (site.trainable[~site.mask] == 0).all()


def test_lbfgs_is_refused_by_live_methods_and_sparse_adam_always() -> None:
    model = mlp()
    with pytest.raises(gossamer.GossamerError, match="LBFGS evaluates the loss several times"):
        gossamer.sparsify(model, methods.rewire(0.3), torch.optim.LBFGS(model.parameters()))
    for method in (methods.static(0.3), methods.rewire(0.3)):
        with pytest.raises(gossamer.GossamerError, match="SparseAdam steps on sparse gradients only"):
            gossamer.sparsify(model, method, torch.optim.SparseAdam(list(model.parameters())))
