"""Allocations: exact totals within bounds, golden densities, infeasible ones raise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gossamer.errors import ConfigError
from gossamer.topology import (
    ALLOCATIONS,
    Allocation,
    Explicit,
    check_density,
    equal_per_filter,
    equal_per_layer,
    er,
    erk,
    resolve_allocation,
    spread,
    uniform,
)

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
CONVS = {
    "c1": (64, 3, 3, 3),
    "c2": (64, 64, 3, 3),
    "c3": (128, 64, 3, 3),
    "c4": (128, 128, 3, 3),
    "fc": (10, 128),
}
SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8).map(
    lambda shapes: {f"layer{i}": shape for i, shape in enumerate(shapes)}
)


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    return [math.prod(shape) for shape in shapes.values()]


@pytest.mark.parametrize("allocation", ALLOCATIONS.values(), ids=lambda a: a.name)
@settings(deadline=None)
@given(shapes=SHAPES, density=st.floats(1e-4, 1))
def test_totals_are_exact(shapes: dict[str, tuple[int, ...]], density: float, allocation: Allocation) -> None:
    budget = round(density * sum(sizes(shapes)))
    assume(budget >= len(shapes))
    counts = allocation(shapes, density)
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == budget
    assert all(type(n) is int and 1 <= n <= size for n, size in zip(counts.values(), sizes(shapes), strict=True))
    assert allocation(shapes, density) == counts


@pytest.mark.parametrize("allocation", ALLOCATIONS.values(), ids=lambda a: a.name)
@given(shapes=SHAPES)
def test_density_one_is_dense(shapes: dict[str, tuple[int, ...]], allocation: Allocation) -> None:
    assert list(allocation(shapes, 1.0).values()) == sizes(shapes)


@pytest.mark.parametrize("allocation", ALLOCATIONS.values(), ids=lambda a: a.name)
@given(shapes=SHAPES)
def test_smallest_density_is_one_each(shapes: dict[str, tuple[int, ...]], allocation: Allocation) -> None:
    total = sum(sizes(shapes))
    assert set(allocation(shapes, len(shapes) / total).values()) == {1}


GOLDEN: list[tuple[Allocation, dict[str, tuple[int, ...]], float, list[float]]] = [
    (erk, LENET, 0.2, [0.16224, 0.46936, 1]),
    (erk, LENET, 0.1, [0.07957, 0.23019, 1]),
    (erk, LENET, 0.05, [0.03848, 0.11133, 0.91851]),
    (erk, LENET, 0.5, [0.43410, 1, 1]),
    (er, LENET, 0.2, [0.16224, 0.46936, 1]),
    (erk, CONVS, 0.1, [1, 0.14135, 0.10443, 0.06909, 1]),
    (er, CONVS, 0.1, [1, 0.14315, 0.10736, 0.07157, 0.49387]),
    (uniform, CONVS, 0.1, [0.1] * 5),
]


@pytest.mark.parametrize(("allocation", "shapes", "density", "expected"), GOLDEN)
def test_golden_densities(
    allocation: Allocation, shapes: dict[str, tuple[int, ...]], density: float, expected: list[float]
) -> None:
    for count, size, wanted in zip(allocation(shapes, density).values(), sizes(shapes), expected, strict=True):
        assert abs(count - wanted * size) <= 1 + 5e-6 * size


def test_equal_per_layer_fills_small_layers() -> None:
    shapes = {"a": (5,), "b": (100,), "c": (1000,), "d": (20,)}
    assert list(equal_per_layer(shapes, 100 / 1125).values()) == [5, 38, 37, 20]
    assert list(equal_per_layer({"a": (2,), "b": (3,)}, 1.0).values()) == [2, 3]


def test_equal_per_filter_caps_at_the_fan_in() -> None:
    shapes = {"a": (4, 2), "b": (6, 50), "c": (10, 100)}  # 18 each of 20 filters; a holds 2 each
    counts = equal_per_filter(shapes, 328 / 1308)
    assert counts == {"a": 8, "b": 120, "c": 200}  # 20 for each of the other 16


def test_uniform_of_many_layers() -> None:
    shapes = {str(i): (64, 27) for i in range(100)}
    assert set(uniform(shapes, 0.1).values()) == {172, 173}


@pytest.mark.parametrize("allocation", [*ALLOCATIONS.values(), Explicit({"layer0": 1})], ids=lambda a: a.name)
def test_infeasible_density_names_the_smallest(allocation: Allocation) -> None:
    shapes = {f"layer{i}": (10, 10) for i in range(4)}
    with pytest.raises(ConfigError, match=r"smallest feasible density is 4/400 = 0.01"):
        allocation(shapes, 0.005)


def test_no_weights() -> None:
    with pytest.raises(ConfigError, match="no weights"):
        erk({}, 0.1)


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, 1.5, 50, math.nan, math.inf, "0.1", None, True])
def test_bad_density(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"density is the fraction of weights kept, above 0 and at most 1, got"):
        check_density(bad)
    with pytest.raises(ConfigError, match="density is the fraction"):
        erk(LENET, bad)


def test_percent_is_recognised() -> None:
    with pytest.raises(ConfigError, match=r"for 90 percent write 0.9 \(for a sparsity s, .* write 1 - s\)"):
        check_density(90)


def test_check_density_returns_a_float() -> None:
    assert check_density(1) == 1.0
    assert type(check_density(Fraction(1, 4))) is float


# -- as the authors of DCTpS count -------------------------------------------------------------------------------------


def _shapes(*shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"layer{number}": shape for number, shape in enumerate(shapes)}


def resnet18() -> dict[str, tuple[int, ...]]:
    """Weights of the authors' ResNet-18, which is that of the reference models."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3)]
    inputs = 64
    for stage in (64, 128, 256, 512):
        shortcut = [] if inputs == stage else [(stage, inputs, 1, 1)]
        shapes += [(stage, inputs, 3, 3), (stage, stage, 3, 3), *shortcut, *[(stage, stage, 3, 3)] * 2]
        inputs = stage
    return _shapes(*shapes, (10, 512))


