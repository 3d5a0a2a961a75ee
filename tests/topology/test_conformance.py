"""Every score, quota, allocation and structure of ours inherits the kit."""

from __future__ import annotations

from typing import Any

from gossamer.testing import AllocationLaws, QuotaLaws, ScoreLaws, StructureLaws
from gossamer.topology import (
    ALLOCATIONS,
    NM,
    Block,
    Channels,
    FanIn,
    Quota,
    Score,
    Structure,
    Unstructured,
    quotas,
    resolve_allocation,
    scores,
)

SCORES = {name: value for name, value in vars(scores).items() if isinstance(value, Score)}
QUOTAS = {name: value for name, value in vars(quotas).items() if isinstance(value, Quota)}
QUOTAS |= {f"gain_below_{target:g}": quotas.gain_below(target) for target in (1, 2)}
STRUCTURES: dict[str, Structure] = {
    "Unstructured": Unstructured(),
    "FanIn": FanIn(),
    "TwoOfFour": NM(2, 4),
    "OneOfFour": NM(1, 4),
    "Block": Block(2),
    "BlockOfRows": Block(1, 3),
    "Outputs": Channels(p=float("inf")),
    "Inputs": Channels("inputs", p=float("inf")),
}


def laws_of(base: type, name: str, part: Any) -> None:
    """Put a class of laws where pytest finds it."""
    title = f"Test{name.title().replace('_', '')}{base.__name__}"
    globals()[title] = type(title, (base,), {"make": lambda self: part})


for _base, _parts in (
    (ScoreLaws, SCORES),
    (QuotaLaws, QUOTAS),
    (AllocationLaws, ALLOCATIONS),
    (StructureLaws, STRUCTURES),
):
    for _name, _part in _parts.items():
        laws_of(_base, _name, _part)


def test_all_parts_are_here() -> None:
    assert set(SCORES) >= {"gradient", "magnitude", "momentum", "random", "saliency", "sign_flip", "signed_magnitude"}
    assert set(QUOTAS) >= {"gain_below_2", "mean_gradient", "mean_momentum", "own", "survivors"}
    assert set(ALLOCATIONS) == {"equal_per_filter", "equal_per_layer", "er", "erk", "uniform"}


class TestExactFanIn(StructureLaws):
    shapes = ((4, 6), (3, 2, 3), (1, 8))  # from 3 filters on an exchange between them is never allowed

    def make(self) -> FanIn:
        return FanIn(exact=True)


class TestTransposable(StructureLaws):
    shapes = ((4, 8), (4, 4, 2), (8, 4))

    def make(self) -> NM:
        return NM(2, 4, transposable=True)


class TestTransposableOneOfTwo(StructureLaws):
    shapes = ((4, 6), (2, 4, 2), (2, 2))

    def make(self) -> NM:
        return NM(1, 2, transposable=True)


class TestAlongOutputs(StructureLaws):
    shapes = ((4, 8), (4, 4, 2), (8, 1))

    def make(self) -> NM:
        return NM(2, 4, axis="outputs")


class TestExplicitAllocation(AllocationLaws):
    networks = ({"a.weight": (30, 20), "b.weight": (20, 30), "head": (2, 20)},)
    densities = (0.1, 0.25, 0.5)

    def make(self) -> dict[str, float | int]:
        return {"head": 1.0, "a.*": 60}


class TestAllocationByName(AllocationLaws):
    def make(self) -> str:
        return "erk"


class TestFunctionAsAllocation(AllocationLaws):
    def make(self) -> Any:
        def like_uniform(shapes: Any, density: float) -> dict[str, int]:
            return resolve_allocation("uniform")(shapes, density)

        return like_uniform
