"""Compositions that cannot work are refused when composed; optimizers that a method cannot use, when attached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import Live, Method, methods
from gossamer.foresight import Saliency
from gossamer.method import Langevin
from gossamer.topology import (
    NM,
    Below,
    Constant,
    DropGrow,
    FanIn,
    FanInDropGrow,
    PruneThen,
    Select,
    mean_momentum,
    own,
    scores,
)

from .laws.settings import NO_MOMENTUM, OPTIMIZERS, assert_same, batches, make_optimizer, mlp, train_step, weights
from .test_bad_input import composed, fails

GROW = DropGrow(scores.magnitude, scores.random, 0.3)
BY_GRADIENT = DropGrow(scores.magnitude, scores.gradient, 0.3)
BY_MOMENTUM = DropGrow(scores.magnitude, scores.momentum, 0.3)
BELOW = DropGrow(scores.magnitude, scores.random, threshold=Below(0.1))


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"at": "replace", "rule": GROW}, 'does not look at gradients; use at="after"'),
        ({"at": "replace", "rule": Select()}, 'does not look at gradients; use at="after"'),
        ({"at": "replace", "rule": BY_GRADIENT, "inactive": Live()}, "inactive weights that are zero"),
        ({"rule": GROW, "inactive": Live()}, "use Select or Zero"),
        ({"rule": PruneThen(GROW), "inactive": Live()}, "use Select or Zero"),
        ({"rule": BY_MOMENTUM}, 'inactive=Zero(slots="keep")'),
        ({"rule": Select(scores.momentum), "inactive": Live()}, 'inactive=Zero(slots="keep")'),
        ({"rule": replace(GROW, quota=mean_momentum), "scope": "global"}, 'inactive=Zero(slots="keep")'),
        ({"rule": Select(), "inactive": Live(), "action": Langevin()}, "Langevin acts on the active weights"),
        ({"rule": Select(), "inactive": Live(reach=0.05)}, "it cannot be below 0.1"),
        ({"rule": Select(), "structure": FanIn(), "scope": "global"}, "fan_in is a structure of one weight"),
        ({"rule": Select(), "structure": NM(2, 4), "scope": "global"}, "2:4 is a structure of one weight"),
        ({"rule": replace(GROW, quota=own), "structure": FanIn(), "scope": "global"}, "a structure of one weight"),
        ({"rule": replace(GROW, quota=own), "structure": NM(2, 4), "scope": "global"}, "a structure of one weight"),
        ({"rule": replace(GROW, quota=own)}, 'a quota moves entries between weights; use scope="global"'),
        ({"rule": BY_GRADIENT, "structure": NM(2, 4)}, "nothing can be dropped first; use Select"),
        ({"rule": FanInDropGrow(BY_GRADIENT)}, "use structure=FanIn(exact=True)"),
        ({"rule": FanInDropGrow(BY_GRADIENT), "structure": FanIn()}, "use structure=FanIn(exact=True)"),
        ({"rule": BELOW, "structure": FanIn()}, "what a threshold leaves has no structure; use a fraction with fan_in"),
    ],
)
def test_compositions_that_cannot_work(parts: dict[str, Any], match: str) -> None:
    fails(match, composed, **parts)
    fails("method 'mine' cannot be composed: ", composed, **parts)


def test_a_rule_of_each_weight_has_no_quota_and_no_threshold() -> None:
    fails("leave quota and threshold out", PruneThen, BELOW)
    fails("leave quota and threshold out", PruneThen, replace(GROW, quota=own))


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (methods.one_shot(0.3, at=50), "would end at density 1, not 0.3: it rewires for the last time at step 0 of 20"),
        (methods.gmp(0.3, every=2, stop=50), "would end at density"),
        (methods.granet(0.3, every=2, prune_until=50), "would end at density"),
        (methods.granet(0.3, every=2, stop=0.5, prune_until=0.7), "would end at density"),
    ],
)
def test_a_density_that_is_never_reached(method: Method, match: str) -> None:
    fails(match, gossamer.sparsify, mlp(), method, total_steps=20)


def test_after_the_last_update_granet_only_prunes() -> None:
    model = mlp()
    method = methods.granet(0.3, fraction=Constant(0.5), every=5, prune_until=1.0)
    optimizers = make_optimizer("sgd-momentum", model)
    sparsifier = gossamer.sparsify(model, method, optimizers, total_steps=20)
    for batch in batches(n=20):
        train_step(model, optimizers, batch)
    assert sum(int(p.count_nonzero()) for n, p in model.named_parameters() if n in sparsifier.supports) == sum(
        support.count for support in sparsifier.supports.values()
    ), "no active weight is an untrained zero"


def test_arguments_that_only_the_command_line_would_check() -> None:
    fails("expected one of 'momentum', 'random'", methods.snfs, 0.3, grow="gradient")
    fails("expected one of 'magnitude', 'momentum'", methods.snfs, 0.3, drop="gradient")
    fails("double_at = 0.5: expected a tuple of times", methods.dsr, 0.3, double_at=0.5)


NO_MOMENTUM_REFUSED = [
    ("SGD", {}),
    ("RMSprop", {}),
    ("Adagrad", {}),
    ("Adadelta", {}),
    ("Rprop", {}),
    ("ASGD", {}),
    ("Adafactor", {}),
    ("LBFGS", {}),
]


@pytest.mark.parametrize(("kind", "arguments"), NO_MOMENTUM_REFUSED)
@pytest.mark.parametrize("build", [methods.snfs, lambda d: methods.snfs(d, grow="random")])
def test_momentum_methods_are_refused_where_there_is_no_momentum(build: Any, kind: str, arguments: Any) -> None:
    model = mlp()
    before = weights(model)
    optimizer = getattr(torch.optim, kind)(model.parameters(), **arguments)
    message = f"looks at the momentum of 0.weight, but {kind} keeps none"
    fails(message, gossamer.sparsify, model, build(0.3), optimizer, total_steps=10)
    assert_same(before, weights(model))
    sparsifier = gossamer.sparsify(model, build(0.3), total_steps=10)
    fails(message, sparsifier.attach, optimizer)


def test_the_other_optimizers_have_a_momentum() -> None:
    """Exactly those that are refused keep none: the others run, and a parameter group without one is seen."""
    refused = {name for name in OPTIMIZERS if name in NO_MOMENTUM}
    assert {OPTIMIZERS[name][0] for name in refused} == {k for k, _ in NO_MOMENTUM_REFUSED} - {"RMSprop"}
    for name in OPTIMIZERS.keys() - refused:
        model = mlp()
        gossamer.sparsify(model, methods.snfs(0.3), make_optimizer(name, model), total_steps=10).detach()
    model = mlp()
    groups = [{"params": model[0].parameters(), "momentum": 0.0}, {"params": model[3:].parameters()}]
    rest = torch.optim.SGD([*groups, {"params": model[1].parameters()}], lr=0.1, momentum=0.9)
    fails("momentum of 0.weight, but SGD keeps none", gossamer.sparsify, model, methods.snfs(0.3), rest, total_steps=9)


class Plain(torch.optim.Optimizer):
    """An optimizer of somebody else's, of which nothing is known, without any slot."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(0.1 * parameter.grad.sign())


