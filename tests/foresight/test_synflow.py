"""SynFlow: what flows is conserved, depends on the size of weights alone, and is in the range of float64 or told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import foresight
from gossamer.errors import DivergedError
from gossamer.foresight import Saliency

from . import oracles
from .measure import masks, names, same, scores, weights
from .nets import NETS, Residual, images, mlp, seeded


def flow(shape: int | tuple[int, ...], **arguments: Any) -> Saliency:
    return foresight.synflow(shape, **arguments)


def test_every_layer_of_a_chain_holds_the_whole_flow() -> None:
    model = seeded(lambda: mlp(6, 8, 7, 5, 3))
    found = scores(model, flow(6))
    flowing = torch.ones(6, dtype=torch.float64)
    for w in weights(model).values():
        flowing = w.detach().abs() @ flowing
    for value in found.values():
        assert float(value.sum()) == pytest.approx(float(flowing.sum()))


def test_what_flows_into_a_unit_of_a_chain_flows_out() -> None:
    layers = list(scores(seeded(lambda: mlp(6, 8, 7, 5, 3)), flow(6)).values())
    for before, after in itertools.pairwise(layers):
        torch.testing.assert_close(before.sum(1), after.sum(0))


def by_input(value: Tensor, groups: int = 1) -> Tensor:
    """Sums over a convolution's weight (out, in / groups, *kernel) for each input channel."""
    return value.flatten(2).sum(2).reshape(groups, -1, value.shape[1]).sum(1).reshape(-1)


@pytest.mark.parametrize("pool", [True, False], ids=["max", "mean"])
@pytest.mark.parametrize("sparse", [False, True])
def test_flow_is_conserved_in_a_residual_net(pool: bool, sparse: bool) -> None:
    """Per layer and channel, through batch norm, pooling, a depthwise and a grouped convolution, a shortcut."""
    model = seeded(lambda: Residual(pool=pool))
    given = masks(model, flow((3, 8, 8), rounds=5), 0.5) if sparse else None
    s = scores(model, flow((3, 8, 8)), given)
    everything = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights(model).items()}
    wanted, total = oracles.flow_scores(model, names(model), (3, 8, 8), given or everything)
    for name, value in s.items():
        torch.testing.assert_close(value, wanted[name])
    out = {name: value.flatten(1).sum(1) for name, value in s.items()}
    for layer in ("stem.weight", "head.weight"):
        assert float(s[layer].sum()) == pytest.approx(total)
    assert float(s["grouped.weight"].sum() + s["shortcut.weight"].sum()) == pytest.approx(total)
    torch.testing.assert_close(out["stem.weight"], by_input(s["depthwise.weight"], 8) + by_input(s["shortcut.weight"]))
    torch.testing.assert_close(out["depthwise.weight"], by_input(s["grouped.weight"], 4))
    torch.testing.assert_close(out["grouped.weight"] + out["shortcut.weight"], s["head.weight"].sum(0))


def test_neither_signs_nor_biases_nor_batch_norm_nor_modes_matter_to_flow() -> None:
    model = seeded(Residual)
    before = scores(model, flow((3, 8, 8)))
    model.train()
    for x, _ in images():
        model(5 * x - 3)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2:
                p.add_(3.0)
            else:
                p.mul_(torch.where(torch.arange(p.numel()).view(p.shape) % 3 == 0, -1.0, 1.0))
    after = scores(model, flow((3, 8, 8)))
    assert same(before, after)
    assert bool(model.bn0.running_mean.any())


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish])
def test_activations_that_write_to_their_input_are_passed_by(act: type[nn.Module]) -> None:
    def make(activation: nn.Module) -> nn.Module:
        layers = [nn.Linear(6, 30), activation, nn.Linear(30, 30), activation, nn.Linear(30, 3)]
        return nn.Sequential(*layers)

    wanted = scores(seeded(lambda: make(nn.Identity())), flow(6))
    model = seeded(lambda: make(act(inplace=True)))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(16)  # activations far beyond 6
    for name, value in scores(model, flow(6)).items():
        torch.testing.assert_close(value, 16**3 * wanted[name])


def test_a_mask_of_minus_infinity_in_a_buffer_stays_one() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
            self.register_buffer("known", torch.ones(4, dtype=torch.bool))

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]

    found = scores(seeded(Causal), flow((4, 6)))
    assert all(bool(torch.isfinite(value).all()) and bool(value.any()) for value in found.values())


def test_flow_beyond_single_precision_ranks() -> None:
    """He-initialised: the flow grows ninefold per layer, to more than float32 can hold."""
    model = seeded(lambda: mlp(*[64] * 46, bias=False, act=nn.ReLU), dtype=torch.float32)
    for w in weights(model).values():
        nn.init.kaiming_normal_(w, generator=torch.Generator().manual_seed(w.numel()))
    found = scores(model, flow(64))
    assert all(float(value.sum()) > 1e39 and bool(torch.isfinite(value).all()) for value in found.values())
    kept = masks(model, flow(64, rounds=3), 0.05)
    assert sum(int(mask.sum()) for mask in kept.values()) == round(0.05 * 45 * 64**2)
    assert all(bool(mask.any()) for mask in kept.values())


def scaled(factor: float) -> nn.Module:
    model = seeded(lambda: mlp(4, 4, 4, 4))
    with torch.no_grad():
        for w in weights(model).values():
            w.mul_(factor)
    return model


def test_overflow_is_told_with_the_name_of_the_layer() -> None:
    with pytest.raises(DivergedError, match=r"^synflow: scores of 0\.weight are not finite in round 1 of 100"):
        masks(scaled(1e110), flow(4), 0.5)


@pytest.mark.parametrize("factor", [1e-110, 0.0])
def test_a_flow_of_nothing_is_told(factor: float) -> None:
    with pytest.raises(DivergedError, match=r"^synflow: nothing flows through the network, though paths are left"):
        masks(scaled(factor), flow(4), 0.5)


def test_tokens_flow() -> None:
    model = seeded(NETS["attention"][0])
    found = scores(model, flow(5, tokens=True))
    assert all(bool(torch.isfinite(v).all()) and bool((v >= 0).all()) and bool(v.any()) for v in found.values())
