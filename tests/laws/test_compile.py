"""Law 7: a compiled model is compiled once, whatever is rewired, and trains as in eager mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import gossamer

from .settings import batches, loss_of, mlp, small_methods, weights

NAMES = ["static", "set", "rigl", "rewire", "rewire-reset", "rewire-fix"]
NAMES += ["deepr", "dsr", "snfs", "topkast", "sr-ste", "srigl", "granet", "gmp"]


def run(
    method: str, backend: str | None, steps: int = 50, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], int]:
    torch._dynamo.reset()
    model = mlp().to(dtype)
    counter = CompileCounterWithBackend(backend) if backend else None
    compiled = torch.compile(model, backend=counter, fullgraph=True) if counter else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = gossamer.sparsify(compiled, small_methods()[method], optimizer, total_steps=steps)
    assert all("_orig_mod" not in name for name in sparsifier.supports)
    changes = 0
    before = {n: s.digest() for n, s in sparsifier.supports.items()}
    for x, y in batches(n=steps):
        optimizer.zero_grad()
        loss_of(compiled, (x.to(dtype), y)).backward()
        optimizer.step()
        now = {n: s.digest() for n, s in sparsifier.supports.items()}
        changes += now != before
        before = now
    assert changes >= {"static": 0, "rewire-reset": 1, "rewire-fix": 1}.get(method, 5)
    return weights(model), counter.frame_count if counter else 0


@pytest.mark.parametrize("method", NAMES)
def test_aot_eager_is_bit_equal_and_compiles_once(method: str) -> None:
    eager, _ = run(method, None)
    compiled, frames = run(method, "aot_eager")
    assert frames == 1
    for name in eager:
        assert torch.equal(eager[name], compiled[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rigl", "set", "rewire", "rewire-reset"])
def test_inductor_agrees_to_rounding_and_compiles_once(method: str) -> None:
    # in float64, so that rounding does not reorder what a rewiring compares
    eager, _ = run(method, None, 50, torch.float64)
    compiled, frames = run(method, "inductor", 50, torch.float64)
    assert frames == 1
    for name in eager:
        torch.testing.assert_close(eager[name], compiled[name], rtol=1e-9, atol=1e-11)
