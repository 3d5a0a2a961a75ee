"""The one native pass that chooses the largest weights, against the rule it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer
from gossamer import latent, methods
from gossamer.errors import DivergedError
from gossamer.kernels.select import split
from gossamer.masking import keep_on
from gossamer.topology.rules import select_alive
from gossamer.topology.structures import Unstructured

from .forcing import NATIVE, forced

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native library is not built")


def run(weights: Sequence[Tensor], active: Sequence[Tensor], count: int) -> list[Tensor] | None:
    """What the pass decides, its views checked against its masks."""
    views = [torch.full_like(weight, torch.nan) for weight in weights]
    masks = split(weights, active, views, count)
    for weight, view, mask in zip(weights, views, masks or [], strict=False):
        expected = torch.empty_like(weight)
        keep_on(mask, weight, out=expected)
        assert torch.equal(view.view(torch.int32), expected.view(torch.int32))
    return masks


def rule(weights: Sequence[Tensor], active: Sequence[Tensor], count: int) -> list[Tensor]:
    return select_alive(Unstructured(), [weight.abs() for weight in weights], count, active)


def check(weights: Sequence[Tensor], active: Sequence[Tensor], count: int) -> bool:
    """Whether it decided; if so, it is as the rule decides."""
    masks = run(weights, active, count)
    if masks is None:
        return False
    return all(map(torch.equal, masks, rule(weights, active, count)))


def some(size: int, seed: int, spread: Callable[[Tensor], Tensor] = lambda w: w) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return spread(torch.randn(size, generator=generator)), torch.rand(size, generator=generator) < 0.3


@pytest.fixture(params=NATIVE)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    with forced(request.param):
        yield


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-39, 0.5, -0.5, 1.0, -1.0, 3.4e38, -3.4e38]) | st.floats(width=32),
        max_size=200,
    ),
    cut=st.integers(0, 200),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_small_weights_with_ties(values: list[float], cut: int, seed: int, data: st.DataObject) -> None:
    whole = torch.tensor(values)
    active = torch.rand(whole.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    count = data.draw(st.integers(0, len(values)))
    parts = ([whole[:cut], whole[cut:]], [active[:cut], active[cut:]])
    if bool(torch.isfinite(whole).all()):
        assert check([whole], [active], count)
        expected = rule(*parts, count)
        pure = Unstructured().select([part.abs() for part in parts[0]], count, parts[1])
        if all(map(torch.equal, expected, pure)) and all(m.any() or not m.numel() for m in pure):
            assert check(*parts, count)
        else:
            assert run(*parts, count) is None  # one would be left empty
    elif len(values):
        assert run([whole], [active], count) is None


SPREADS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: w,
    "heavy": lambda w: w**5,
    "denormal": lambda w: w * 1e-39,
    "mostly zero": lambda w: torch.where(w.abs() > 1.2, w, torch.zeros(())),
    "ascending": lambda w: w.abs().sort().values,
}


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("size", [4096, 4097, 50_000, 300_003])
def test_large_weights(spread: Callable[[Tensor], Tensor], size: int) -> None:
    weight, active = some(size, 1, spread)
    assert all(check([weight], [active], count) for count in (0, 1, 7, size // 100, size // 10, size // 5))


@pytest.mark.usefixtures("path")
def test_coarse_values_are_exact_or_left_to_the_rule() -> None:
    weight, active = some(100_000, 2, lambda w: (w * 64).round() / 64)
    decided = [run([weight], [active], count) is not None for count in range(100, 99_000, 4711)]
    assert any(decided)
    assert all(check([weight], [active], c) for c, done in zip(range(100, 99_000, 4711), decided, strict=True) if done)
    assert run([torch.ones(100_000)], [active], 50_000) is None


@pytest.mark.usefixtures("path")
def test_weights_compete() -> None:
    weights, active = zip(*(some(size, seed) for seed, size in enumerate((30_000, 1, 0, 777, 90_000))), strict=True)
    weights[1][:] = 9.0
    assert check(weights, active, 20_000)


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [100, 50_000])
def test_what_is_not_finite_is_left_to_the_rule(bad: float, size: int) -> None:
    weight, active = some(size, 3)
    weight[-1] = bad
    assert run([weight], [active], size // 10) is None


def test_other_tensors_are_left_to_the_rule() -> None:
    mask = torch.ones(4, 6, dtype=torch.bool)
    for weight in (torch.ones(4, 6, dtype=torch.float64), torch.ones(6, 4).T, torch.ones(4, 6).bfloat16()):
        assert split([weight], [mask], [torch.ones(4, 6)], 3) is None


def test_threads_do_not_matter() -> None:
    weight, active = some(200_000, 4)
    try:
        torch.set_num_threads(2)
        assert check([weight], [active], 20_000)
    finally:
        torch.set_num_threads(1)


# -- in training --


def steps(method: gossamer.Method, count: int, *, break_at: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 60), nn.ReLU(), nn.Linear(60, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=count)
    for step in range(count):
        optimizer.zero_grad()
        model(torch.randn(16, 80)).square().mean().backward()
        if step == break_at:
            model[0].weight.grad[0, 0] = torch.nan
        optimizer.step()
        for name, support in sparsifier.supports.items():
            assert bool((model.get_parameter(name)[~support.mask] == 0).all())
    return {**model.state_dict(), **sparsifier.state_dict()["trainables"]}


@pytest.mark.parametrize(
    "method",
    [methods.rewire(0.1), methods.rewire(0.1, scope="global"), methods.rewire(0.1, exploit=gossamer.Reset(1))],
    ids=["layer", "global", "reset"],
)
def test_training_is_the_same_bit_for_bit(method: gossamer.Method, monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[bool] = []

    def spy(*given: Any) -> list[Tensor] | None:
        masks = split(*given)
        decided.append(masks is not None)
        return masks

    monkeypatch.setattr(latent, "split", spy)
    ours = steps(method, 20)
    assert len(decided) >= 20
    assert any(decided)
    monkeypatch.setattr(latent, "split", lambda *_: None)
    plain = steps(method, 20)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_divergence_is_named() -> None:
    with pytest.raises(DivergedError, match=r"rewiring 0.weight at step 3: the score 'magnitude' is not finite"):
        steps(methods.rewire(0.1), 5, break_at=2)
