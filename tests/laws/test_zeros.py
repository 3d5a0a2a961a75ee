"""Laws 2 and 9: exact zeros and counts after every step, and what dropped and newborn entries become."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer import optimizer_state

from .settings import (
    LIVE_OK,
    OPTIMIZERS,
    REFUSED,
    batches,
    convnet,
    is_live,
    mlp,
    optimizer_classes,
    small_methods,
    sparse_run,
    train_step,
)

CASES = [(m, o) for m, method in small_methods().items() for o in (LIVE_OK if is_live(method) else OPTIMIZERS)]


def test_every_torch_optimizer_is_covered() -> None:
    assert {kind for kind, _ in OPTIMIZERS.values()} | REFUSED == optimizer_classes()


def check_zeros(sparsifier: gossamer.Sparsifier, counts: dict[str, int], total: int) -> None:
    supports = sparsifier.supports
    for name, site in sparsifier.sites.items():
        assert site.stashed_grad is None, "no dense gradient is kept between steps"
        held = 1 + 4 * is_live(sparsifier.method)
        assert site.bytes() == held * site.parameter.numel()
        mask, weight = supports[name].mask, site.parameter.detach()
        assert torch.equal(weight[~mask], torch.zeros_like(weight[~mask]))
        assert not torch.signbit(weight[~mask]).any(), "exactly +0"
        if sparsifier.method.scope == "layer":
            assert supports[name].count == int(mask.sum()) == counts[name]
        if is_live(sparsifier.method) or site.inactive.slots == "keep":
            continue
        for slot, value in optimizer_state.slots(site.optimizer, site.parameter).items():
            rest = optimizer_state.resting_value(slot, site.optimizer, site.parameter)
            assert (value[~mask] == rest).all(), f"{name}.{slot}"
    assert sum(s.count for s in supports.values()) == total


@pytest.mark.parametrize(("method", "optimizer"), CASES)
def test_zero_off_the_support_after_every_step(method: str, optimizer: str) -> None:
    model = mlp()
    with sparse_run(model, small_methods()[method], optimizer) as (sparsifier, optimizers):
        total = round(0.3 * (20 * 16 + 16 * 12 + 12 * 4))
        counts = {name: s.count for name, s in sparsifier.supports.items()}
        first = {name: s.mask.clone() for name, s in sparsifier.supports.items()}
        check_zeros(sparsifier, counts, total)
        for batch in batches():
            train_step(model, optimizers, batch)
            check_zeros(sparsifier, counts, total)
        assert sparsifier.step == len(batches())
        moved = any(not torch.equal(first[n], s.mask) for n, s in sparsifier.supports.items())
        if method.startswith("static"):
            assert not moved
        elif optimizer in ("sgd-momentum", "adamw") and method != "rewire-regularize":  # others may be too slow
            assert moved


@pytest.mark.parametrize("method", small_methods())
def test_zeros_on_convolutions(method: str) -> None:
    model = convnet()
    with sparse_run(model, small_methods()[method], "adamw") as (sparsifier, optimizers):
        counts = {name: s.count for name, s in sparsifier.supports.items()}
        total = sum(counts.values())
        for batch in batches((2, 6, 6), 6):
            train_step(model, optimizers, batch)
            check_zeros(sparsifier, counts, total)


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize("name", ["set", "rigl"])
def test_newborns_get_the_slots_their_method_states(name: str, newborn: str) -> None:
    build = gossamer.methods.REGISTRY[name].build
    model = mlp()
    method = build(0.3, every=4, fraction=0.5, newborn=newborn)
    with sparse_run(model, method, "adam-amsgrad-foreach", total=100) as (sparsifier, optimizers):
        before: dict[str, Tensor] = {}
        for batch in batches(n=5):
            before = {n: s.mask for n, s in sparsifier.supports.items()}
            train_step(model, optimizers, batch)
            if any(not torch.equal(before[n], s.mask) for n, s in sparsifier.supports.items()):
                break
        born_total = 0
        for weight, site in sparsifier.sites.items():
            now = sparsifier.supports[weight].mask
            born, survived = now & ~before[weight], now & before[weight]
            born_total += int(born.sum())
            slots = optimizer_state.slots(site.optimizer, site.parameter)
            assert (site.parameter[born] == 0).all()
            assert (slots["exp_avg"][born] == 0).all()
            for slot in ("exp_avg_sq", "max_exp_avg_sq"):
                mean = slots[slot][survived].mean()
                expected = mean if newborn == "neutral" else torch.zeros(())
                assert torch.allclose(slots[slot][born], expected.expand(int(born.sum())))
                assert mean > 0
        assert born_total > 0


def test_first_update_of_a_newborn_under_adam_is_not_three_times_too_large() -> None:
    """Card 1.5: with both moments zeroed the first update is (1-b1)/sqrt(1-b2) = 3.16 lr; neutral stays near lr."""
    jumps = {}
    for newborn in ("neutral", "zero"):
        model = mlp()
        method = gossamer.methods.rigl(0.3, every=60, fraction=0.5, newborn=newborn)
        with sparse_run(model, method, "adam", total=200) as (sparsifier, optimizers):
            for batch in batches(n=60):
                train_step(model, optimizers, batch)
            for state in optimizers[0].state.values():
                state["step"].fill_(1e6)  # late in training, when bias correction is over
            before = {n: s.mask for n, s in sparsifier.supports.items()}
            for batch in batches(n=2, seed=9):  # the growth step, then the first update
                train_step(model, optimizers, batch)
            born = [
                site.parameter.detach()[sparsifier.supports[n].mask & ~before[n]].abs()
                for n, site in sparsifier.sites.items()
            ]
            jumps[newborn] = float(torch.cat(born).max()) / 0.01
    assert jumps["zero"] > 3.0
    assert jumps["neutral"] < jumps["zero"]


def test_nan_in_a_masked_gradient_does_not_reach_a_weight() -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, gossamer.methods.static(0.5), optimizer)
    off = ~sparsifier.supports["weight"].mask
    loss = (model.weight * torch.where(off, torch.nan, 1.0)).sum()
    loss.backward()
    optimizer.step()
    assert torch.isfinite(model.weight).all()
    assert (model.weight[off] == 0).all()


def test_drop_candidates_are_active_and_growth_conserves() -> None:
    model = mlp()
    with sparse_run(model, small_methods()["set"], "sgd-momentum") as (sparsifier, optimizers):
        for batch in batches():
            before = dict(sparsifier.supports)
            values = {n: s.parameter.detach().clone() for n, s in sparsifier.sites.items()}
            train_step(model, optimizers, batch)
            for name, now in sparsifier.supports.items():
                dropped, grown = before[name] - now, now - before[name]
                assert dropped.count == grown.count
                assert dropped.issubset(before[name])
                assert (values[name][grown.mask] == 0).all()
