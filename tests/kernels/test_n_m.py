"""2:4 patterns in one native pass, against the definition in torch: every path, layout and option, to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.kernels import n_m as kernel
from gossamer.topology import NM

from .forcing import NATIVE, forced

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native library is not built")

STRUCTURES = [NM(2, 4, transposable=True), NM(2, 4), NM(1, 4), NM(3, 4, axis="outputs"), NM(4, 4)]
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 20), st.sampled_from([(), (1,), (3,), (3, 3)]))


@pytest.fixture(params=NATIVE)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    with forced(request.param):
        yield


@pytest.mark.usefixtures("path")
def test_equals_the_definition() -> None:
    """With few values, so that most scores tie, and with many; also what is active, magnitudes and the view."""

    @settings(deadline=None, max_examples=25)
    @given(shape=SHAPES, seed=st.integers(0, 1000), ties=st.booleans(), magnitudes=st.booleans())
    def check(shape: tuple[int, int, tuple[int, ...]], seed: int, ties: bool, magnitudes: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        whole = (4 * shape[0], 4 * shape[1], *shape[2])
        drawn = torch.randn(whole, generator=generator)
        weight = torch.randint(-1, 3, whole, generator=generator).float() if ties else drawn
        for structure in STRUCTURES:
            score, half = weight.abs() if magnitudes else weight, weight.numel() * structure.n // structure.m
            (held,) = structure.select([drawn], half)
            for active in (None, drawn < 0, held):
                known = None if active is None else [active]
                (wanted,) = structure.select([score.double()], half, known)  # float64 takes the reference
                view = torch.full_like(weight, math.nan)
                mask = structure.at_once(weight, active, magnitudes=magnitudes, view=view)
                assert mask is not None
                assert torch.equal(mask, wanted)
                assert torch.equal(view, weight.where(mask, 0.0))

    check()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "every second"])
def test_half_types_and_other_layouts_are_read_exactly(dtype: torch.dtype, layout: str) -> None:
    """Rounded to half precision many scores tie; subnormal ones of both types and signed zeros are among them."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 12, 3, 3, generator=generator) * 2.0 ** torch.randint(-24, 2, (8, 12, 3, 3)).float()
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = -0.0
    scores, active = scores.to(dtype), torch.rand(scores.shape, generator=generator) < 0.5
    other = {
        "contiguous": torch.clone,
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        "every second": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    }[layout]
    for structure in STRUCTURES:
        for magnitudes in (False, True):
            score = scores.double().abs() if magnitudes else scores.double()  # float64 takes the reference
            (wanted,) = structure.select([score], scores.numel() * structure.n // structure.m, [active])
            view = other(torch.full_like(scores, math.nan))
            mask = structure.at_once(other(scores), other(active), magnitudes=magnitudes, view=view)
            assert mask is not None
            assert mask.is_contiguous()
            assert torch.equal(mask, wanted)
            assert view.dtype == dtype
            assert torch.equal(view, scores.where(mask, 0.0))
            assert not bool(view[~mask].signbit().any())


@pytest.mark.usefixtures("path")
def test_threads_change_nothing() -> None:
    weight, before = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    masks = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        masks.append(kernel.best_patterns(weight, 2, "both"))
    torch.set_num_threads(before)
    assert masks[0] is not None
    assert masks[1] is not None
    assert torch.equal(masks[0], masks[1])


@pytest.mark.usefixtures("path")
def test_where_nothing_is_decided() -> None:
    weight = torch.randn(8, 8)
    for value in (math.inf, -math.inf, math.nan):
        for place in (0, 63):
            broken = weight.clone()
            broken.view(-1)[place] = value
            assert all(kernel.best_patterns(broken, 2, along) is None for along in kernel.ALONG)
    assert kernel.best_patterns(weight.double(), 2, "both") is None
    assert kernel.best_patterns(weight.bfloat16(), 2, "both", view=weight) is None, "a view of another type"
    assert kernel.best_patterns(weight, 2, "both", torch.ones(4, 4, dtype=torch.bool)) is None, "of another shape"
    assert kernel.best_patterns(weight, 2, "both", torch.ones(8, 8)) is None
    assert kernel.best_patterns(torch.randn(6, 8), 2, "both") is None
    assert kernel.best_patterns(torch.randn(6, 8), 2, "inputs") is not None
    assert kernel.best_patterns(torch.randn(8, 6), 2, "inputs") is None
    assert NM(4, 8, transposable=True).at_once(weight, None) is None
