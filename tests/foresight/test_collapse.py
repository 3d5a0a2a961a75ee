"""Layer collapse is found and refused; which weights lie on a path, by hand and by brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer import foresight
from gossamer.errors import ConfigError
from gossamer.topology import Support

from .measure import counts, masks, weights
from .nets import NETS, Residual, images, mlp, seeded, vectors


def unequal() -> nn.Module:
    """A chain in whose wide middle the initial weights are the smallest."""
    return mlp(6, 64, 64, 3)


# -- refused or told ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saliency", [foresight.magnitude(6), foresight.magnitude()], ids=["shape", "no-shape"])
def test_a_chain_that_is_cut_is_refused(saliency: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^magnitude at density 0\.00\d+ leaves 2\.weight, 4\.weight without any weight \(.*\); "
    ):
        masks(seeded(unequal), saliency, 0.005)


def test_the_refusal_says_what_is_known() -> None:
    model = seeded(unequal)
    with pytest.raises(
        ConfigError, match=r"\(layer collapse: no path from input to output is left, nothing can train\)"
    ):
        masks(model, foresight.magnitude(6), 0.005)
    with pytest.raises(ConfigError, match=r"\(whether shortcuts lead around them is not known without inputs="):
        masks(model, foresight.magnitude(), 0.005)
    with pytest.raises(ConfigError, match=r"layer collapse: .*allow_collapse=True$"):  # the examples tell the shape
        masks(model, foresight.snip(vectors(6, 3)), 0.0005)


def test_where_the_flow_of_a_model_is_not_known_the_refusal_stays() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = unequal()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.chain(x)}

    saliency = foresight.snip(vectors(6, 3), loss=lambda o, t: nn.functional.cross_entropy(o["logits"], t))
    with pytest.raises(ConfigError, match=r"^snip at density .* \(whether shortcuts lead around them is not known"):
        masks(seeded(Named), saliency, 0.0005)


def test_allowed_collapse_warns_and_goes_on() -> None:
    with pytest.warns(
        UserWarning, match=r"^magnitude at density .* leaves 2\.weight, 4\.weight without any weight \(layer "
    ):
        found = masks(seeded(unequal), foresight.magnitude(6, allow_collapse=True), 0.005)
    assert sum(counts(found).values()) == round(0.005 * (6 * 64 + 64 * 64 + 64 * 3))


def test_a_net_is_cut_without_an_empty_layer_too() -> None:
    """One weight per layer, to unit 0 and from unit 1: refused where the shape of an input is given."""
    model = seeded(lambda: mlp(2, 2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[5.0, 1.0], [1.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 5.0], [1.0, 1.0]]))
    assert all(mask.sum() == 1 for mask in masks(model, foresight.magnitude(), 0.25).values())
    with pytest.raises(
        ConfigError, match=r"^magnitude at density 0\.25: no path from input to output is left, though no layer"
    ):
        masks(model, foresight.magnitude(2), 0.25)
    with pytest.warns(UserWarning, match=r"^magnitude at density 0\.25: no path from input to output is left"):
        masks(model, foresight.magnitude(2, allow_collapse=True), 0.25)


def test_synflow_reaches_one_weight_per_layer() -> None:
    """Maximal compression: rounds remove a path at a time, never a layer."""
    found = masks(seeded(lambda: mlp(6, 12, 12, 12, 3)), foresight.synflow(6), 4 / (72 + 144 + 144 + 36))
    assert list(counts(found).values()) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("tiny", "empty"),
    [("shortcut.weight", "shortcut.weight"), ("depthwise.weight", "depthwise.weight, grouped.weight")],
)
def test_an_empty_layer_that_others_go_round_is_only_told(tiny: str, empty: str) -> None:
    model = seeded(Residual)
    with torch.no_grad():
        model.get_parameter(tiny).mul_(1e-6)
    with pytest.warns(UserWarning, match=rf"leaves {empty} without any weight \(shortcuts lead around them\)$"):
        found = masks(model, foresight.synflow((3, 8, 8), 5), 0.2)
    assert [name for name, count in counts(found).items() if not count] == empty.split(", ")


def test_both_sides_of_a_residual_sum_are_a_cut() -> None:
    model = seeded(Residual)
    with torch.no_grad():
        model.shortcut.weight.mul_(1e-6)
        model.grouped.weight.mul_(1e-6)
    with pytest.raises(ConfigError, match=r"leaves grouped\.weight, shortcut\.weight without any weight \(layer coll"):
        masks(model, foresight.magnitude((3, 8, 8)), 0.1)


def test_many_empty_weights_are_not_all_listed() -> None:
    model = seeded(lambda: mlp(*[8] * 9))
    with torch.no_grad():
        model[0].weight.mul_(100)
    with pytest.raises(ConfigError, match=r"leaves 2\.weight, 4\.weight, 6\.weight, 8\.weight, 10\.weight and 2 more "):
        masks(model, foresight.magnitude(8), 0.05)


# -- weights on a path -------------------------------------------------------------------------------------------------


def supports(found: dict[str, Tensor]) -> dict[str, Support]:
    return {name: Support.from_mask(mask) for name, mask in found.items()}


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(model).items()}


def search(layers: list[Tensor]) -> list[int]:
    """Weights on a path, by going through all paths of a chain."""
    used = [set() for _ in layers]  # type: ignore[var-annotated]
    sizes = [layers[0].shape[1], *(len(layer) for layer in layers)]
    for path in itertools.product(*map(range, sizes)):
        edges = [(b, a) for a, b in itertools.pairwise(path)]
        if all(layer[edge] for layer, edge in zip(layers, edges, strict=True)):
            for found, edge in zip(used, edges, strict=True):
                found.add(edge)
    return list(map(len, used))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(0, 999), st.sampled_from([0.2, 0.4, 0.7, 1.0]))
def test_counts_equal_a_search_over_all_paths(widths: list[int], seed: int, density: float) -> None:
    model, g = mlp(*widths), torch.Generator().manual_seed(seed)
    found = {name: torch.rand(w.shape, generator=g) < density for name, w in weights(model).items()}
    effective = foresight.effective_counts(model, supports(found), (widths[0],))
    assert list(effective.values()) == search(list(found.values()))


def test_all_weights_of_a_net_without_max_pooling_lie_on_paths() -> None:
    model = seeded(lambda: Residual(pool=False))
    assert foresight.effective_counts(model, supports(everything(model)), (3, 8, 8)) == counts(everything(model))


@pytest.mark.parametrize(
    ("removed", "changes"),
    [
        # channel 0 of the stem now reaches the shortcut alone; its kernel of 9 no longer goes on to group 0
        ("depthwise", {"depthwise.weight": 72 - 9, "grouped.weight": 216 - 3 * 9}),
        # channel 0 is left the branch
        ("shortcut", {"shortcut.weight": 96 - 12}),
        # filter 0 comes from the shortcut alone, which serves the same outputs
        ("grouped", {"grouped.weight": 216 - 18}),
        # nothing leads to channel 0
        ("stem", {"stem.weight": 216 - 27, "depthwise.weight": 63, "grouped.weight": 216 - 27, "shortcut.weight": 84}),
        # nothing leads away from filter 0
        ("head", {"head.weight": 48 - 4, "grouped.weight": 216 - 18, "shortcut.weight": 96 - 8}),
    ],
)
def test_paths_through_a_residual_net_by_hand(removed: str, changes: dict[str, int]) -> None:
    model = seeded(lambda: Residual(pool=False))
    found = everything(model)
    mask = found[f"{removed}.weight"]
    if removed in ("shortcut", "head"):
        mask[:, 0] = False
    else:
        mask[0] = False
    effective = foresight.effective_counts(model, supports(found), foresight.Ones((3, 8, 8)))
    assert effective == {**counts(everything(model)), **changes}


@pytest.mark.parametrize("density", [0.5, 0.0])
def test_depth_does_not_hide_paths(density: float) -> None:
    """450 layers: neither too much flow for float64, nor too little. Each output keeps one input at least."""
    g = torch.Generator().manual_seed(0)
    model = mlp(*[32] * 451, bias=False, act=nn.ReLU)
    drawn = {name: torch.rand(w.shape, generator=g) < density for name, w in weights(model).items()}
    found = {name: mask | torch.eye(32, dtype=torch.bool) for name, mask in drawn.items()}
    assert foresight.effective_counts(model, supports(found), (32,)) == counts(found)


def test_of_nothing_nothing_counts() -> None:
    model = mlp(3, 4, 2)
    found = everything(model)
    found["0.weight"][:] = False
    assert foresight.effective_counts(model, supports(found), 3) == {"0.weight": 0, "2.weight": 0}


def test_counting_leaves_the_model_alone_and_needs_no_gradients() -> None:
    model = seeded(Residual, dtype=torch.float32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = supports(masks(model, foresight.snip(images(dtype=torch.float32)), 0.3))
    wanted = foresight.effective_counts(model, found, (3, 8, 8))
    with torch.inference_mode():
        assert foresight.effective_counts(model, found, (3, 8, 8)) == wanted
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_a_compiled_model_is_counted() -> None:
    model = seeded(unequal)
    wanted = counts(everything(model))
    assert foresight.effective_counts(torch.compile(model), supports(everything(model)), 6) == wanted  # type: ignore[arg-type]


def test_tokens_are_counted() -> None:
    make, _, ones = NETS["recurrent"]
    model = seeded(make)
    assert foresight.effective_counts(model, supports(everything(model)), ones)["head.weight"] == 25


def test_supports_of_another_model_are_refused() -> None:
    support = Support.from_mask(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"^the model has no parameter fc\.weight; supports are by weight name$"):
        foresight.effective_counts(mlp(2, 2), {"fc.weight": support}, (2,))