def vgg19() -> dict[str, tuple[int, ...]]:
    channels = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    return _shapes(*((o, i, 3, 3) for i, o in itertools.pairwise(channels)), (10, 512))


def mobilenetv2() -> dict[str, tuple[int, ...]]:
    """The authors' MobileNetV2: a shortcut is a convolution where the channels change at equal size."""
    shapes: list[tuple[int, ...]] = [(32, 3, 3, 3)]
    inputs = 32
    for expand, outputs, blocks, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(blocks):
            inner = expand * inputs
            shapes += [(inner, inputs, 1, 1), (inner, 1, 3, 3), (outputs, inner, 1, 1)]
            shapes += [(outputs, inputs, 1, 1)] if block == 0 and stride == 1 else []
            inputs = outputs
    return _shapes(*shapes, (1280, 320, 1, 1), (10, 1280))


def fixup_resnet110() -> dict[str, tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3)]
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        shapes += [(outputs, inputs, 3, 3), *[(outputs, outputs, 3, 3)] * 35]
    return _shapes(*shapes, (10, 64))


@pytest.mark.parametrize(
    ("shapes", "numel", "density", "kept"),
    [
        (resnet18(), 11_164_352, 0.01, 0.966),
        (vgg19(), 20_024_000, 0.01, 0.9165),
        (mobilenetv2(), 2_261_824, 0.0001, 174 / 226.1824),
        (fixup_resnet110(), 1_719_856, 0.0001, 110 / 171.9856),
    ],
)
def test_reference_totals_fall_short_as_published(
    shapes: dict[str, tuple[int, ...]], numel: int, density: float, kept: float
) -> None:
    assert sum(sizes(shapes)) == numel
    counts = resolve_allocation("equal_per_layer:reference")(shapes, density)
    assert sum(counts.values()) / (density * numel) == pytest.approx(kept, abs=5e-4)
    assert sum(equal_per_layer(shapes, density).values()) == round(density * numel)


def test_reference_uniform_leaves_layers_empty() -> None:
    for shapes, empty in ((mobilenetv2(), 34), (fixup_resnet110(), 74)):
        counts = resolve_allocation("uniform:reference")(shapes, 0.0001)
        assert sum(count == 0 for count in counts.values()) == empty


