"""Reductions: a method with certain settings is another method, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import Method, Zero, methods
from gossamer.topology import NM, Clock, Constant, Cosine, DropGrow, Linear, Select, Static, scores

from .settings import assert_same, batches, make_optimizer, mlp, sparse_run, train_step, weights

OPTIMIZERS = ["sgd-momentum", "adamw", "rmsprop"]
D = 0.3


def wide() -> nn.Sequential:
    """Weights of so many entries that half a percent of them is some."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 4))


Course = list[dict[str, Tensor]]


def course(
    method: Method, optimizer: str = "sgd-momentum", steps: int = 24, make: Callable[[], nn.Sequential] = mlp
) -> Course:
    """All parameters, supports and, of live methods, trainable weights, before training and after each step."""
    model = make()
    seen = []
    with sparse_run(model, method, optimizer, total=steps) as (sparsifier, optimizers):
        for batch in [None, *batches((model[0].in_features,), steps)]:  # type: ignore[arg-type]
            if batch is not None:
                train_step(model, optimizers, batch)
            masks = {f"{name}, support": s.mask.clone() for name, s in sparsifier.supports.items()}
            state = sparsifier.state_dict()["trainables"]
            seen.append(weights(model) | masks | {f"{n}, trainable": t.clone() for n, t in state.items()})
    return seen


def assert_same_course(a: Course, b: Course, *, moves: bool = True) -> None:
    for one, other in zip(a, b, strict=True):
        assert_same(one, other)
    assert moves == any_move(a)


def any_move(a: Course) -> bool:
    """Whether a support changed on the way."""
    return any(not torch.equal(a[0][key], now[key]) for now in a for key in now if key.endswith("support"))


def static_by_magnitude(density: float, allocation: str = "uniform") -> Method:
    return Method(name="static-magnitude", density=density, allocation=allocation, init=scores.magnitude, rule=Static())


