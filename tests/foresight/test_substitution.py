"""Modules used twice, checkpointed or bypassed score right, and what cannot be scored is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gossamer import foresight
from gossamer.errors import ConfigError
from gossamer.foresight import Ones
from gossamer.foresight.search import shuffled
from gossamer.topology import Unstructured

from .measure import counts, masks, same
from .nets import mlp, seeded, vectors

DATA = vectors(6, 3)


class Checkpointed(nn.Module):
    """Its first part with batch norm is checkpointed, if reentrant is not None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.body, self.head, self.reentrant = (
            nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)),
            nn.Linear(8, 3),
            reentrant,
        )

    def forward(self, x: Tensor) -> Tensor:
        done = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(done)


@pytest.mark.parametrize("saliency", [foresight.synflow(6, 3), foresight.snip(DATA), foresight.grasp(DATA)])
def test_a_module_used_twice_is_put_back(saliency: Any) -> None:
    model = seeded(lambda: mlp(6, 6, 6, 6))
    model.append(model[2])
    before = {name: (id(p), p._version) for name, p in model.named_parameters(remove_duplicate=False)}
    masks(model, saliency, 0.5)
    assert {n: (id(p), p._version) for n, p in model.named_parameters(remove_duplicate=False)} == before


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("saliency", [foresight.force(DATA, 3), foresight.grasp(DATA), foresight.synflow(6, 3)])
def test_checkpointing_changes_nothing(saliency: Any) -> None:
    wanted = masks(seeded(lambda: Checkpointed(None)), saliency, 0.4)
    model = seeded(lambda: Checkpointed(False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert same(masks(model, saliency, 0.4), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"^body\.0\.weight runs without gradients.*use_reentrant=False"):
        masks(seeded(lambda: Checkpointed(True)), saliency, 0.4)


def test_a_forward_that_takes_another_model() -> None:
    model, other = seeded(lambda: mlp(6, 8, 3)), seeded(lambda: mlp(6, 8, 3))
    own = foresight.snip(DATA, forward=lambda _, batch: (model(batch[0]), batch[1]))
    assert same(masks(model, own, 0.5), masks(model, foresight.snip(DATA), 0.5))
    with pytest.raises(ConfigError, match=r"^the objective does not depend on any weight"):
        masks(model, foresight.snip(DATA, forward=lambda _, batch: (other(batch[0]), batch[1])), 0.5)


def test_scores_that_are_all_zero() -> None:
    with pytest.raises(ConfigError, match=r"^snip: all scores are zero in round 1 of 1: all targets are ignored"):
        masks(seeded(lambda: mlp(6, 8, 3)), foresight.snip(DATA, loss=lambda o, t: 0 * o.sum()), 0.5)


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("norm", [Norm, lambda: nn.LogSoftmax(-1)])
def test_what_is_no_flow(norm: Any) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), norm(), nn.Linear(8, 3)))
    with pytest.raises(ConfigError, match=r"^the flow through the network falls when weights of \d\.weight grow"):
        masks(model, foresight.synflow(6), 0.5)
    if norm is Norm:
        bare = nn.Sequential(model[0], nn.Identity(), model[2])
        wanted = masks(bare, foresight.synflow(6), 0.5)
        assert same(masks(model, foresight.synflow(Ones((6,), passed=(Norm,))), 0.5), wanted)


def test_ties_at_zero_are_drawn() -> None:
    """Inputs 3 to 5 are zero, and so are the scores of half of the first weight."""
    data = [(x * torch.tensor([1.0, 1, 1, 0, 0, 0]), y) for x, y in DATA]
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 20)))
    found = [masks(model, foresight.snip(data), 0.75, seed=seed)["0.weight"] for seed in (0, 0, 1)]
    assert all(mask[:, :3].all() and mask.sum() == 90 for mask in found)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0][10:, 3:].any()
    assert same(masks(model, foresight.snip(data), 0.4, seed=0), masks(model, foresight.snip(data), 0.4, seed=1))


def test_random_positions_are_another_draw_than_a_shuffle() -> None:
    found = masks(seeded(lambda: mlp(6, 8, 3)), foresight.magnitude(positions="random"), 0.5)
    again = shuffled(found, Unstructured(), 0)
    assert counts(again) == counts(found)
    assert not same(again, found)


def test_a_cut_in_the_middle_names_the_round() -> None:
    model = seeded(lambda: mlp(6, 64, 64, 3))
    saliency = foresight.iter_snip(DATA, 8, inputs=6)
    with pytest.raises(ConfigError, match=r"; cut in round \d of 8 at density 0\.\d+; use"):
        masks(model, saliency, 0.0004)


def test_examples_are_not_written_to() -> None:
    model, before = seeded(lambda: mlp(6, 8, 3)), [x.clone() for x, _ in DATA]
    writing = foresight.grasp(DATA, forward=lambda m, batch: (m(batch[0].mul_(2)), batch[1]))
    masks(model, writing, 0.5)
    assert all(torch.equal(x, kept) for (x, _), kept in zip(DATA, before, strict=True))