class Lion(Plain):
    """The same with a first moment."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    first = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                    first.mul_(0.9).add_(parameter.grad, alpha=0.1)
                    parameter.data.sub_(0.01 * first.sign())


def test_unknown_optimizers_are_judged_by_what_they_hold() -> None:
    for kind in (Plain, Lion):
        model = mlp()
        optimizer = kind(model.parameters(), {})
        sparsifier = gossamer.sparsify(model, methods.snfs(0.3, every=2), optimizer, total_steps=10)
        data = batches(n=4)
        train_step(model, [optimizer], data[0])
        if kind is Plain:
            fails("momentum of 0.weight, but Plain keeps none", train_step, model, [optimizer], data[1])
        else:
            before = sparsifier.supports["0.weight"]
            for batch in data[1:]:
                train_step(model, [optimizer], batch)
            assert sparsifier.supports["0.weight"] != before
        for site in sparsifier.sites.values():
            assert (site.parameter[~site.mask] == 0).all()


def test_a_weight_without_a_gradient_has_momentum_zero() -> None:
    """A layer that takes no part must not be mistaken for an optimizer without momentum."""
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    for build in (torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)):
        optimizer = build(model.parameters())
        sparsifier = gossamer.sparsify(model, methods.snfs(0.3, every=1), optimizer, total_steps=10)
        for _ in range(4):
            optimizer.zero_grad()
            model[0](torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
        assert sum(s.count for s in sparsifier.supports.values()) == round(0.3 * 128)
        sparsifier.detach()


def test_structures_that_do_not_fit_a_weight_are_refused_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    before = weights(model)
    fails("0.weight (4, 6): 4 does not divide its input dimension 6", gossamer.sparsify, model, methods.sr_ste(0.5))
    fails("use density=0.5 and allocation='uniform'", gossamer.sparsify, mlp(), methods.sr_ste(0.5, allocation="erk"))
    assert_same(before, weights(model))


@pytest.mark.parametrize("name", [n for n, info in methods.REGISTRY.items() if isinstance(info.build(0.5), Method)])
def test_an_infeasible_density_is_refused_before_anything_changes(name: str) -> None:
    """Section 11, test 14: fewer entries than weights. Dense-to-sparse methods see it when they begin, too."""
    model = mlp()
    before = weights(model)
    if name == "sr-ste":
        fails("no whole number from 1", methods.sr_ste, 0.001)
        return
    build = methods.REGISTRY[name].build
    scored = isinstance(build(0.5).init, Saliency)  # ranking all weights together, fewer entries than weights may do
    method = build(0.001, scope="layer") if scored else build(0.001)
    fails("smallest feasible density", gossamer.sparsify, model, method, total_steps=100)
    assert_same(before, weights(model))
