"""The quota of the gain of gradients: what the gain is, laws of the shares, worked values."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, DivergedError
from gossamer.topology import DropGrow, Entries, Unstructured, gain_below, own, scores, spread

SHAPES = [(4, 8), (3, 4, 2), (2, 3, 2, 2), (5,)]
FAR = 1e3  # a target that nothing here reaches


def entries(weight: Tensor, active: Tensor | None = None, grad: Tensor | None = None) -> Entries:
    return Entries(weight, weight != 0 if active is None else active, grad=grad)


def needs(group: Sequence[Entries], target: float) -> list[float]:
    """max(0, -log(b / target)): shares beside that of a weight of zeros, where no weight lacks entries."""
    blank = entries(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    members = [*group, blank]
    found = gain_below(target)(members, [3] * len(members), [torch.ones_like(e.active) for e in members])
    return [share / found[-1] * math.log(1e6) for share in found[:-1]]


def gain(weight: Tensor) -> float:
    """b, from its need at a target out of reach."""
    return FAR * math.exp(-needs([entries(weight)], FAR)[0])


def sparse(shape: Sequence[int], seed: int, density: float = 0.4, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(*shape, generator=g, dtype=torch.float64)
    weight[torch.rand(*shape, generator=g) > density] = 0.0
    weight.view(-1)[0] = scale
    return weight


@st.composite
def groups(draw: st.DrawFn, scale: float = 2.0) -> list[Entries]:
    """Weights of several shapes and scales, some of which hold zeros only."""
    made = []
    for shape in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4)):
        size = draw(st.sampled_from([0.0, 1e-30, 1e-2, 1.0, scale]))
        weight = sparse(shape, draw(st.integers(0, 999)), draw(st.sampled_from([0.1, 0.5, 1.0])))
        made.append(entries(size * weight, weight != 0))
    return made


# -- what the gain is --------------------------------------------------------------------------------------------------


def circular(stride: int, groups: int, dilation: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """A convolution of odd kernels on a torus."""

    def apply(weight: Tensor, x: Tensor) -> Tensor:
        conv = {3: F.conv1d, 4: F.conv2d}[weight.ndim]
        pad = [dilation * (k // 2) for k in reversed(weight.shape[2:]) for _ in range(2)]
        padded = F.pad(x[None], pad, mode="circular")
        return conv(padded, weight, stride=stride, groups=groups, dilation=dilation)[0]  # type: ignore[operator]

    return apply


def jacobian(layer: Callable[[Tensor, Tensor], Tensor], weight: Tensor, x: Tensor) -> Tensor:
    """One row per output."""
    rows = torch.autograd.functional.jacobian(lambda x: layer(weight, x), x)
    return rows.reshape(-1, x.numel())


LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda weight, x: weight @ x, (5, 9), (9,)),
    "conv2d": (circular(1, 1), (4, 3, 3, 3), (3, 5, 6)),
    "conv1d": (circular(1, 1), (4, 3, 5), (3, 7)),
    "grouped": (circular(1, 2), (6, 2, 3, 3), (4, 5, 5)),
    "depthwise": (circular(1, 4), (4, 1, 3, 3), (4, 5, 5)),
    "strided": (circular(2, 1), (4, 3, 3, 3), (3, 6, 6)),
    "dilated": (circular(1, 1, 2), (4, 3, 3, 3), (3, 7, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_gain_is_what_autograd_sends_back_of_white_gradients(name: str) -> None:
    """E||J^T d||^2 / E||d||^2 for white d is ||J||^2 over the number of outputs."""
    layer, shape, inputs = LAYERS[name]
    weight = sparse(shape, 0)
    matrix = jacobian(layer, weight, torch.zeros(inputs, dtype=torch.float64))
    singular = torch.linalg.svdvals(matrix)
    assert gain(weight) == pytest.approx(float(matrix.square().sum()) / len(matrix))
    assert gain(weight) == pytest.approx(float(singular.square().sum()) / len(matrix))


def test_zero_padding_lets_less_through() -> None:
    weight = sparse((4, 3, 3, 3), 1, density=1.0)
    x = torch.zeros(3, 5, 5, dtype=torch.float64)
    matrix = jacobian(lambda weight, x: F.conv2d(x[None], weight, padding=1)[0], weight, x)
    assert 0.5 * gain(weight) < float(matrix.square().sum()) / len(matrix) < gain(weight)


def test_of_a_transposed_convolution_it_is_the_gain_of_the_activations() -> None:
    weight, x = sparse((4, 3, 3, 3), 2), torch.zeros(4, 5, 5, dtype=torch.float64)
    matrix = jacobian(lambda weight, x: F.conv_transpose2d(x[None], weight, stride=2)[0], weight, x)
    assert gain(weight) == pytest.approx(float(matrix.square().sum()) / x.numel())


def test_he_initialisation_has_gain_two_and_a_random_support_its_density_times_as_much() -> None:
    g = torch.Generator().manual_seed(0)
    for shape in ((300, 200), (64, 32, 3, 3)):
        weight = torch.randn(*shape, generator=g) * math.sqrt(2 / math.prod(shape[1:]))
        assert gain(weight) == pytest.approx(2, rel=0.03)
        support = torch.rand(*shape, generator=g) < 0.1
        assert gain(torch.where(support, weight, 0.0)) == pytest.approx(0.2, rel=0.1)


# -- laws of the shares ------------------------------------------------------------------------------------------------


@st.composite
def drops(draw: st.DrawFn, group: list[Entries]) -> list[Tensor]:
    """What is kept, at least one entry of each weight."""
    kept = []
    for e in group:
        active = e.active.view(-1).nonzero().flatten().tolist()
        keep = draw(st.integers(1, len(active)))
        mask = torch.zeros(e.active.numel(), dtype=torch.bool)
        mask[active[:keep]] = True
        kept.append(mask.view(e.active.shape))
    return kept


@settings(deadline=None)
@given(groups(scale=1e30), st.sampled_from([1e-9, 0.3, 1.0, 2.0, 1e9]))
def test_needs_are_bounded(group: list[Entries], target: float) -> None:
    assert all(0 <= need <= math.log(1e6) + 1e-9 for need in needs(group, target))


@settings(deadline=None)
@given(groups(), st.sampled_from([0.1, 1.0, 30.0]), st.sampled_from([0.25, 1.0, 8.0]))
def test_scaling_the_weights_by_c_is_scaling_the_target_by_c_squared(
    group: list[Entries], c: float, target: float
) -> None:
    scaled = [entries(c * e.weight, e.active) for e in group]
    assert needs(scaled, c**2 * target) == pytest.approx(needs(group, target), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(groups(), st.integers(0, 99))
def test_neither_order_nor_inactive_values_nor_other_weights_matter(group: list[Entries], seed: int) -> None:
    alone = [needs([e], FAR)[0] for e in group]
    g = torch.Generator().manual_seed(seed)
    changed = []
    for e in group:
        order = torch.randperm(e.weight.numel(), generator=g)
        mixed = [part.view(-1)[order].view(e.weight.shape) for part in (torch.where(e.active, e.weight, 7.0), e.active)]
        changed.append(entries(*mixed))
    assert needs(changed, FAR) == pytest.approx(alone)


@settings(deadline=None)
@given(groups(), st.sampled_from([0.01, 1.0, FAR]))
def test_a_lower_gain_never_gets_less(group: list[Entries], target: float) -> None:
    squares = [float(e.weight[e.active].square().sum()) / len(e.weight) for e in group]
    found = needs(group, target)
    ranked = [need for _, need in sorted(zip(squares, found, strict=True), key=lambda pair: (pair[0], -pair[1]))]
    assert ranked == sorted(ranked, reverse=True)


@settings(deadline=None)
@given(st.data(), groups(), st.sampled_from([1e-9, 0.5, 2.0, FAR]))
def test_the_growth_adds_up_and_fits_and_lets_no_weight_fall_below_its_floor(
    data: st.DataObject, group: list[Entries], target: float
) -> None:
    """The floor is the larger of rows and columns, or what a weight held if that is less."""
    kept = data.draw(drops(group))
    n_kept = [int(mask.sum()) for mask in kept]
    held = [int(e.active.sum()) for e in group]
    dropped = [before - now for before, now in zip(held, n_kept, strict=True)]
    shares = list(gain_below(target)(group, dropped, kept))
    assert all(math.isfinite(share) and share >= 0 for share in shares)
    assert math.fsum(shares) == pytest.approx(sum(dropped))
    room = [mask.numel() - n for mask, n in zip(kept, n_kept, strict=True)]
    grown = spread(shares, room, sum(dropped))
    assert sum(grown) == sum(dropped)
    assert all(0 <= n <= most for n, most in zip(grown, room, strict=True))
    for e, before, now, more in zip(group, held, n_kept, grown, strict=True):
        floor = max(e.weight.shape[0], math.prod(e.weight.shape[1:]))
        assert now + more >= min(floor, before)


@settings(deadline=None, max_examples=30)
@given(groups(), st.sampled_from([1e-9, 1.0, FAR]), st.sampled_from([0.0, 0.3, 1.0]))
def test_rewiring_keeps_the_total(group: list[Entries], target: float, phi: float) -> None:
    group = [entries(e.weight, e.active, grad=sparse(e.weight.shape, 5)) for e in group]
    counts = [int(e.active.sum()) for e in group]
    rule = DropGrow(scores.magnitude, scores.gradient, phi, quota=gain_below(target))
    masks = rule.rewire(group, counts, Unstructured(), 0)
    assert sum(int(mask.sum()) for mask in masks) == sum(counts)


def test_where_all_gains_suffice_each_regrows_what_it_dropped() -> None:
    group = [entries(w := sparse(shape, i), grad=torch.ones_like(w)) for i, shape in enumerate(SHAPES)]
    counts = [int(e.active.sum()) for e in group]
    rules = [DropGrow(scores.magnitude, scores.gradient, 0.5, quota=q) for q in (gain_below(1e-9), own)]
    for one, other in zip(*(rule.rewire(group, counts, Unstructured(), 0) for rule in rules), strict=True):
        assert torch.equal(one, other)


# -- worked values -----------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Gains 4 / 2 = 2, 4 / 4 = 1 and 0.5 / 2 = 1 / 4; below 2 in log: 0, log 2 and log 8 = 3 log 2.

    Dropped are 1, 3 and 4. The second weight has 4 rows and 2 columns and kept 2, so it takes 2 first, and the 6 that
    are left go as 0, 1.5 and 4.5.
    """
    first = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, -1.0]])
    second = torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    third = torch.tensor([[[0.5, 0.0]], [[0.0, -0.5]]])
    group = list(map(entries, (first, second, third)))
    assert needs(group, 2.0) == pytest.approx([0, math.log(2), 3 * math.log(2)])
    two = torch.zeros(4, 2, dtype=torch.bool)
    two[:2, 0] = True
    kept = [torch.ones(2, 3, dtype=torch.bool), two, torch.ones(2, 1, 2, dtype=torch.bool)]
    assert gain_below(2.0)(group, [1, 3, 4], kept) == pytest.approx([0, 2 + 1.5, 4.5])


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e-4])
def test_a_weight_without_gain_does_not_take_all(scale: float) -> None:
    weight = torch.full((3, 3), scale, dtype=torch.float64)
    assert needs([entries(weight, torch.ones(3, 3, dtype=torch.bool))], 1.0) == [pytest.approx(math.log(1e6))]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gain_that_is_not_finite_is_divergence(value: float) -> None:
    weight = torch.tensor([[1.0, value]])
    with pytest.raises(DivergedError, match=r"^the gain of a quota is not finite: .*lower the learning rate$"):
        needs([entries(weight)], 1.0)
    assert needs([entries(weight, torch.tensor([[True, False]]))], math.e) == [pytest.approx(1)]


@pytest.mark.parametrize("target", [0, -1.0, math.nan, math.inf, True, "2", None])
def test_targets_that_cannot_be(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"^target=.*a finite number above 0; use 2 for ReLU nets"):
        gain_below(target)


def test_it_is_a_value() -> None:
    quota = gain_below(2)
    assert quota == gain_below(2.0) == pickle.loads(pickle.dumps(quota)) != gain_below(1)
    assert quota.name == "gain below 2"
    assert not quota.needs
