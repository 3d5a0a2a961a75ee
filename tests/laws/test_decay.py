"""The decay of SR-STE and Top-KAST is seen by the optimizer alone; gates follow the peak learning rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gossamer
from gossamer import methods

from ..test_bad_input import fails
from .settings import batches, loss_of, mlp

METHODS = {"sr-ste": methods.sr_ste(0.3, decay=0.5, group=None), "topkast": methods.topkast(0.3, decay=0.5)}


@pytest.mark.parametrize("name", METHODS)
def test_the_decay_does_not_stay_in_the_gradient(name: str) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gossamer.sparsify(model, METHODS[name], optimizer, total_steps=10)
    loss_of(model, batches()[0]).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    for n, p in model.named_parameters():
        assert torch.equal(p.grad, before[n]), f"the gradient of {n} is not what backward() left"
    assert any(not torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_an_update_that_raises_leaves_no_decay_behind() -> None:
    class Fails(torch.optim.SGD):
        broken = True

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            if self.broken:
                raise RuntimeError("no")
            super().step()

    model = mlp()
    optimizer = Fails(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, METHODS["topkast"], optimizer, total_steps=10)
    loss_of(model, batches()[0]).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with pytest.raises(RuntimeError, match="no"):
        optimizer.step()
    sparsifier.restore()
    assert all(torch.equal(p.grad, before[n]) for n, p in model.named_parameters())


def test_structures_per_output_refuse_transposed_convolutions() -> None:
    for method in (methods.sr_ste(0.5), methods.srigl(0.3), methods.static(0.3, allocation="equal_per_filter")):
        model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3))
        fails("first dimension holds inputs", gossamer.sparsify, model, method, total_steps=10)


def gates(before: bool) -> torch.Tensor:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def schedule() -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=20)

    scheduler = schedule() if before else None
    sparsifier = gossamer.sparsify(model, methods.cs(0.3, gate_lr=5.0), optimizer, total_steps=20)
    scheduler = scheduler or schedule()
    for batch in batches(n=6):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        scheduler.step()
    return torch.cat([weight.s.detach().flatten() for weight in sparsifier._weights.values()])


def test_gates_do_not_care_whether_the_scheduler_is_built_before_or_after() -> None:
    assert torch.equal(gates(before=True), gates(before=False))
