"""The kit can fail: for every law of a ticket method there is a method, or a broken library, that it catches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import lottery, methods, rewinding
from gossamer.cutting import static_on
from gossamer.method import Method
from gossamer.testing import TicketLaws, run_laws
from gossamer.tickets import Tickets
from gossamer.topology import Support

LAWS = [name for name in dir(TicketLaws) if name.startswith("test_")]
CALLS = itertools.count()


def sound(density: float, **parts: Any) -> Tickets:
    return methods.lottery(density, **{"levels": 2, "rewind": 0.25, **parts})


class Sound(TicketLaws):
    def make(self, density: float) -> Tickets:
        return sound(density)


class OneFewer(Tickets):
    """Forgets an entry in the last level."""

    def counts(self, shapes: Any) -> tuple[dict[str, int], ...]:
        *levels, last = super().counts(shapes)
        name = next(iter(last))
        return (*levels, {**last, name: last[name] - 1})


def prune_anew(model: nn.Module, supports: Any, counts: Mapping[str, int]) -> dict[str, Support]:
    """Chooses at random, among all entries, at every level."""
    masks = {}
    for name, support in supports.items():
        order = torch.randperm(support.numel, generator=torch.Generator().manual_seed(next(CALLS)))
        mask = torch.zeros(support.numel, dtype=torch.bool)
        mask[order[: counts[name]]] = True
        masks[name] = Support.from_mask(mask.view(support.shape))
    return masks


def one_more(model: nn.Module, supports: Any, counts: Mapping[str, int]) -> dict[str, Support]:
    return rewinding.prune(model, supports, {name: count + 1 for name, count in counts.items()})


def keep_pruned(model: nn.Module, state: Mapping[str, Tensor], supports: Any) -> None:
    """Goes back, and leaves the pruned weights as they were."""
    model.load_state_dict(dict(state))


def stay(model: nn.Module, state: Mapping[str, Tensor], supports: Any) -> None:
    """Does not go back."""
    rewinding.rewind(model, rewinding.snapshot(model), supports)


def on_everything(supports: Any) -> Method:
    """Trains the pruned weights, too."""
    return static_on({name: Support.full(support.shape) for name, support in supports.items()})


def never_resume(self: Any, level: int) -> bool:
    return False


def make_early(model: Any, targets: Any) -> Any:
    """Moves a weight before the search knows whether it can be."""
    next(model.parameters()).data.add_(1.0)
    return rewinding.dense_supports(model, targets)


# law -> (what the class of laws says, what of the library is replaced, what the failure tells)
BROKEN: list[tuple[str, dict[str, Any], Any, str]] = [
    (
        "test_supports_are_nested_and_counts_exact",
        {"make": lambda s, d: OneFewer(name="fewer", density=d, levels=2)},
        None,
        "its density means",
    ),
    ("test_supports_are_nested_and_counts_exact", {}, (lottery, "prune", prune_anew), "a pruned entry came back"),
    ("test_supports_are_nested_and_counts_exact", {}, (lottery, "prune", one_more), "the method states"),
    ("test_trainings_begin_where_the_method_says", {}, (lottery, "rewind", stay), "the weights it goes back to"),
    ("test_trainings_begin_where_the_method_says", {}, (lottery, "rewind", keep_pruned), "against the ticket"),
    (
        "test_pruned_weights_are_zero_in_every_step",
        {},
        (lottery, "static_on", on_everything),
        "off its support",
    ),
    (
        "test_same_seed_same_ticket_whatever_the_global_seed",
        {},
        (lottery, "_own_random_state", lambda model, seed: nullcontext()),
        "global random generator",
    ),
    (
        "test_same_seed_same_ticket_whatever_the_global_seed",
        {},
        (lottery, "prune", prune_anew),
        "two searches with the same seed",
    ),
    ("test_a_killed_search_goes_on_bit_for_bit", {}, (lottery._Search, "resume", never_resume), "it made"),
    ("test_a_killed_search_goes_on_bit_for_bit", {}, (lottery, "prune", prune_anew), "against a whole search"),
    ("test_it_is_a_value", {"make": lambda s, d: sound(d, rewind=next(CALLS))}, None, "made twice it is not equal"),
    ("test_it_is_a_value", {"make": lambda s, d: methods.static(d)}, None, "returned a Method"),
    (
        "test_what_is_infeasible_is_refused_before_anything_changes",
        {"make": lambda s, d: sound(max(d, 0.1))},
        None,
        r"make\(0.0\) was not refused",
    ),
    (
        "test_what_is_infeasible_is_refused_before_anything_changes",
        {},
        (lottery, "dense_supports", make_early),
        "after a refused density",
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


def test_every_law_of_a_ticket_method_can_be_broken() -> None:
    assert {law for law, *_ in BROKEN} == set(LAWS)


def test_a_sound_method_passes_without_a_test_runner() -> None:
    assert run_laws(Sound()) == dict.fromkeys(LAWS, "passed")


def test_a_class_without_make_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="needs make"):
        TicketLaws().test_it_is_a_value()