def test_reference_by_hand() -> None:
    shapes = {"a": (2, 5), "b": (10, 10), "c": (3, 4)}  # 122 entries, K = 61
    by_name = {name: resolve_allocation(f"{name}:reference")(shapes, 0.5) for name in ALLOCATIONS if name != "er"}
    assert by_name["uniform"] == {"a": 5, "b": 50, "c": 6}
    assert by_name["equal_per_layer"] == {"a": 10, "b": 20, "c": 12}  # 61/3 each; 10.3 and 8.3 too many go to c, full
    assert by_name["equal_per_filter"] == {"a": 8, "b": 40, "c": 12}  # 61/15 per filter
    assert by_name["erk"] == {"a": 10, "b": 35, "c": 12}  # 61/34 per unit of shape


@pytest.mark.parametrize("name", [name for name in ALLOCATIONS if name != "er"])
@given(shapes=SHAPES, density=st.floats(1e-3, 1))
def test_reference_never_has_more_than_it_should(shapes: dict[str, tuple[int, ...]], density: float, name: str) -> None:
    total = sum(sizes(shapes))
    assume(density * total >= 2 * len(shapes) * max(map(max, shapes.values())))
    counts = resolve_allocation(f"{name}:reference")(shapes, density)
    assert sum(counts.values()) <= density * total * (1 + 1e-9)
    assert all(type(n) is int and 0 <= n <= size for n, size in zip(counts.values(), sizes(shapes), strict=True))


def test_reference_errors() -> None:
    with pytest.raises(ConfigError, match=r"leaves no entry at density 0.0001: each layer's share of .* cut off"):
        resolve_allocation("equal_per_layer:reference")({"a": (10, 10), "b": (10, 10)}, 0.0001)
    with pytest.raises(ConfigError, match="unknown allocation 'er:reference'"):
        resolve_allocation("er:reference")


# -- explicit ---------------------------------------------------------------------------------------------------------


def test_explicit_first_match_wins_and_the_rest_is_shared() -> None:
    counts = Explicit({"fc3": 1.0, "fc*": 500}, rest="erk")({**LENET, "head": (10, 10), "tail": (10, 10)}, 0.008)
    assert (counts["fc1"], counts["fc2"], counts["fc3"]) == (500, 500, 1000)
    assert sum(counts.values()) == round(0.008 * (sum(sizes(LENET)) + 200))
    assert counts["head"] - counts["tail"] in (0, 1)


def test_explicit_that_names_everything() -> None:
    shapes = {"a": (7,), "b": (7,), "c": (7,)}
    counts = Explicit({"*": 0.5})(shapes, 0.5)
    assert sum(counts.values()) == round(0.5 * 21)
    assert set(counts.values()) == {3, 4}
    assert Explicit({"a": 0.01, "b": 0.109})({"a": (10,), "b": (100,)}, 0.1) == {"a": 1, "b": 10}
    assert Explicit({"a": 1, "b": 2, "c": 1.0})(shapes, 10 / 21) == {"a": 1, "b": 2, "c": 7}


