"""Sanity checks: what is shuffled keeps its counts, what is drawn anew keeps its mask, what is inverted is the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer
from gossamer import Given, foresight, methods
from gossamer.analysis import sanity
from gossamer.errors import ConfigError
from gossamer.method import Method
from gossamer.topology import NM, FanIn, Support, scores

DATA = [(torch.randn(16, 12, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4)]


def net(seed: int = 0) -> nn.Sequential:
    """12-16-4."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def scored(density: float = 0.3) -> Method:
    """Static on a SNIP mask."""
    return methods.static(density, init=foresight.snip(DATA))


def test_first_supports_are_those_that_training_starts_from_and_nothing_is_touched() -> None:
    for method in (scored(), methods.rigl(0.2), methods.rewire(0.2), methods.set_(0.3, init=foresight.synflow((12,)))):
        model = net()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = sanity.first_supports(model, method, total_steps=1000)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=1000)
        assert dict(sparsifier.supports) == found


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(6, 20), st.integers(6, 20)), min_size=1, max_size=3), st.integers(0, 99))
def test_a_shuffle_keeps_every_count_and_moves_the_mask(shapes: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = {f"w{i}": torch.rand(shape, generator=generator) < 0.4 for i, shape in enumerate(shapes)}
    supports = {name: Support.from_mask(mask) for name, mask in masks.items()}
    shuffled = sanity.shuffle(supports, seed)
    assert {n: s.count for n, s in shuffled.items()} == {n: s.count for n, s in supports.items()}
    assert all(shuffled[name] != support for name, support in supports.items())
    assert sanity.shuffle(supports, seed) == shuffled
    assert sanity.shuffle(supports, seed + 1) != shuffled


def test_a_shuffle_is_uniform_over_positions() -> None:
    support = {"w": Support.from_mask(torch.tensor([[True, True, False, False, False, False]]))}
    hits = sum(sanity.shuffle(support, seed)["w"].mask.double() for seed in range(3000))
    assert torch.allclose(hits / 3000, torch.tensor(1 / 3, dtype=torch.float64), atol=0.04)


def test_a_shuffle_stays_within_the_structure() -> None:
    weight = torch.randn(8, 12)
    for structure, count in ((FanIn(exact=True), 24), (NM(2, 4), 48)):
        (mask,) = structure.select([weight.abs()], count)
        (found,) = sanity.shuffle({"w": Support.from_mask(mask)}, 3, structure).values()
        assert structure.is_valid(found.mask)
        assert found.count == count


def test_the_shuffled_mask_is_the_one_that_the_forward_pass_uses() -> None:
    model = net()
    supports = sanity.first_supports(model, scored())
    shuffled = sanity.shuffle(supports)
    gossamer.sparsify(model, methods.static(0.3, init=Given(shuffled)), torch.optim.SGD(model.parameters(), lr=0.1))
    for name, parameter in model.named_parameters():
        if name in shuffled:
            assert torch.equal(parameter != 0, shuffled[name].mask)
            assert shuffled[name] != supports[name]


def test_inverting_keeps_the_lowest_scores() -> None:
    model = net()
    for method in (scored(0.4), Method(name="m", density=0.4, allocation="uniform", init=scores.magnitude)):
        low = sanity.first_supports(model, sanity.invert(method))
        high = sanity.first_supports(model, method)
        assert sum(s.count for s in low.values()) == sum(s.count for s in high.values())
        assert not any(bool((low[name].mask & high[name].mask).any()) for name in low)
        assert sanity.first_supports(model, sanity.invert(sanity.invert(method))) == high


def test_what_has_no_first_support_or_no_scores_is_refused() -> None:
    support = Support.full((16, 12))
    for method in (methods.static(0.3), Method(name="m", density=1.0, init=Given({"0.weight": support}))):
        with pytest.raises(ConfigError, match="no scores to invert"):
            sanity.invert(method)
    with pytest.raises(ConfigError, match="starts dense"):
        sanity.first_supports(net(), methods.gmp(0.1), total_steps=100)
    with pytest.raises(ConfigError, match="while it trains"):
        sanity.first_supports(net(), methods.cs(0.1), total_steps=100)  # type: ignore[arg-type]


def test_redrawing_changes_every_weight_reproducibly_and_no_global_state() -> None:
    model, state = net(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sanity.redraw(model, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = net(9)
    sanity.redraw(other, 5)
    assert all(torch.equal(v, w) for v, w in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_redrawing_needs_a_way_to() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))

    model = nn.Sequential(nn.Linear(3, 3), Odd())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match="Odd has no reset_parameters"):
        sanity.redraw(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sanity.redraw(model, 0, init=lambda m: [nn.init.normal_(p) for p in m.parameters()])
    assert not torch.equal(model[1].weight, torch.ones(3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [methods.static(0.3), methods.str_(0.3)])
def test_a_sparsified_model_is_not_redrawn_until_it_is_detached(method: Any) -> None:
    model = net()
    sparsifier = gossamer.sparsify(model, method, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for init in (None, lambda m: [nn.init.normal_(p) for p in m.parameters()]):
        with pytest.raises(ConfigError, match=r"is sparsified, .* or after detach\(\)"):
            sanity.redraw(model, 1, init=init)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sparsifier.detach()
    sanity.redraw(model, 1)
    assert not torch.equal(model[0].weight, torch.zeros(16, 12))


def test_attention_is_redrawn_as_it_is_made() -> None:
    """With its own scheme, which zeroes the biases, also that of the projection within it."""
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sanity.redraw(model, 3)
    after = model.state_dict()
    assert not after["self_attn.in_proj_bias"].count_nonzero()
    assert not after["self_attn.out_proj.bias"].count_nonzero()
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"):
        assert not torch.equal(after[name], before[name]), name


def test_a_change_of_the_initialisation_is_told_once_and_a_function_of_ones_own_is_not_judged() -> None:
    def scheme(model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.0)

    model = net()
    scheme(model)
    with pytest.warns(UserWarning, match=r"changed the std of 0.weight from .* to 0.1.*, pass init=") as told:
        sanity.redraw(model, 0)
    assert len(told) == 1
    assert "and 1 more:" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sanity.redraw(model, 0)  # now as reset_parameters draws
        sanity.redraw(model, 0, init=scheme)


def test_a_first_draw_is_like_the_next_for_common_modules() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(
        [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(64), nn.LayerNorm(64), nn.Embedding(10, 8), nn.LSTM(8, 8), nn.Linear(8, 64)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(5):
            sanity.redraw(model, seed)


SALIENCY = cast(Any, foresight.synflow((12,)))
NOTHING = cast(Any, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sanity.first_supports(net(), SALIENCY), r"this is a Saliency; pass a method .*init=saliency"),
        (lambda: sanity.first_supports(NOTHING, scored()), "model is None; expected a torch.nn.Module"),
        (lambda: sanity.first_supports(net(), NOTHING), "method is None; expected a Method such as"),
        (lambda: sanity.first_supports(net(), cast(Any, "snip")), "method is 'snip'; expected a Method"),
        (lambda: sanity.first_supports(net(), scored(), seed=True), "seed=True: expected an int"),
        (lambda: sanity.first_supports(net(), scored(), seed=cast(Any, 1.5)), "seed=1.5: expected an int"),
        (lambda: sanity.invert(SALIENCY), "this is a Saliency; pass a method"),
        (lambda: sanity.invert(NOTHING), "method is None; expected a Method"),
        (lambda: sanity.invert(cast(Any, methods.cs(0.1))), "while it trains"),
        (lambda: sanity.shuffle(NOTHING), "supports is None; pass weight name -> Support"),
        (lambda: sanity.shuffle({"w": cast(Any, torch.ones(2, 2))}), "supports is dict; pass weight name -> Support"),
        (lambda: sanity.shuffle({}, structure=NOTHING), "structure=None: expected that of the method"),
        (lambda: sanity.shuffle({}, cast(Any, "1")), "seed='1': expected an int"),
        (lambda: sanity.redraw(net(), 0, init=cast(Any, True)), "init=True: expected a function"),
        (lambda: sanity.redraw(net(), False), "seed=False: expected an int"),
        (lambda: sanity.redraw(NOTHING, 0), "model is None"),
    ],
)
def test_wrong_arguments_are_told_what_to_pass(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        call()
    assert "\n" not in str(told.value)
