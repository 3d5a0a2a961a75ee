"""Scores and the entries they read."""

from __future__ import annotations

import pickle

import pytest
import torch

from gossamer.errors import ConfigError
from gossamer.topology import Entries, Score, score, scores

W = torch.tensor([[-2.0, 0.5], [0.0, 1.0]])
G = torch.tensor([[1.0, -4.0], [3.0, 0.0]])
ENTRIES = Entries(
    W, W != 0, grad=G, momentum=-G, sign=torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), slots={"exp_avg_sq": G * G}
)
ALL = [value for value in vars(scores).values() if isinstance(value, Score)]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (scores.magnitude, [[2.0, 0.5], [0.0, 1.0]]),
        (scores.signed_magnitude, [[2.0, 0.5], [0.0, 1.0]]),
        (scores.gradient, [[1.0, 4.0], [3.0, 0.0]]),
        (scores.momentum, [[1.0, 4.0], [3.0, 0.0]]),
        (scores.saliency, [[2.0, 2.0], [0.0, 0.0]]),
        (scores.sign_flip, [[-2.0, 0.5], [0.0, 1.0]]),
    ],
)
def test_values(fn: Score, expected: list[list[float]]) -> None:
    assert fn(ENTRIES).tolist() == expected


def test_random_repeats_with_its_generator() -> None:
    first, again, other = (
        scores.random(Entries(W, W != 0, generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32
    assert bool(((first >= 0) & (first < 1)).all())


def test_random_does_not_depend_on_the_weights_type() -> None:
    drawn = [
        scores.random(Entries(W.to(dtype), W != 0, generator=torch.Generator().manual_seed(1)))
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("fn", ALL, ids=lambda fn: fn.name)
def test_needs_are_true(fn: Score) -> None:
    everything = {"grad": G, "momentum": G, "sign": G, "generator": torch.Generator()}
    fn(Entries(W, W != 0, **{name: everything[name] for name in fn.needs}))
    for name in fn.needs:
        others = {other: everything[other] for other in fn.needs - {name}}
        with pytest.raises(ConfigError, match=f"needs '{name}'"):
            fn(Entries(W, W != 0, **others))


@pytest.mark.parametrize("fn", ALL, ids=lambda fn: fn.name)
def test_pickles_and_is_documented(fn: Score) -> None:
    assert pickle.loads(pickle.dumps(fn)) == fn
    assert getattr(scores, fn.name) is fn
    assert fn.__doc__ != Score.__doc__


def test_signs_split_leaves_zeros_out() -> None:
    assert scores.signed_magnitude.split is not None
    positive, negative = scores.signed_magnitude.split(ENTRIES)
    assert positive.tolist() == [[False, True], [False, True]]
    assert negative.tolist() == [[True, False], [False, False]]


def test_own_score() -> None:
    @score("grad", "exp_avg_sq")
    def ratio(entries: Entries) -> torch.Tensor:
        """Gradient over second moment."""
        return entries.require("grad") / (entries.require("exp_avg_sq") + 1)

    assert (ratio.name, ratio.needs, ratio.__doc__) == ("ratio", {"grad", "exp_avg_sq"}, "Gradient over second moment.")
    assert ratio(ENTRIES)[0].tolist() == pytest.approx([0.5, -4 / 17])


def test_entries_must_be_aligned() -> None:
    with pytest.raises(ConfigError, match=r"grad has shape \(4,\), the weight \(2, 2\)"):
        Entries(W, W != 0, grad=G.flatten())
    with pytest.raises(ConfigError, match=r"exp_avg has shape"):
        Entries(W, W != 0, slots={"exp_avg": G[0]})
    with pytest.raises(ConfigError, match="must be a bool tensor"):
        Entries(W, W)
