"""Law 9: what newborn entries become, what their neighbours keep, and how long newborns live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer import Method, methods, optimizer_state
from gossamer.sites import DenseSite
from gossamer.topology import Clock, Constant, DropGrow, scores

from .settings import batches, loss_of, mlp, sparse_run, train_step

D = 0.3


@dataclass
class Event:
    """One weight at its first rewiring, seen right after it."""

    site: DenseSite
    before: Tensor
    after: Tensor

    @property
    def born(self) -> Tensor:
        return self.after & ~self.before

    @property
    def survived(self) -> Tensor:
        return self.after & self.before

    @property
    def slots(self) -> dict[str, Tensor]:
        return optimizer_state.slots(self.site.optimizer, self.site.parameter)


def first_event(method: Method, optimizer: str, check: Callable[[Event], None], steps: int = 8) -> int:
    """Train to the first rewiring and check every weight there; return how many entries were born."""
    model, born = mlp(), []
    with sparse_run(model, method, optimizer, total=100) as (sparsifier, optimizers):

        def note(step: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
            for name, site in sparsifier.sites.items():
                event = Event(site, before[name], after[name])
                born.append(int(event.born.sum()))
                check(event)

        sparsifier.watch(note)
        for batch in batches(n=steps):
            train_step(model, optimizers, batch)
            if born:
                break
    return sum(born)


BUILDS: dict[str, Callable[..., Method]] = {
    "set": lambda **parts: methods.set_(D, 0.5, every=4, **parts),
    "set-itop": lambda **parts: methods.set_itop(D, every=4, **parts),
    "rigl": lambda **parts: methods.rigl(D, 0.5, every=4, **parts),
    "rigl-global": lambda **parts: methods.rigl(D, 0.5, every=4, scope="global", **parts),
    "rigl-itop": lambda **parts: methods.rigl_itop(D, every=4, **parts),
    "deepr": lambda **parts: methods.deepr(D, l1=1.0, temperature=0.1, every=4, **parts),
    "dsr": lambda **parts: methods.dsr(D, every=4, threshold=0.05, **parts),
    "granet": lambda **parts: methods.granet(D, every=4, **parts),
    "srigl": lambda **parts: methods.srigl(D, 0.5, every=4, **parts),
}


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
@pytest.mark.parametrize("name", BUILDS)
def test_newborns_are_zero_and_get_the_slots_their_method_states(name: str, newborn: str) -> None:
    def check(event: Event) -> None:
        assert (event.site.parameter[event.born] == 0).all()
        assert (event.slots["exp_avg"][event.born] == 0).all()
        for slot in ("exp_avg_sq", "max_exp_avg_sq"):
            value = event.slots[slot]
            mean = value[event.survived].mean() if event.survived.any() else torch.zeros(())
            expected = mean if newborn == "neutral" else torch.zeros(())
            assert torch.allclose(value[event.born], expected.expand(int(event.born.sum())))

    assert first_event(BUILDS[name](newborn=newborn), "adam-amsgrad-foreach", check) > 0


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "rmsprop", "adagrad", "nadam", "adamax"])
@pytest.mark.parametrize("name", ["set", "rigl", "dsr", "granet"])
def test_every_slot_of_a_newborn_and_of_a_dropped_entry(name: str, optimizer: str) -> None:
    def check(event: Event) -> None:
        site = event.site
        for slot, value in event.slots.items():
            rest = optimizer_state.resting_value(slot, site.optimizer, site.parameter)
            assert (value[~event.after] == rest).all(), slot
            if optimizer_state.is_second_moment(slot):
                assert torch.allclose(value[event.born], value[event.survived].mean()), slot
            else:
                assert (value[event.born] == rest).all(), slot

    assert first_event(BUILDS[name](), optimizer, check) > 0


def test_newborns_may_start_from_random_values() -> None:
    values: list[Tensor] = []

    def check(event: Event) -> None:
        assert (event.site.parameter.detach()[event.born] != 0).all()
        values.append(event.site.parameter.detach()[event.born])

    assert first_event(methods.set_(0.5, 0.9, every=2, newborn_std=0.1), "adamw", check) > 80
    drawn = torch.cat(values)
    assert float(drawn.std()) == pytest.approx(0.1, rel=0.3)
    assert abs(float(drawn.mean())) < 0.04


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("name", ["set-itop", "rigl-itop", "dsr", "granet", "snfs"])
def test_momentum_follows_its_weight(name: str, optimizer: str) -> None:
    """What survives a rewiring keeps value and slots; dense slots (SNFS) stay altogether as they are."""
    method = methods.snfs(D, every=4) if name == "snfs" else BUILDS[name]()
    never = replace(method, clock=Clock(every=99))
    seen: dict[str, Event] = {}
    first_event(method, optimizer, lambda event: seen.update({event.site.name: event}))
    model = mlp()
    with sparse_run(model, never, optimizer, total=100) as (sparsifier, optimizers):
        for batch in batches(n=4):
            train_step(model, optimizers, batch)
        assert set(seen) == set(sparsifier.sites)
        for weight, site in sparsifier.sites.items():
            event = seen[weight]
            assert torch.equal(event.before, site.mask)
            where = torch.ones_like(event.after) if name == "snfs" else event.survived
            assert torch.equal(event.site.parameter[event.survived], site.parameter[event.survived])
            for slot, value in optimizer_state.slots(site.optimizer, site.parameter).items():
                assert torch.equal(event.slots[slot][where], value[where]), slot


def test_first_update_of_a_newborn_under_adam_is_not_three_times_too_large() -> None:
    """Card 1.5: with both moments zeroed the first update is (1-b1)/sqrt(1-b2) = 3.16 lr; neutral stays within lr."""
    jumps = {}
    for newborn in ("neutral", "zero"):
        model = mlp()
        method = gossamer.methods.rigl(0.3, every=60, fraction=0.5, newborn=newborn)
        with sparse_run(model, method, "adam", total=200) as (sparsifier, optimizers):
            for batch in batches(n=60):
                train_step(model, optimizers, batch)
            for state in optimizers[0].state.values():
                state["exp_avg_sq"].div_(1 - 0.999**60)
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
    assert jumps["neutral"] <= 1.001


# -- how long newborns live --------------------------------------------------------------------------------------------


def drops_and_births(grace: int) -> list[tuple[Tensor, Tensor]]:
    """(dropped, born) of each rewiring of a run in which nothing learns; the same share each time."""
    method = Method(
        name="mine",
        density=D,
        allocation="uniform",
        init=scores.random,
        rule=DropGrow(scores.magnitude, scores.random, Constant(0.2), grace=grace, revive=False),
        clock=Clock(every=2),
    )
    model, seen = mlp(), []
    sparsifier = gossamer.sparsify(model, method, optimizer := torch.optim.SGD(model.parameters(), lr=0.0))
    sparsifier.watch(
        lambda step, before, after: seen.append(
            tuple(torch.cat([(a[n] & ~b[n]).flatten() for n in a]) for a, b in ((before, after), (after, before)))
        )
    )
    for batch in batches(n=12):
        train_step(model, [optimizer], batch)
    return seen


def test_without_grace_the_next_drop_takes_exactly_the_newborns() -> None:
    """Reference page, section 5.1: at a rate of 0 a newborn stays 0 and is the smallest of all."""
    seen = drops_and_births(grace=0)
    assert len(seen) == 6
    for (_, born), (dropped, _) in pairwise(seen):
        assert int(born.sum()) > 0
        assert torch.equal(born, dropped)


def test_with_grace_the_next_drop_spares_the_newborns() -> None:
    seen = drops_and_births(grace=3)  # rewirings are 2 steps apart
    for number, ((_, born), (dropped, _)) in enumerate(pairwise(seen)):
        assert not (born & dropped).any()
        assert int(dropped.sum()) == int(born.sum()) > 0
        if number + 2 < len(seen):  # one rewiring later they are old enough, and the smallest
            assert (seen[number + 2][0] | ~born).all()


def test_grace_of_exactly_one_period_is_over_when_the_next_rewiring_comes() -> None:
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(drops_and_births(grace=0), drops_and_births(grace=2), strict=True)
    )


# -- the dense gradient ------------------------------------------------------------------------------------------------

DENSE_GRADIENT = {
    "ste": lambda: methods.ste(D),
    "rewire": lambda: methods.rewire(D, exploit=gossamer.Regularize(0.1)),
    "sr-ste": lambda: methods.sr_ste(0.5, group=2, decay=0.1),
    "topkast": lambda: methods.topkast(D),
    "snfs": lambda: methods.snfs(D, every=50),
    "rigl": lambda: methods.rigl(D, every=3),
    "granet": lambda: methods.granet(D, every=4),
}


@pytest.mark.parametrize("name", DENSE_GRADIENT)
def test_the_dense_gradient_is_that_of_the_loss_in_the_sparse_weights(name: str) -> None:
    """Section 11, test 9: central differences at 0 where a weight is inactive; 0 where it must not be trained.

    After three steps RigL grows by the gradient of the step that comes, GraNet by that of its fourth step.
    """
    model, method = mlp().double(), DENSE_GRADIENT[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=100)
    data = [(x.double(), y) for x, y in batches(n=4)]
    for batch in data[:3]:
        train_step(model, [optimizer], batch)
    optimizer.zero_grad()
    loss_of(model, data[3]).backward()
    checked, eps = 0, 1e-5
    for site in sparsifier.sites.values():
        gradient, values = site.parameter.grad.flatten(), site.parameter.data.view(-1)
        trained = None if site.traits.reach is None else site.traits.reach.flatten()
        for i in (~site.mask).flatten().nonzero().view(-1)[:20].tolist():
            assert values[i] == 0
            values[i] = eps
            up = float(loss_of(model, data[3]).detach())
            values[i] = -eps
            down = float(loss_of(model, data[3]).detach())
            values[i] = 0.0
            if trained is not None and not trained[i]:
                assert gradient[i] == 0
            else:
                assert float(gradient[i]) == pytest.approx((up - down) / (2 * eps), abs=1e-7)
                checked += bool(gradient[i] != 0)
    assert checked >= 20
