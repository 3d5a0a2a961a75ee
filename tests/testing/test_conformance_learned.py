"""The kit can fail: for every law of a learned method there is a method, or a broken library, that it catches."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import Learned, learned, methods
from gossamer.cutting import cut
from gossamer.errors import DivergedError
from gossamer.gate import GradientGate
from gossamer.gated import GatedWeight
from gossamer.reparametrise import SoftGate
from gossamer.sites import DenseSite
from gossamer.testing import LearnedLaws, run_laws

LAWS = [name for name in dir(LearnedLaws) if name.startswith("test_")]
CALLS = itertools.count()


class Sound(LearnedLaws):
    def make(self, density: float) -> Learned:
        return methods.cs(density, penalty=1e-3)


@dataclass(frozen=True)
class HalfOpen(SoftGate):
    def apply(self, weight: Tensor, extra: Tensor, beta: float | Tensor) -> Tensor:
        return weight * torch.sigmoid(beta * extra)


@dataclass(frozen=True)
class Global(SoftGate):
    def initial(self, weight: Tensor) -> Tensor:
        return 0.1 * torch.randn_like(weight)


@dataclass(frozen=True)
class DifferentEveryTime(SoftGate):
    def initial(self, weight: Tensor) -> Tensor:
        return 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(next(CALLS)))


@dataclass(frozen=True)
class Counting(SoftGate):
    """Its beta is how often it was asked, which no saved state knows."""

    calls: list[int] = field(default_factory=list, compare=False)

    def beta(self, step: int, end: int) -> float:
        self.calls.append(1)
        return float(len(self.calls))


def gated(gate: Callable[[], SoftGate]) -> dict[str, Any]:
    return {"make": lambda laws, density: replace(methods.cs(density), gate=gate())}


def without_ties(openness: Any, density: float) -> dict[str, Tensor]:
    """Keeps whatever is at least the k-th largest: exact only while no two gates are equal."""
    scores = torch.cat([score.flatten() for score in openness.values()])
    if scores.isnan().any():
        raise DivergedError("NaN")
    least = scores.topk(round(density * scores.numel())).values[-1]
    return {name: score >= least for name, score in openness.items()}


def of_nan(openness: Any, density: float) -> dict[str, Tensor]:
    return cut({name: score.nan_to_num() for name, score in openness.items()}, density)


def product(self: GradientGate) -> None:
    """A gate as most published code has it: a product, which a NaN survives."""
    if self.off_scale == 0.0 and self._parameter.grad is not None:
        self._parameter.grad.mul_(self._mask())


def late(laws: LearnedLaws, density: float) -> Learned:
    return methods.cs(density, finalize=1.0)


# law -> (what the class of laws says, what of the library is replaced, what the failure tells)
BROKEN: list[tuple[str, dict[str, Any], Any, str]] = [
    ("test_it_starts_as_the_dense_model", gated(HalfOpen), None, "the first loss is"),
    ("test_gates_move", {"make": lambda s, d: methods.cs(d, gate_lr=0.0)}, None, "no gate moved"),
    ("test_it_is_soft_then_plain_and_sparse", {"make": late}, None, "needs a finalize below"),
    ("test_it_is_soft_then_plain_and_sparse", {"make": lambda s, d: methods.cs(0.9 * d)}, None, "entries are active"),
    ("test_it_is_soft_then_plain_and_sparse", {}, (GatedWeight, "leave", lambda self: None), "holds other Parameters"),
    (
        "test_it_is_soft_then_plain_and_sparse",
        {},
        (DenseSite, "act_on_inactive", lambda self, step: None),
        r"is not \+0 off its support|is not zero off the support",
    ),
    ("test_the_cut_is_exact_with_ties_and_zeros", {}, (learned, "cut", without_ties), "entries are active"),
    ("test_nan_in_a_masked_gradient_does_not_leak", {}, (GradientGate, "close", product), "a masked NaN"),
    ("test_a_gate_that_is_nan_is_not_cut", {}, (learned, "cut", of_nan), "was cut"),
    ("test_same_seed_same_run_whatever_the_global_seed", gated(DifferentEveryTime), None, "with the same seed"),
    ("test_the_global_generators_are_left_alone", gated(Global), None, "global random generator"),
    ("test_resumed_at_any_step_it_goes_on_bit_for_bit", gated(Counting), None, "resumed after step"),
    ("test_it_is_a_value", {"make": lambda s, d: replace(methods.cs(d), name=object())}, None, "it is not equal"),
    ("test_it_is_a_value", {"make": lambda s, d: methods.static(d)}, None, "returned a Method"),
    (
        "test_what_is_infeasible_is_refused_before_anything_changes",
        {"make": lambda s, d: methods.cs(max(d, 0.1))},
        None,
        r"make\(0.0\) was not refused",
    ),
    (
        "test_what_is_infeasible_is_refused_before_anything_changes",
        {},
        (learned, "check_counts", lambda sizes, density: None),
        "under one entry per weight",
    ),
]


@pytest.mark.parametrize(("law", "says", "patch", "told"), BROKEN)
def test_a_broken_method_breaks_its_law(
    law: str, says: dict[str, Any], patch: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    laws = type("Broken", (Sound,), says)()
    if patch:
        monkeypatch.setattr(*patch)
    with pytest.raises(AssertionError, match=told):
        getattr(laws, law)()


def test_every_law_of_a_learned_method_can_be_broken() -> None:
    assert {law for law, *_ in BROKEN} == set(LAWS)


def test_a_sound_method_passes_without_a_test_runner() -> None:
    assert run_laws(Sound()) == dict.fromkeys(LAWS, "passed")


def test_a_class_without_make_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="needs make"):
        LearnedLaws().test_gates_move()
