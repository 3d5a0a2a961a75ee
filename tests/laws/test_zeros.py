"""Laws 2 and 9: exact zeros and counts after every step, and what dropped and newborn entries become."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer import optimizer_state
from gossamer.sites import DenseSite

from .settings import (
    OPTIMIZERS,
    REFUSED,
    batches,
    cases,
    convnet,
    is_live,
    mlp,
    optimizer_classes,
    small_methods,
    sparse_run,
    train_step,
)


def test_every_torch_optimizer_is_covered() -> None:
    assert {kind for kind, _ in OPTIMIZERS.values()} | REFUSED == optimizer_classes()


class Law:
    """Law 2, to be checked after every step; knows when supports were last chosen."""

    def __init__(self, sparsifier: gossamer.Sparsifier) -> None:
        self.sparsifier, self.method = sparsifier, sparsifier.method
        self.shapes = {name: site.shape for name, site in sparsifier.sites.items()}
        self.chosen = 0
        sparsifier.watch(self.note)
        self.check()

    def note(self, step: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        self.chosen = step

    def check(self) -> None:
        for name, site in self.sparsifier.sites.items():
            assert site.stashed_grad is None, "no dense gradient is kept between steps"
            assert site.bytes() == self.bytes_per_entry(site) * site.parameter.numel()
            self.check_zero(name, site)
        self.check_counts()

    def bytes_per_entry(self, site: DenseSite) -> int:
        """Mask; trainable weights; ages; signs; what is trained, unless that is everything."""
        needs, reach = self.method.needs, site.traits.reach
        assert (self.method.reach_counts(self.shapes, 0) is not None) or reach is None
        return 1 + 4 * is_live(self.method) + 4 * ("age" in needs) + ("sign" in needs) + (reach is not None)

    def check_zero(self, name: str, site: DenseSite) -> None:
        mask, weight = self.sparsifier.supports[name].mask, site.parameter.detach()
        assert torch.equal(weight[~mask], torch.zeros_like(weight[~mask]))
        assert not torch.signbit(weight[~mask]).any(), "exactly +0"
        if is_live(self.method) or site.inactive.slots == "keep":
            return
        for slot, value in optimizer_state.slots(site.optimizer, site.parameter).items():
            rest = optimizer_state.resting_value(slot, site.optimizer, site.parameter)
            assert (value[~mask] == rest).all(), f"{name}.{slot}"

    def check_counts(self) -> None:
        counts = self.method.counts(self.shapes, self.chosen)
        held = {name: support.count for name, support in self.sparsifier.supports.items()}
        assert all(self.method.structure.is_valid(s.mask) for s in self.sparsifier.supports.values())
        assert all(count >= 1 for count in held.values()), "no layer is empty"
        if self.method.budget == "at most":
            assert all(held[name] <= counts[name] for name in counts)
        elif self.method.budget == "each" and self.method.name != "gmp":  # rounding, see below
            assert held == counts
        else:
            assert sum(held.values()) == sum(counts.values())
            assert self.method.budget == "total" or all(abs(held[name] - counts[name]) <= 1 for name in counts)


@pytest.mark.parametrize(("method", "optimizer"), cases())
def test_zero_off_the_support_after_every_step(method: str, optimizer: str) -> None:
    model = mlp()
    with sparse_run(model, small_methods()[method], optimizer) as (sparsifier, optimizers):
        law = Law(sparsifier)
        first = {name: s.mask.clone() for name, s in sparsifier.supports.items()}
        for batch in batches():
            train_step(model, optimizers, batch)
            law.check()
        assert sparsifier.step == len(batches())
        moved = any(not torch.equal(first[n], s.mask) for n, s in sparsifier.supports.items())
        if method.startswith("static"):
            assert not moved
        elif optimizer in ("sgd-momentum", "adamw") and method != "rewire-regularize":  # others may be too slow
            assert moved


@pytest.mark.parametrize("method", small_methods())
def test_zeros_on_convolutions(method: str) -> None:
    model = convnet()
    targets = ["0.weight", "3.weight", "5.weight"] if method == "sr-ste" else None  # groups of inputs: no depthwise
    with sparse_run(model, small_methods(shape=(2, 6, 6))[method], "adamw", targets=targets) as (
        sparsifier,
        optimizers,
    ):
        law = Law(sparsifier)
        for batch in batches((2, 6, 6), 8):
            train_step(model, optimizers, batch)
            law.check()


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
