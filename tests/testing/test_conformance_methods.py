"""The kit can fail: for every law of a method there is a method, or a broken library, that it catches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

import pytest
import torch
from torch import Tensor, nn

from gossamer import Method, Zero, methods, rewiring
from gossamer.gate import GradientGate
from gossamer.sites import DenseSite
from gossamer.testing import MethodLaws, Task, not_applicable, run_laws
from gossamer.testing.oracles import Trace, static_oracle
from gossamer.topology import Clock, DropGrow, Entries, Score, Select, score, scores

LAWS = [name for name in dir(MethodLaws) if name.startswith("test_")]


def sound(density: float, **parts: Any) -> Method:
    """Drops half of the active weights every second step and grows at random."""
    given = {"rule": DropGrow(scores.magnitude, scores.random, 0.5), "clock": Clock(every=2), **parts}
    return Method(name="sound", density=density, init=scores.random, **given)


class Sound(MethodLaws):
    def make(self, density: float) -> Method:
        return sound(density)


def dropping(by: Score) -> Callable[[MethodLaws, float], Method]:
    return lambda laws, density: sound(density, rule=DropGrow(by, scores.random, 0.5))


def ruled(rule: Any) -> Callable[[MethodLaws, float], Method]:
    return lambda laws, density: sound(density, rule=rule())


# -- parts that break a law ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneMore(DropGrow):
    def rewire(self, *args: Any) -> list[Tensor]:
        masks = super().rewire(*args)
        masks[0].view(-1)[(~masks[0]).view(-1).nonzero()[0]] = True
        return masks


@dataclass(frozen=True)
class TiesAtTheThreshold(DropGrow):
    """Keeps whatever is at least the k-th largest: exact only while no two weights are equal."""

    def rewire(self, group: Any, counts: Any, *rest: Any) -> list[Tensor]:
        value = group[0].weight.abs()
        return [value >= value.view(-1).topk(counts[0]).values[-1]]


@dataclass(frozen=True)
class Counting(DropGrow):
    """Drops nothing but at every fourth call, which it counts outside of the saved state."""

    calls: list[int] = field(default_factory=list, compare=False)

    def resolve(self, total_steps: int | None) -> Counting:
        return self

    def rewire(self, *args: Any) -> list[Tensor]:
        self.calls.append(1)
        rule = dataclasses.replace(self, fraction=0.5 if len(self.calls) % 4 == 0 else 0.0)
        return DropGrow.rewire(rule, *args)


GLOBAL_CALLS = itertools.count()


@score()
def different_every_time(entries: Entries) -> Tensor:
    return torch.rand(entries.weight.shape, generator=torch.Generator().manual_seed(next(GLOBAL_CALLS)))


@score()
def from_the_global_generator(entries: Entries) -> Tensor:
    return torch.rand_like(entries.weight)


@score()
def by_numpy(entries: Entries) -> Tensor:
    return torch.from_numpy(abs(entries.weight.numpy()))


def closure(laws: MethodLaws, density: float) -> Method:
    return dropping(Score("closure", lambda entries: entries.weight.abs()))(laws, density)


def wrong_oracle(laws: MethodLaws, task: Task) -> Trace:
    return static_oracle(*task.common)


def product(self: GradientGate) -> None:
    """A gate as most published code has it: a product, which a NaN survives."""
    if self.off_scale == 0.0 and self._parameter.grad is not None:
        self._parameter.grad.mul_(self._mask())


# law -> (what the class of laws says, what of the library is replaced, what the failure tells)
Patch = tuple[Any, str, Any] | None
BROKEN: list[tuple[str, dict[str, Any], Patch, str]] = [
    (
        "test_zeros_off_the_support_and_slots_as_stated",
        {},
        (DenseSite, "clear_inactive", lambda self: None),
        "is not zero off",
    ),
    (
        "test_zeros_off_the_support_and_slots_as_stated",
        {},
        (DenseSite, "_move_slots", lambda self, old, new: None),
        "off the support",
    ),
    ("test_supports_change", {"make": lambda s, d: sound(d, clock=Clock(every=50))}, None, "no support changed"),
    ("test_supports_change", {"moves": False}, None, "although moves = False"),
    (
        "test_the_budget_is_exact_after_every_step",
        {"make": ruled(lambda: OneMore(scores.magnitude, scores.random, 0.5))},
        None,
        "the totals differ",
    ),
    ("test_the_budget_is_exact_after_every_step", {"make": lambda s, d: sound(0.9 * d)}, None, "active at the end"),
    (
        "test_the_budget_is_exact_over_many_rewirings_with_ties_and_zeros",
        {"make": ruled(lambda: TiesAtTheThreshold(scores.magnitude, scores.random, 0.5))},
        None,
        "the totals differ",
    ),
    (
        "test_dropped_entries_were_active_and_grown_ones_were_not",
        {"make": ruled(lambda: Select(scores.random))},
        None,
        "only selects among zeros",
    ),
    (
        "test_newborns_get_the_stated_value_and_slots",
        {},
        (DenseSite, "_move_slots", lambda self, old, new: None),
        "of newborn entries is not",
    ),
    (
        "test_newborns_get_the_stated_value_and_slots",
        {"make": lambda s, d: sound(d, inactive=Zero(newborn_std=0.1))},
        (rewiring, "_newborn_generator", lambda site, seed, step: None),
        "were to be drawn",
    ),
    ("test_density_one_is_dense_training", {"make": lambda s, d: sound(0.9 * d)}, None, "against dense training"),
    ("test_nan_in_a_masked_gradient_does_not_leak", {}, (GradientGate, "close", product), "a masked NaN"),
    (
        "test_it_trains_convolutions_small_and_single_layers",
        {"make": lambda s, d: sound(d, allocation={"fc*": d})},
        None,
        "refuses every model",
    ),
    ("test_it_trains_bfloat16_weights", {"make": dropping(by_numpy)}, None, "BFloat16"),
    (
        "test_same_seed_same_run_whatever_the_global_seed",
        {"make": dropping(different_every_time)},
        None,
        "two runs with the same seed",
    ),
    (
        "test_the_global_generators_are_left_alone",
        {"make": dropping(from_the_global_generator)},
        None,
        "global random generator",
    ),
    (
        "test_resumed_at_any_step_it_goes_on_bit_for_bit",
        {"make": ruled(lambda: Counting(scores.magnitude, scores.random, 0.0))},
        None,
        "resumed after step",
    ),
    (
        "test_a_copied_model_is_plain_sparse_and_independent",
        {},
        (nn.Module, "__deepcopy__", lambda self, memo: self),
        "whose copy was trained",
    ),
    ("test_it_is_a_value", {"make": closure}, None, "made twice it is not equal"),
    (
        "test_what_is_infeasible_is_refused_before_anything_changes",
        {"make": lambda s, d: sound(max(d, 0.1))},
        None,
        r"make\(0.0\) was not refused",
    ),
    (
        "test_what_is_infeasible_is_refused_before_anything_changes",
        {"make": lambda s, d: sound(d) if d > 0.1 else sound(d / d if d > 0 else d)},
        None,
        "under one entry per weight",
    ),
    ("test_it_equals_its_oracle", {"oracle": wrong_oracle}, None, "against the oracle"),
]


def fails(laws: object, law: str) -> None:
    """Run a law; skipping is not failing."""
    try:
        getattr(laws, law)()
    except SkipTest as skip:
        pytest.fail(f"skipped: {skip}")


@pytest.mark.parametrize(("law", "says", "patch", "told"), BROKEN)
def test_a_broken_method_breaks_its_law(
    law: str, says: dict[str, Any], patch: Patch, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    laws = type("Broken", (Sound,), says)()
    if patch:
        monkeypatch.setattr(*patch, raising=False)
    with pytest.raises((AssertionError, TypeError), match=told):
        fails(laws, law)


def test_every_law_of_a_method_can_be_broken() -> None:
    assert {law for law, *_ in BROKEN} == set(LAWS)


def test_a_sound_method_passes_without_a_test_runner() -> None:
    outcome = run_laws(Sound())
    assert list(outcome) == LAWS
    assert {name: told for name, told in outcome.items() if told != "passed"} == {
        "test_it_equals_its_oracle": "skipped: there is no oracle"
    }


def test_a_law_that_cannot_apply_is_skipped_with_its_reason() -> None:
    class Excused(Sound):
        test_it_is_a_value = not_applicable("it holds a lambda")

    with pytest.raises(SkipTest, match="it holds a lambda"):
        Excused().test_it_is_a_value()
    assert run_laws(Excused())["test_it_is_a_value"] == "skipped: it holds a lambda"


def test_a_class_without_make_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="needs make"):
        MethodLaws().test_supports_change()


def test_what_is_no_method_is_told() -> None:
    class Learned(MethodLaws):
        def make(self, density: float) -> Any:
            return methods.cs(density)

    with pytest.raises(AssertionError, match="returned a Learned"):
        Learned().test_it_is_a_value()
