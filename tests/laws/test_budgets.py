"""Budgets: exact after each of 200 rewirings of every method, and as the density schedule says at its ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer import Method, methods
from gossamer.topology import Clock, Constant, DropGrow, scores

from .settings import batches, mlp, needs_momentum, sparse_run, train_step

D = 0.3
ALWAYS: dict[str, Callable[[], Method]] = {
    "set": lambda: methods.set_(D, Constant(0.3), every=1),
    "set-unsigned": lambda: methods.set_(D, Constant(0.3), every=1, split_signs=False, grace=3),
    "set-drawn": lambda: methods.set_(D, Constant(0.3), every=1, newborn_std=0.1),
    "set-itop": lambda: methods.set_itop(D, Constant(1.0), every=1),
    "rigl": lambda: methods.rigl(D, Constant(0.5), every=2, stop=1.0),
    "rigl-global": lambda: methods.rigl(D, Constant(0.9), every=2, stop=1.0, scope="global", grace=5),
    "rigl-itop": lambda: methods.rigl_itop(D, Constant(0.5), every=1),
    "deepr": lambda: methods.deepr(D, l1=0.5, temperature=1e-2),
    "deepr-global": lambda: methods.deepr(D, l1=0.5, temperature=1e-2, scope="global"),
    "dsr": lambda: methods.dsr(D, every=1, double_at=(), target=0.5, threshold=0.1),
    "dsr-fixed": lambda: methods.dsr(D, every=1, double_at=(), target=30, reallocate=False, grace=4),
    "snfs": lambda: methods.snfs(D, Constant(0.5), every=1),
    "snfs-random": lambda: methods.snfs(D, Constant(0.9), every=1, grow="random", drop="momentum"),
    "srigl": lambda: methods.srigl(D, Constant(0.5), every=2, stop=1.0),
    "granet": lambda: methods.granet(D, fraction=Constant(0.5), every=1),
    "gmp": lambda: methods.gmp(D, every=1),
    "gmp-global": lambda: methods.gmp(D, every=1, scope="global"),
    "ste": lambda: methods.ste(D),
    "ste-global": lambda: methods.ste(D, scope="global"),
    "sr-ste": lambda: methods.sr_ste(0.5, group=2),
    "topkast": lambda: methods.topkast(D),
    "topkast-global": lambda: methods.topkast(D, scope="global"),
    "rewire": lambda: methods.rewire(D, exploit=gossamer.Reset(3)),
}


def lattice(model: torch.nn.Module) -> None:
    """Weights that are multiples of .25: exact zeros and ties everywhere."""
    for parameter in model.parameters():
        parameter.data.mul_(8).round_().div_(4)


@pytest.mark.parametrize("name", ALWAYS)
def test_the_budget_is_exact_after_each_of_200_rewirings(name: str) -> None:
    """Reference page, section 11, test 1: gradients are -1, 0 or 1, so weights stay on a lattice where nothing adds."""
    method, model = ALWAYS[name](), mlp()
    lattice(model)
    steps = 404 if method.at == "replace" else 204
    momentum = 0.5 if needs_momentum(method) else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=momentum)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=steps, seed=1)
    shapes = {n: site.shape for n, site in sparsifier.sites.items()}
    chosen: list[int] = []
    sparsifier.watch(lambda step, before, after: chosen.append(step))
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randint(-1, 2, parameter.shape, generator=generator).float()
        optimizer.step()
        counts = sparsifier.method.counts(shapes, chosen[-1] if chosen else 0)
        held = {n: int(site.mask.sum()) for n, site in sparsifier.sites.items()}
        assert min(held.values()) >= 1
        if method.budget == "each" and name != "gmp":
            assert held == counts
        elif method.budget == "at most":  # whole neurons are off, the others share the count evenly
            for n, site in sparsifier.sites.items():
                fan_ins = [fan_in for fan_in in site.mask.flatten(1).sum(1).tolist() if fan_in]
                assert fan_ins == [counts[n] // len(fan_ins)] * len(fan_ins)
                assert held[n] == len(fan_ins) * (counts[n] // len(fan_ins))
        else:
            assert sum(held.values()) == sum(counts.values())
    assert len(chosen) >= (150 if name.startswith(("gmp", "deepr", "dsr")) else 200)


def rewirings(method: Method, optimizer: str = "sgd-momentum", steps: int = 24) -> list[tuple[int, dict[str, Tensor]]]:
    """(step, masks) at the start and after every rewiring."""
    model, seen = mlp(), []
    with sparse_run(model, method, optimizer, total=steps) as (sparsifier, optimizers):
        seen.append((0, {n: s.mask.clone() for n, s in sparsifier.supports.items()}))
        sparsifier.watch(lambda step, before, after: seen.append((step, {n: m.clone() for n, m in after.items()})))
        for batch in batches(n=steps):
            train_step(model, optimizers, batch)
    return seen


def held(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


SIZE = 20 * 16 + 16 * 12 + 12 * 4


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("every", [1, 2, 5, 7, 24])
def test_gradual_pruning_is_nested_and_ends_at_its_density_exactly(every: int, scope: str) -> None:
    """Also when the period does not divide the time; and never gives back what it took."""
    seen = rewirings(methods.gmp(0.13, every=every, start=3, stop=20, scope=scope))
    assert seen[0][0] == 0
    assert held(seen[0][1]) == SIZE
    assert seen[-1][0] == 20
    assert held(seen[-1][1]) == round(0.13 * SIZE)
    for (_, before), (_, after) in pairwise(seen):
        assert all(bool((before[name] | ~after[name]).all()) for name in after)
    cubic = {step: 0.13 + 0.87 * (1 - (step - 3) / 17) ** 3 for step, _ in seen[1:]}
    assert all(held(masks) == round(cubic[step] * SIZE) for step, masks in seen[1:])


@pytest.mark.parametrize("every", [1, 2, 5, 7, 24])
@pytest.mark.parametrize("prune_until", [12, 0.7, 15])
def test_granet_reaches_its_density_exactly(every: int, prune_until: float) -> None:
    seen = rewirings(methods.granet(0.13, initial=0.5, every=every, prune_until=prune_until))
    assert held(seen[0][1]) == round(0.5 * SIZE)
    totals = [held(masks) for _, masks in seen]
    assert totals == sorted(totals, reverse=True)
    end = prune_until if isinstance(prune_until, int) else round(prune_until * 24)
    assert all(held(masks) == round(0.13 * SIZE) for step, masks in seen if step >= end)
    assert seen[-1][0] >= end


@pytest.mark.parametrize(("at", "step"), [(7, 7), (0.5, 12), (0.3, 7), (23, 23), (1.0, 24), (24, 24)])
def test_one_shot_prunes_once(at: float, step: int) -> None:
    seen = rewirings(methods.one_shot(0.2, at=at))
    assert [when for when, _ in seen] == [0, step]
    assert [held(masks) for _, masks in seen] == [SIZE, round(0.2 * SIZE)]


def test_fractions_end_where_their_schedule_ends() -> None:
    for method, end in ((methods.rigl(D, 0.5), 0.75), (methods.set_(D, 0.5), 1.0), (methods.srigl(D, 0.5), 0.75)):
        rule = method.resolve(1000).rule
        schedule = getattr(rule, "base", rule).fraction
        assert (schedule(0), schedule(round(1000 * end)), schedule(1000)) == (0.5, 0.0, 0.0)
    for build in (methods.rigl_itop, methods.set_itop, methods.snfs):
        schedule = build(D).resolve(1000).rule.fraction  # type: ignore[attr-defined]
        assert (schedule(0), schedule(1000)) == (0.5, 0.005)
        lower = build(D, 0.001).resolve(1000).rule.fraction  # type: ignore[attr-defined]
        assert (lower(0), lower(500), lower(1000)) == (0.001, 0.001, 0.001), "never rises"


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_asked_for_a_share_dropped_exactly_that(fraction: float) -> None:
    """Of every weight at every rewiring, under a method whose dropped entries cannot come back at once."""
    method = Method(
        name="mine",
        density=D,
        allocation="uniform",
        init=scores.random,
        rule=DropGrow(scores.magnitude, scores.random, fraction, revive=False),
        clock=Clock(every=1),
    )
    model, seen = mlp(), []

    def note(step: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        for name in before:
            n = int(before[name].sum())
            seen.append((math.floor(fraction * n), int((before[name] & ~after[name]).sum()), int(after[name].sum()), n))

    with sparse_run(model, method, "adamw") as (sparsifier, optimizers):
        sparsifier.watch(note)
        for batch in batches():
            train_step(model, optimizers, batch)
    assert len(seen) == 3 * 11
    assert all(wanted == dropped and now == then for wanted, dropped, now, then in seen)


def test_an_allocation_holds_at_first_even_where_weights_then_compete() -> None:
    """Random numbers do not compete: a global scope must not overrule the allocation."""
    for method in (methods.granet(D, initial=D), methods.rigl(D, scope="global"), methods.snfs(D), methods.dsr(D)):
        with sparse_run(mlp(), method, "adamw", total=100) as (sparsifier, _):
            shapes = {n: site.shape for n, site in sparsifier.sites.items()}
            assert {n: s.count for n, s in sparsifier.supports.items()} == sparsifier.method.counts(shapes, 0)


def test_free_reallocation_moves_parameters_between_layers_and_fixed_does_not() -> None:
    def layers(method: Method) -> set[tuple[int, ...]]:
        return {tuple(int(mask.sum()) for mask in masks.values()) for _, masks in rewirings(method, "adamw")}

    dsr = methods.dsr(D, every=3, threshold=0.05)
    for free, fixed in (
        (dsr, methods.dsr(D, every=3, threshold=0.05, reallocate=False)),
        (methods.snfs(D, every=3), methods.snfs(D, every=3, reallocate=False)),
    ):
        assert len(layers(fixed)) == 1
        assert len(layers(free)) > 1
    assert len(layers(methods.rigl(D, 0.5, every=3))) == 1
    assert len(layers(methods.rigl(D, 0.5, every=3, scope="global"))) > 1
    assert len(layers(replace(methods.deepr(D, l1=1.0), scope="global"))) > 1


def test_watchers_see_every_rewiring_until_they_leave() -> None:
    model, seen = mlp(), []
    with sparse_run(model, methods.set_(D, every=2), "sgd") as (sparsifier, optimizers):
        handle = sparsifier.watch(lambda step, before, after: seen.append((step, dict(before), dict(after))))
        masks = {n: s.mask for n, s in sparsifier.supports.items()}
        for number, batch in enumerate(batches()):
            if number == 7:
                handle.remove()
            train_step(model, optimizers, batch)
            if seen and seen[-1][0] == sparsifier.step:
                _, before, after = seen[-1]
                assert all(torch.equal(before[n], masks[n]) for n in masks)
                masks = {n: s.mask for n, s in sparsifier.supports.items()}
                assert all(torch.equal(after[n], masks[n]) for n in masks)
    assert [step for step, _, _ in seen] == [2, 4, 6]
