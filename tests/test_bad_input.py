"""Mistakes are one-line errors of our own, raised before anything is touched, that name the cause and the mend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import Fix, Given, Live, Method, Regularize, Reset, Zero, methods
from gossamer.reparametrise import Learned
from gossamer.topology import (
    NM,
    Clock,
    Constant,
    FanIn,
    Linear,
    scores,
)

from .laws.settings import mlp, weights


def fails(match: str, build: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(gossamer.GossamerError) as error:
        build(*args, **kwargs)
    message = str(error.value)
    assert match in message, message
    assert "\n" not in message


BAD_DENSITIES = [0, 0.0, 1.5, -0.1, math.nan, math.inf, True, "0.1", None]


@pytest.mark.parametrize("density", BAD_DENSITIES)
@pytest.mark.parametrize("name", methods.REGISTRY)
def test_density_that_is_no_fraction(name: str, density: Any) -> None:
    build = methods.REGISTRY[name].build
    if density is None and isinstance(build(0.5), Learned):
        assert build(None).density is None, "learned methods may have no density"
    else:
        fails("density", build, density)


@pytest.mark.parametrize("density", BAD_DENSITIES)
def test_other_densities_that_are_no_fraction(density: Any) -> None:
    for build in (methods.gmp, methods.granet):
        fails("density", build, 0.1, initial=density)
    if density is not None:
        fails("density", methods.topkast, 0.1, backward=density)


def test_a_percentage_is_recognised() -> None:
    fails("for 10 percent write 0.1", methods.rigl, 10)


def test_unknown_names_come_with_the_nearest_ones() -> None:
    fails("did you mean 'rigl'", methods.find, "rigle")
    fails("did you mean 'erk'", methods.static, 0.1, allocation="erkk")
    fails("expected one of 'layer', 'global'", methods.rewire, 0.1, scope="model")
    fails("expected one of 'gradient', 'update'", methods.rewire, 0.1, scale_on="weights")
    fails("expected one of 'neutral', 'zero'", methods.set_, 0.1, newborn="random")


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Reset(0), "z, a whole number of optimizer steps"),
        (lambda: Reset(2.5), "z, a whole number of optimizer steps"),  # type: ignore[arg-type]
        (lambda: Fix(1.5), "v, a fraction of training"),
        (lambda: Fix(math.nan), "v, a fraction of training"),
        (lambda: Regularize(-0.1), "beta, the fraction removed per step"),
        (lambda: methods.rewire(0.1, scale=2.0), "s, the share of the gradient"),
        (lambda: methods.rewire(0.1, scale=math.nan), "s, the share of the gradient"),
        (lambda: methods.rewire(0.1, exploit="reset"), "expected gossamer.Reset(z)"),  # type: ignore[arg-type]
        (lambda: methods.rewire(0.1, every=0), "every"),
        (lambda: methods.rigl(0.1, every=-5), "every"),
        (lambda: methods.rigl(0.1, stop=1.5), "stop"),
        (lambda: methods.rigl(0.1, fraction=-0.3), "fraction"),
        (lambda: methods.set_(0.1, fraction=30), "fraction"),
        (lambda: methods.set_(0.1, newborn_std=-1.0), "newborn_std=-1.0"),
        (lambda: methods.set_(0.1, newborn_std=math.nan), "newborn_std=nan"),
        (lambda: methods.set_(0.1, grace=-2), "grace"),
        (lambda: methods.set_itop(0.1, fraction=1.5), "fraction"),
        (lambda: methods.rigl_itop(0.1, fraction=-0.5), "fraction"),
        (lambda: methods.snfs(0.1, fraction=2), "fraction"),
        (lambda: methods.granet(0.1, fraction=math.nan), "must be a finite number"),
        (lambda: methods.gmp(0.5, initial=0.3), "pruning starts from this density"),
        (lambda: methods.gmp(0.5, start=0.8, stop=0.5), "cannot end before it starts"),
        (lambda: methods.one_shot(0.5, at=1.5), "a fraction of training"),
        (lambda: methods.one_shot(0.5, at=-3), "int >= 0"),
        (lambda: methods.deepr(0.1, l1=-1e-5), "alpha, the pull towards zero"),
        (lambda: methods.deepr(0.1, temperature=math.inf), "T, the strength of the noise"),
        (lambda: methods.dsr(0.1, target=0), "target = 0"),
        (lambda: methods.dsr(0.1, target=1.5), "a share of the active ones"),
        (lambda: methods.dsr(0.1, threshold=0.0), "a threshold above 0"),
        (lambda: methods.dsr(0.1, tolerance=1.0), "a tolerance in [0, 1)"),
        (lambda: methods.dsr(0.1, double_at=(0.5, 2.5)), "double_at"),
        (lambda: methods.srigl(0.1, min_salient=1.5), "min_salient = 1.5"),
        (lambda: methods.sr_ste(0.5, decay=-1.0), "decay=-1.0"),
        (lambda: methods.sr_ste(0.3), "1.2 weights, no whole number"),
        (lambda: methods.sr_ste(0.1, group=4), "use another group size"),
        (lambda: methods.topkast(0.3, backward=0.2), "it cannot be below 0.3"),
        (lambda: methods.topkast(0.3, decay=-1.0), "lambda"),
        (lambda: NM(3, 2), "1 <= n <= m"),
        (lambda: NM(0, 4), "1 <= n <= m"),
        (lambda: NM(2.0, 4), "1 <= n <= m"),  # type: ignore[arg-type]
        (lambda: Live(reach=0.5, scale=0.5), "use scale=1"),
    ],
)
def test_arguments_out_of_range(build: Any, match: str) -> None:
    fails(match, build)


def composed(**parts: Any) -> Method:
    return Method(**{"name": "mine", "density": 0.1, "init": scores.random, **parts})


def test_total_steps_is_asked_for_and_checked() -> None:
    fails("needs total_steps", gossamer.sparsify, mlp(), methods.rigl(0.3))
    fails("needs total_steps", gossamer.sparsify, mlp(), methods.rewire(0.3, exploit=Fix(0.5)))
    fails("total_steps='20'", gossamer.sparsify, mlp(), methods.rigl(0.3), total_steps="20")
    fails("seed=None", gossamer.sparsify, mlp(), methods.static(0.3), seed=None)
    fails("total_steps=0", gossamer.sparsify, mlp(), methods.rigl(0.3), total_steps=0)
    gossamer.sparsify(mlp(), methods.rewire(0.3))


def test_a_period_of_one_step_would_train_nothing() -> None:
    fails("nothing would train", gossamer.sparsify, mlp(), methods.rigl(0.3, every=1), total_steps=100)
    fails("0.025 of 20 steps is 1 step", gossamer.sparsify, mlp(), methods.rigl(0.3, every=0.025), total_steps=20)


def test_attaching_mistakes_leave_the_model_as_it_was() -> None:
    model = mlp()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = torch.optim.SGD(model[0].parameters(), lr=0.1)
    fails("3.weight is in no optimizer", gossamer.sparsify, model, methods.static(0.3), half)
    fails("in 2 optimizers", gossamer.sparsify, model, methods.static(0.3), [optimizer, half])
    fails("expected a torch.optim.Optimizer", gossamer.sparsify, model, methods.static(0.3), "sgd")
    fails("no optimizer was given", gossamer.sparsify, model, methods.static(0.3), [])
    fails("expected a Method", gossamer.sparsify, model, "rigl", optimizer)
    fails("smallest feasible density", gossamer.sparsify, model, methods.static(0.001), optimizer)
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]), name
    sparsifier = gossamer.sparsify(model, methods.static(0.3), optimizer)
    fails("0.weight is sparsified already", gossamer.sparsify, model, methods.static(0.3), optimizer)
    fails("attached to that optimizer already", sparsifier.attach, optimizer)
    sparsifier.detach()
    fails("this Sparsifier was detached", sparsifier.attach, optimizer)


def test_given_supports_must_fit() -> None:
    model = nn.Linear(4, 3)
    mask = torch.ones(3, 4) > 0
    fails("Given supports lack weight", gossamer.sparsify, model, composed(init=Given({"other": mask})))
    fails("has shape (4, 3), the weight has (3, 4)", gossamer.sparsify, model, composed(init=Given({"weight": mask.T})))


def test_wrong_counts_in_given_supports() -> None:
    model = nn.Linear(4, 3)
    few = torch.zeros(3, 4, dtype=torch.bool)
    few[0, :2] = True
    sparsifier = gossamer.sparsify(model, composed(density=2 / 12, init=Given({"weight": few})))
    assert sparsifier.supports["weight"].count == 2
    half = composed(density=0.5, init=Given({"weight": few}))
    fails("hold 2 of 12 entries, the density makes it 6; pass density=2/12", gossamer.sparsify, nn.Linear(4, 3), half)
    uneven = Given({"weight": torch.arange(12).view(3, 4) < 5})
    rows = composed(density=5 / 12, init=uneven, structure=FanIn(exact=True))
    fails("has not the method's structure, fan_in", gossamer.sparsify, nn.Linear(4, 3), rows)


def test_counts_of_given_supports_stand_instead_of_the_allocation() -> None:
    counts = {"0.weight": 5, "3.weight": 192, "5.weight": 0}
    shapes = {"0.weight": (16, 20), "3.weight": (12, 16), "5.weight": (4, 12)}
    masks = {name: (torch.arange(math.prod(shape)) < counts[name]).view(shape) for name, shape in shapes.items()}
    method = composed(density=197 / 560, allocation="uniform", init=Given(masks))
    sparsifier = gossamer.sparsify(mlp(), method)
    assert {name: support.count for name, support in sparsifier.supports.items()} == counts


def test_diverged_scores_name_the_weight() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, methods.rewire(0.3), optimizer)
    sparsifier.sites["3.weight"].trainable[0, 0] = torch.nan  # type: ignore[index]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    fails("rewiring 3.weight at step 1", optimizer.step)


def test_flattening_wrappers_are_refused_with_a_reason() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    class DeepSpeedEngine(nn.Module):
        pass

    fails("use fully_shard (FSDP2)", gossamer.sparsify, FullyShardedDataParallel(), methods.static(0.5))
    fails("DeepSpeed flattens", gossamer.sparsify, DeepSpeedEngine(), methods.static(0.5))


def test_a_fraction_schedule_out_of_range_is_noticed() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fails("1.5", methods.set_, 0.3, fraction=Constant(1.5))
    rising = Linear(0.5, 1.5, end=1)
    gossamer.sparsify(model, methods.set_(0.3, fraction=rising, every=1), optimizer, total_steps=9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    fails("1.5", optimizer.step)


def test_clock_needs_sensible_times() -> None:
    fails("every", Clock, every=0)
    fails("every", Clock, every=1.5)
    fails("every", Clock, every="often")


def test_zero_policy_choices() -> None:
    fails("expected one of 'zero', 'keep'", Zero, slots="drop")
