"""Foresight where weights start at zero: offset networks are scored as the plain function they are, or by slope."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gossamer import foresight, methods, sparsify
from gossamer.errors import ConfigError
from gossamer.foresight import Saliency
from gossamer.nn import OffsetConv2d, OffsetLinear
from gossamer.offsets import DCT, SignedDCT

from .measure import masks, scores
from .nets import images, mlp, seeded, vectors
from .test_untouched import assert_untouched

DATA = images(4)
KINDS = {nn.Linear: OffsetLinear, nn.Conv2d: OffsetConv2d}
SALIENCIES: dict[str, Callable[[], Saliency]] = {
    "snip": lambda: foresight.snip(DATA, 2),
    "iter-snip": lambda: foresight.iter_snip(DATA, 3, allow_collapse=True),
    "force": lambda: foresight.force(DATA, 3, allow_collapse=True),
    "grasp": lambda: foresight.grasp(DATA),
    "synflow": lambda: foresight.synflow((3, 8, 8), 5),
    "magnitude": lambda: foresight.magnitude((3, 8, 8)),
}


class Small(nn.Module):
    """(n, 3, 8, 8) -> (n, 4): two convolutions, batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def with_offsets(model: nn.Module, *, alpha: float = 1.5) -> nn.Module:
    """Offset layers in the place of all; each D is drawn."""
    for number, (name, module) in enumerate(list(model.named_children())):
        if type(module) in KINDS:
            made = KINDS[type(module)].from_dense(module, SignedDCT(), alpha=alpha, seed=number)
            setattr(model, name, made)
    return model


def plain(model: nn.Module) -> nn.Module:
    """The network of the same function without offsets."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_children()):
        if isinstance(module, OffsetLinear | OffsetConv2d):
            setattr(model, name, module.dense_module())
    return model


@pytest.mark.filterwarnings("ignore:.*(without any weight|no path from input):UserWarning")
@pytest.mark.parametrize("name", SALIENCIES)
def test_offset_networks_are_scored_as_the_plain_function(name: str) -> None:
    model = with_offsets(seeded(Small))
    theirs = masks(plain(model), SALIENCIES[name](), 0.2)
    ours = masks(model, SALIENCIES[name](), 0.2)
    assert {name.replace(".sparse", ""): mask.tolist() for name, mask in ours.items()} == {
        name: mask.tolist() for name, mask in theirs.items()
    }


@pytest.mark.parametrize("saliency", [*SALIENCIES.values(), lambda: foresight.slope(DATA)])
@pytest.mark.filterwarnings("ignore:.*(without any weight|no path from input):UserWarning")
def test_offset_networks_are_untouched(saliency: Callable[[], Saliency]) -> None:
    model = with_offsets(seeded(Small))
    model(DATA[0][0])
    assert_untouched(model, lambda: masks(model, saliency(), 0.2))


def test_slope_is_the_gradient_of_the_sparse_part() -> None:
    model = with_offsets(seeded(Small)).eval()
    x, y = DATA[0]
    nn.functional.cross_entropy(model(x), y).backward()
    found = scores(model, foresight.slope(DATA[:1], batch_norm="eval"))
    gradients = {name: p.grad for name, p in model.named_parameters() if name in found}
    assert len(found) == len(gradients) == 3
    for name, slope in gradients.items():
        assert slope is not None
        torch.testing.assert_close(found[name], slope.abs())


def test_empty_layers_do_not_cut_an_offset_network() -> None:
    model = with_offsets(seeded(Small))
    head = foresight.slope(DATA, loss=lambda output, target: output[:, 0].sum(), inputs=(3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = masks(model, head, 2 / sum(p.numel() for n, p in model.named_parameters() if "sparse.weight" in n))
    assert sum(int(mask.sum()) for mask in found.values()) == 2
    assert any(not mask.any() for mask in found.values())


def test_a_method_starts_an_offset_network_from_scores() -> None:
    model = with_offsets(seeded(Small))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = masks(model, foresight.snip(DATA), 0.2)
    sparsifier = sparsify(model, methods.static(0.2, init=foresight.snip(DATA)), optimizer)
    assert {name: support.mask.tolist() for name, support in sparsifier.supports.items()} == {
        name: mask.tolist() for name, mask in found.items()
    }


def zeros() -> nn.Module:
    model = seeded(lambda: mlp(6, 8, 3))
    for p in model.parameters():
        nn.init.zeros_(p) if p.ndim > 1 else None
    return model


@pytest.mark.parametrize("saliency", [foresight.snip(vectors(6, 3)), foresight.magnitude(6), foresight.magnitude()])
def test_weights_that_are_all_zero_are_not_ranked(saliency: Saliency) -> None:
    with pytest.raises(ConfigError, match=r"all weights start at zero, so it scores all of them alike; use slope"):
        masks(zeros(), saliency, 0.5)


def test_slope_ranks_weights_that_are_zero() -> None:
    found = masks(zeros(), foresight.slope(vectors(6, 3), scope="layer"), 0.5, allocation="uniform")
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"0.weight": 24, "2.weight": 12}
    layer = OffsetLinear(6, 3, offset=DCT(), dtype=torch.float64)
    assert int(masks(layer, foresight.slope(vectors(6, 3)), 0.5)["sparse.weight"].sum()) == 9