# -- live methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_rewire_without_exploitation_is_ste(optimizer: str, scope: str) -> None:
    assert_same_course(
        course(methods.ste(D, scope=scope), optimizer), course(methods.rewire(D, exploit=None, scope=scope), optimizer)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sr_ste_without_decay_is_ste(optimizer: str) -> None:
    free = course(methods.sr_ste(D, decay=0.0, group=None), optimizer)
    assert_same_course(free, course(methods.ste(D, allocation="uniform"), optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sr_ste_without_decay_in_groups_is_ste_of_that_structure(optimizer: str) -> None:
    by_hand = replace(methods.ste(0.5, allocation="uniform"), structure=NM(2, 4))
    assert_same_course(course(methods.sr_ste(0.5, decay=0.0), optimizer), course(by_hand, optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_of_a_group_is_dense(optimizer: str) -> None:
    dense = make_optimizer(optimizer, model := mlp())
    for batch in batches(n=24):
        train_step(model, dense, batch)
    last = course(methods.sr_ste(1.0, decay=0.1), optimizer)[-1]
    assert_same({name: last[name] for name in weights(model)}, weights(model))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_regularize_is_sr_ste_where_lr_over_one_minus_momentum_is_one(momentum: float) -> None:
    """Without a loss, an inactive weight shrinks by beta, or lambda lr/(1 - mu), per step; exactly so without momentum.

    With it only in the long run, and to second order in lambda: the characteristic polynomial of
    v' = mu v + lambda w, w' = w - lr v' has the root 1 - lambda + O(lambda^2 mu/(1 - mu)).
    """
    beta, ends = 1e-3, {}
    for name, method in {
        "regularize": methods.rewire(0.5, exploit=gossamer.Regularize(beta), allocation="uniform"),
        "sr-ste": methods.sr_ste(0.5, decay=beta, group=None),
    }.items():
        model = nn.Linear(30, 20).double()
        nn.init.constant_(model.weight, 1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1 - momentum, momentum=momentum)
        sparsifier = gossamer.sparsify(model, method, optimizer)
        site, seen = sparsifier.sites["weight"], []
        for _ in range(200):
            (0 * model.weight).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(site.trainable[~site.mask].mean()))
        assert (site.trainable[site.mask] == 1).all()
        ends[name] = seen
    assert ends["regularize"][-1] == pytest.approx((1 - beta) ** 200)
    for name, seen in ends.items():
        assert 1 - seen[-1] / seen[-2] == pytest.approx(beta, rel=0.01 if momentum else 1e-9), name
    if not momentum:
        assert ends["sr-ste"] == pytest.approx(ends["regularize"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_topkast_that_trains_everything_is_ste(optimizer: str, scope: str) -> None:
    everything = course(methods.topkast(D, backward=1.0, decay=0.0, scope=scope), optimizer)
    assert_same_course(everything, course(methods.ste(D, scope=scope), optimizer))


def test_topkast_that_trains_the_support_only_is_rewire_with_scale_zero_and_not_static() -> None:
    support_only = course(methods.topkast(D, backward=D, decay=0.0), "sgd", 60)
    assert_same_course(support_only, course(methods.rewire(D, scale=0.0, exploit=None), "sgd", 60))
    static = course(static_by_magnitude(D, "erk"), "sgd", 60)
    assert not torch.equal(static[-1]["0.weight"], support_only[-1]["0.weight"])


def test_topkast_leaves_alone_what_it_does_not_train() -> None:
    """Momentum and weight decay would move it; section 3.6: entries outside B are constant, A is part of B."""
    model, method = mlp(), methods.topkast(D, every=3, decay=0.01, allocation="uniform")
    with sparse_run(model, method, "sgd-momentum") as (sparsifier, optimizers):
        wanted = sparsifier.method.reach_counts({n: s.shape for n, s in sparsifier.sites.items()}, 0)
        for batch in batches():
            before = {n: (s.traits.reach, s.trainable.clone()) for n, s in sparsifier.sites.items()}
            train_step(model, optimizers, batch)
            for name, site in sparsifier.sites.items():
                reach, values = before[name]
                assert torch.equal(site.trainable[~reach], values[~reach])
                assert (site.trainable[reach] != values[reach]).float().mean() > 0.9
                assert (site.traits.reach | ~site.mask).all()
                assert int(site.traits.reach.sum()) == wanted[name] > sparsifier.supports[name].count


# -- drop and grow -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rigl_with_random_growth_after_the_update_is_plain_set(optimizer: str) -> None:
    rigl = methods.rigl(D, fraction=Linear(0.4), every=2, stop=1.0)
    by_hand = replace(rigl, rule=DropGrow(scores.magnitude, scores.random, Linear(0.4)), at="after")
    plain = methods.set_(D, fraction=0.4, every=2, split_signs=False)
    assert_same_course(course(by_hand, optimizer), course(plain, optimizer))


@pytest.mark.parametrize("build", [methods.rigl_itop, methods.set_itop])
def test_itop_that_drops_nothing_is_static(build: Callable[..., Method]) -> None:
    nothing = course(build(0.5, fraction=0.0, every=2), make=wide)
    assert_same_course(nothing, course(methods.static(0.5), make=wide), moves=False)


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "muon"])
def test_snfs_without_reallocation_is_drop_and_grow_by_momentum_per_layer(optimizer: str) -> None:
    by_hand = Method(
        name="by hand",
        density=D,
        allocation="uniform",
        init=scores.random,
        rule=DropGrow(scores.magnitude, scores.momentum, Cosine(0.4, 0.005)),
        clock=Clock(every=3, stop=1.0),
        inactive=Zero(slots="keep"),
    )
    assert_same_course(
        course(methods.snfs(D, fraction=0.4, every=3, reallocate=False), optimizer), course(by_hand, optimizer)
    )


def test_free_reallocation_is_not_the_same() -> None:
    fixed, free = (course(methods.snfs(D, every=3, reallocate=r), "adamw")[-1] for r in (False, True))
    assert not torch.equal(fixed["0.weight, support"], free["0.weight, support"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_granet_that_prunes_nothing_is_rigl_itop(optimizer: str) -> None:
    granet = methods.granet(D, initial=D, every=3, prune_until=18)
    assert_same_course(course(granet, optimizer), course(methods.rigl_itop(D, every=3), optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_granet_that_regrows_nothing_is_global_gmp(optimizer: str) -> None:
    granet = methods.granet(D, initial=1.0, fraction=0.0, every=3, prune_until=18)
    gmp = methods.gmp(D, every=3, start=0, stop=18, scope="global", allocation="erk")
    assert_same_course(course(granet, optimizer), course(gmp, optimizer))
    assert_same_course(course(granet, make=wide), course(gmp, make=wide))


# -- dense to sparse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 0.0, 0.01])
def test_one_shot_before_training_is_static_by_magnitude(at: float) -> None:
    pruned = course(methods.one_shot(D, at=at, scope="layer"))
    assert_same_course(pruned, course(static_by_magnitude(D)), moves=False)
    over_all = replace(static_by_magnitude(D), scope="global")
    assert_same_course(course(methods.one_shot(D, at=at)), course(over_all), moves=False)


def test_gmp_from_the_final_density_is_static_by_magnitude() -> None:
    assert_same_course(course(methods.gmp(D, initial=D, every=2)), course(static_by_magnitude(D)), moves=False)


def test_one_shot_is_dense_before_and_a_selection_of_the_dense_weights_after() -> None:
    dense = course(methods.static(1.0))
    pruned = course(methods.one_shot(D, at=10, scope="layer"))
    for now, expected in zip(pruned[:10], dense[:10], strict=True):
        assert_same(now, expected)
    for name in ("0.weight", "3.weight", "5.weight"):
        mask = pruned[10][f"{name}, support"]
        assert torch.equal(pruned[10][name], torch.where(mask, dense[10][name], 0.0))
        assert pruned[10][name][mask].abs().min() >= dense[10][name][~mask].abs().max()
        assert torch.equal(mask, pruned[-1][f"{name}, support"])


# -- no schedule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_deepr_without_noise_and_crossings_is_static_training(scope: str) -> None:
    """Plain SGD with a rate so small that nothing crosses zero, a pull of 0, T = 0."""
    ends = []
    for method in (methods.deepr(D, l1=0.0, temperature=0.0, scope=scope), methods.static(D, "uniform")):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=24, seed=3)
        for site in sparsifier.sites.values():  # away from zero
            active = site.parameter.detach() != 0
            site.parameter.data.add_(active * 0.1 * site.parameter.detach().sign())
        for batch in batches(n=24):
            train_step(model, [optimizer], batch)
        ends.append(weights(model))
    assert_same(*ends)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruning_by_magnitude_is_drop_and_grow_with_nothing_to_grow(optimizer: str) -> None:
    select = Method(
        name="select",
        density=Linear(0.8, 0.2, end=20),
        allocation="uniform",
        init=scores.random,
        rule=Select(),
        clock=Clock(every=2),
    )
    drop = replace(select, rule=DropGrow(scores.magnitude, scores.random, Constant(0.0)))
    assert_same_course(course(select, optimizer), course(drop, optimizer))