@settings(deadline=None)
@given(shapes=SHAPES, density=st.floats(0.05, 1), rest=st.sampled_from(sorted(ALLOCATIONS)))
def test_explicit_totals_are_exact(shapes: dict[str, tuple[int, ...]], density: float, rest: str) -> None:
    budget = round(density * sum(sizes(shapes)))
    assume(budget >= len(shapes))
    counts = Explicit({"layer0": 1}, rest=rest)
    assume(budget - 1 <= sum(sizes(shapes)[1:]))
    assume(len(shapes) > 1)
    assert sum(counts(shapes, density).values()) == budget
    assert counts(shapes, density)["layer0"] == 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Explicit({"fc9": 0.5})(LENET, 0.1), "'fc9', which matches no sparse weight; did you mean 'fc"),
        (lambda: Explicit({"fc3": 2000})(LENET, 0.1), "fc3 is 2000, but it has 1000 entries; write 1.0"),
        (lambda: Explicit({"fc1": 1.0})(LENET, 0.1), "the other 2 weights hold 2 to 31000, not -"),
        (lambda: Explicit({"fc*": 0.2})(LENET, 0.1), "adds up to density 0.2, not to the overall 0.1"),
        (lambda: Explicit({"fc3": 0}), "at least 1, got 0"),
        (lambda: Explicit({"fc3": 1.5}), "density is the fraction"),
        (lambda: Explicit({"fc3": True}), "density is the fraction"),
        (lambda: Explicit({"fc3": 1.0}, rest="er_k"), "unknown allocation 'er_k'; did you mean 'erk'"),
    ],
)
def test_explicit_errors(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


# -- resolving --------------------------------------------------------------------------------------------------------


def test_resolve() -> None:
    for name, allocation in ALLOCATIONS.items():
        assert resolve_allocation(name) is allocation
        assert resolve_allocation(allocation) is allocation
    mapped = resolve_allocation({"fc3": 1.0})
    assert (mapped.name, mapped(LENET, 0.2)["fc3"]) == ("explicit", 1000)
    for bad in (0.5, None):
        with pytest.raises(ConfigError, match="expected a name, a mapping"):
            resolve_allocation(bad)
    with pytest.raises(ConfigError, match="unknown allocation 'equal_per_filer'; did you mean 'equal_per_filter'"):
        resolve_allocation("equal_per_filer")


def test_own_function_is_checked() -> None:
    def all_in_first(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, int]:
        left = round(density * sum(sizes(shapes))) - (len(shapes) - 1)
        return {name: left if place == 0 else 1 for place, name in enumerate(shapes)}

    allocation = resolve_allocation(all_in_first)
    assert allocation.name == "all_in_first"
    assert allocation(LENET, 0.1) == {"fc1": 26618, "fc2": 1, "fc3": 1}
    assert resolve_allocation(allocation) is allocation


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"fc1": 26620}, "exactly the weights"),
        ({"fc1": 26619, "fc2": 1, "fc3": 0}, "gives fc3 0: expected an int from 1 to 1000"),
        ({"fc1": 26618.0, "fc2": 1, "fc3": 1}, "gives fc1 26618.0"),
        ({"fc1": 26610, "fc2": 1, "fc3": 1}, "adds up to 26612; density 0.1 asks for 26620"),
    ],
)
def test_own_function_that_breaks_the_law(counts: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        resolve_allocation(lambda shapes, density: counts)(LENET, 0.1)


# -- spread -----------------------------------------------------------------------------------------------------------


@st.composite
def spreads(draw: st.DrawFn) -> tuple[list[float], list[int], int, int]:
    n = draw(st.integers(1, 8))
    quota = draw(st.lists(st.integers(0, 50) | st.floats(0, 1e6), min_size=n, max_size=n))
    capacity = draw(st.lists(st.integers(0, 50), min_size=n, max_size=n))
    least = draw(st.integers(0, 2))
    lowest = sum(min(least, room) for room in capacity)
    return quota, capacity, draw(st.integers(lowest, sum(capacity))), least


@settings(max_examples=300, deadline=None)
@given(problem=spreads())
def test_spread_is_water_filling(problem: tuple[list[float], list[int], int, int]) -> None:
    quota, capacity, total, least = problem
    parts = spread(*problem)
    floor = [min(least, room) for room in capacity]
    assert sum(parts) == total
    assert all(low <= part <= room for low, part, room in zip(floor, parts, capacity, strict=True))
    free = [(p, Fraction(q)) for p, q, f, c in zip(parts, quota, floor, capacity, strict=True) if q > 0 and f < p < c]
    for part, q in free:  # one level for all parts strictly between their bounds
        for other, r in free:
            assert (part - 1) / q < (other + 1) / r


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_a_quota_that_fits_is_unchanged(pairs: list[tuple[int, int]]) -> None:
    quota = [q for q, _ in pairs]
    assert spread(quota, [q + more for q, more in pairs], sum(quota)) == quota


def test_spread_golden() -> None:
    assert spread([0.75, 0.25], [100, 100], 40) == [30, 10]  # SNFS
    assert spread([0.75, 0.25], [20, 100], 40) == [20, 20]
    assert spread([60, 20], [1000, 1000], 20) == [15, 5]  # DSR
    assert spread([0, 0], [10, 30], 4) == [1, 3]
    assert spread([5, 0, 0], [3, 10, 30], 7) == [3, 1, 3]
    assert spread([1, 1, 1], [9, 9, 9], 5) == [2, 2, 1]


def test_spread_errors() -> None:
    with pytest.raises(ConfigError, match="cannot spread 7 over parts that hold 0 to 6"):
        spread([1, 1], [3, 3], 7)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="finite and not negative"):
            spread([bad, 1], [3, 3], 2)
