"""What a layer that computes with the support of its dense weight is told: nothing of it depends on its class."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import Method, methods
from gossamer.topology import NM

METHODS: dict[str, Callable[[], Method]] = {
    "set": lambda: methods.set_(0.3, 0.5, every=2),
    "static": lambda: methods.static(0.3),
    "rewire": lambda: methods.rewire(0.5, allocation="uniform", every=2, structure=NM(2, 4)),
}


class Told(nn.Linear):
    """Notes what it is told, and that it is true at that moment."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.declared: list[Tensor | None] = []
        self.supports: list[Tensor | None] = []
        self.confirmed = 0

    @property
    def is_semi_structured(self) -> bool:
        return bool(self.declared) and self.declared[-1] is not None

    def declare(self, mask: Tensor | None, *, both_ways: bool = True) -> None:
        self.declared.append(mask)
        self.both_ways = both_ways

    def set_support(self, support: Tensor | None) -> None:
        self.supports.append(support)

    def confirm(self) -> None:
        mask = self.supports[-1]
        assert mask is not None
        assert not self.weight.detach()[~mask].any()
        self.confirmed += 1


def assert_same(told: Tensor | None, mask: Tensor | None) -> None:
    assert (told is None) == (mask is None)
    assert told is None or mask is None or torch.equal(told, mask)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_is_told_every_support_its_kind_once_and_the_end(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Told(12, 8), nn.ReLU(), nn.Linear(8, 4))
    layer = model[0]
    assert isinstance(layer, Told)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = gossamer.sparsify(model, METHODS[method](), optimizer, total_steps=8)
    lasts = method != "set"  # whether supports stay of the kind that the first one is
    first = sparsifier.supports["0.weight"].mask
    assert len(layer.declared) == len(layer.supports) == 1
    assert_same(layer.declared[0], first if lasts else None)
    assert layer.both_ways == (method == "static")
    changes = 0
    for _ in range(7):
        confirmed, told = layer.confirmed, len(layer.supports)
        model(torch.randn(16, 12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        now = layer.supports[-1]
        assert_same(now, sparsifier.supports["0.weight"].mask)
        assert layer.confirmed > confirmed, "every step writes to the weight"
        changes += len(layer.supports) - told
    assert (changes > 0) == (method != "static")
    assert len(layer.declared) == 1 or not lasts
    state = sparsifier.state_dict()
    told = len(layer.declared)
    sparsifier.load_state_dict(state)
    assert len(layer.declared) == told + 1
    assert_same(layer.declared[-1], sparsifier.supports["0.weight"].mask if lasts else None)
    sparsifier.detach()
    assert layer.declared[-1] is None
    assert layer.supports[-1] is None
