"""The kit can fail: for every law of a score, quota, allocation or structure there is a part that it catches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.testing import AllocationLaws, QuotaLaws, ScoreLaws, StructureLaws
from gossamer.topology import FanIn, Score, Unstructured, quota, score, select_top, uniform
from gossamer.topology.proportional import Proportional

CALLS = itertools.count()


def scored(fn: Any, *needs: str, split: Any = None) -> Score:
    return score(*needs, split=split)(fn)


def shares(fn: Any) -> Any:
    return lambda shapes, density: fn(uniform(shapes, density), density)


def plus(counts: Mapping[str, int], more: int) -> dict[str, int]:
    first, *_ = counts
    return {**counts, first: counts[first] + more}


class Lenient(Proportional):
    """Gives every weight an entry, whatever the density."""

    def __call__(self, shapes: Any, density: float) -> dict[str, int]:
        return uniform(shapes, density if 1e-3 < density <= 1 else 0.5)


class Any_(Unstructured):
    """What the broken structures change one thing of."""

    def select(self, scores: Sequence[Tensor], count: int, active: Any = None) -> list[Tensor]:
        return select_top(self.seen(scores), self.taken(count, scores), self.known(active))

    def seen(self, scores: Sequence[Tensor]) -> Sequence[Tensor]:
        return scores

    def taken(self, count: int, scores: Sequence[Tensor]) -> int:
        return count

    def known(self, active: Any) -> Any:
        return active


def structure(base: type = Any_, **changes: Any) -> Any:
    return type("Broken", (base,), changes)()


def last_of_ties(self: Any, scores: Sequence[Tensor], count: int, active: Any = None) -> list[Tensor]:
    flipped = select_top([s.flip(0) for s in scores], count, None if active is None else [a.flip(0) for a in active])
    return [mask.flip(0) for mask in flipped]


BROKEN: list[tuple[type, str, Any, str]] = [
    (
        ScoreLaws,
        "test_one_finite_floating_point_value_per_entry",
        scored(lambda e: e.weight.abs().sum(0)),
        "the score has shape",
    ),
    (ScoreLaws, "test_one_finite_floating_point_value_per_entry", scored(lambda e: e.active.long()), "floating point"),
    (ScoreLaws, "test_one_finite_floating_point_value_per_entry", scored(lambda e: e.weight.abs().log()), "not finite"),
    (ScoreLaws, "test_needs_are_declared", scored(lambda e: e.grad.abs()), "does not name"),
    (ScoreLaws, "test_needs_are_declared", scored(lambda e: e.require("momentum"), "grad"), "does not name"),
    (
        ScoreLaws,
        "test_needs_are_declared",
        scored(lambda e: e.weight.abs() + (0 if e.age is None else e.age)),
        "other fields are there",
    ),
    (
        ScoreLaws,
        "test_it_is_elementwise",
        scored(lambda e: e.weight.abs().flatten().cumsum(0).view_as(e.weight)),
        "perm",
    ),
    (ScoreLaws, "test_it_is_elementwise", scored(lambda e: e.weight.abs() / e.weight.abs().max()), "tile"),
    (ScoreLaws, "test_it_depends_on_its_entries_alone", scored(lambda e: torch.rand_like(e.weight)), "global random"),
    (ScoreLaws, "test_it_depends_on_its_entries_alone", scored(lambda e: e.weight.abs_()), "changed weight in place"),
    (ScoreLaws, "test_it_depends_on_its_entries_alone", scored(lambda e: e.weight + next(CALLS)), "on equal entries"),
    (
        ScoreLaws,
        "test_it_depends_on_its_entries_alone",
        scored(lambda e: e.weight.abs(), "generator"),
        "does not draw",
    ),
    (
        ScoreLaws,
        "test_groups_of_a_split_are_disjoint",
        scored(lambda e: e.weight.abs(), split=lambda e: [e.weight >= 0, e.weight <= 0]),
        "two groups",
    ),
    (QuotaLaws, "test_one_share_per_weight", quota()(lambda group, dropped, kept: [1, 1]), "3 weights got 2"),
    (QuotaLaws, "test_one_share_per_weight", quota()(lambda group, dropped, kept: [1, -1, 1]), "not negative"),
    (QuotaLaws, "test_needs_are_declared", quota()(lambda g, d, k: [float(e.grad.abs().sum()) for e in g]), "not name"),
    (QuotaLaws, "test_needs_are_declared", quota()(lambda g, d, k: [next(CALLS) + 1 for e in g]), "reads more"),
    (AllocationLaws, "test_whole_numbers_that_add_up", shares(lambda c, d: plus(c, 1)), "do not add up"),
    (
        AllocationLaws,
        "test_whole_numbers_that_add_up",
        shares(lambda c, d: {n: float(k) for n, k in c.items()}),
        "ints",
    ),
    (AllocationLaws, "test_whole_numbers_that_add_up", shares(lambda c, d: dict(list(c.items())[1:])), "were given"),
    (AllocationLaws, "test_more_density_takes_from_no_weight", shares(lambda c, d: plus(c, int(-9 * d))), "fall"),
    (
        AllocationLaws,
        "test_it_depends_on_its_arguments_alone",
        shares(lambda c, d: plus(c, next(CALLS))),
        "asked twice",
    ),
    (AllocationLaws, "test_what_is_infeasible_is_refused", Lenient("lenient", len), "was not refused"),
    (
        StructureLaws,
        "test_round_is_possible_and_settles",
        structure(round=lambda s, n, shape: n // 2),
        "is no int from",
    ),
    (
        StructureLaws,
        "test_round_is_possible_and_settles",
        structure(round=lambda s, n, shape: n // 2 + 1),
        "rounds on to",
    ),
    (
        StructureLaws,
        "test_exactly_the_count_is_selected_and_valid",
        structure(taken=lambda s, count, scores: max(1, count - 1)),
        "were selected",
    ),
    (
        StructureLaws,
        "test_exactly_the_count_is_selected_and_valid",
        structure(FanIn, select=lambda s, scores, n, active=None: select_top(scores, n, active)),
        "it calls invalid",
    ),
    (
        StructureLaws,
        "test_the_best_allowed_set_is_selected",
        structure(seen=lambda s, scores: [-v for v in scores]),
        "should be there",
    ),
    (StructureLaws, "test_the_best_allowed_set_is_selected", structure(select=last_of_ties), "should be there"),
    (
        StructureLaws,
        "test_selecting_again_changes_nothing",
        structure(known=lambda s, active: None),
        "the active set is not kept",
    ),
    (
        StructureLaws,
        "test_only_the_order_of_the_scores_counts",
        structure(seen=lambda s, scores: [v.clamp(max=1) for v in scores]),
        "2 s . 3 selects",
    ),
    (
        StructureLaws,
        "test_infinity_forces_and_nan_is_an_error",
        structure(seen=lambda s, scores: [v.nan_to_num() for v in scores]),
        "a NaN was accepted",
    ),
    (
        StructureLaws,
        "test_infinity_forces_and_nan_is_an_error",
        structure(seen=lambda s, scores: [torch.where(v == torch.inf, 0.0, v) for v in scores]),
        "were left out",
    ),
    (
        StructureLaws,
        "test_impossible_counts_are_refused",
        structure(taken=lambda s, count, scores: min(max(count, 0), scores[0].numel())),
        "select took a count",
    ),
    (StructureLaws, "test_several_weights_compete_or_are_refused", structure(single=True), "took two weights"),
    (
        StructureLaws,
        "test_is_valid_tells_allowed_from_other_sets",
        structure(FanIn, is_valid=lambda s, mask: True),
        "the best is not selected",
    ),
]


@pytest.mark.parametrize(("base", "law", "part", "told"), BROKEN)
def test_a_broken_part_breaks_its_law(base: type, law: str, part: Any, told: str) -> None:
    laws = type("Broken", (base,), {"make": lambda self: part})()
    with pytest.raises(AssertionError, match=told):
        getattr(laws, law)()


@pytest.mark.parametrize("base", [ScoreLaws, QuotaLaws, AllocationLaws, StructureLaws])
def test_every_law_of_a_part_can_be_broken(base: type) -> None:
    laws = {name for name in dir(base) if name.startswith("test_")}
    assert {law for kind, law, *_ in BROKEN if kind is base} == laws
    with pytest.raises(NotImplementedError, match="needs make"):
        base().make()
