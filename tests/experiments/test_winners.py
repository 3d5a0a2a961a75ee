"""Training with k-winners: the network of the study, the boost over epochs, exact resume, and noise robustness."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from gossamer.checkpoint import load_model
from gossamer.errors import ConfigError
from gossamer.experiments import data, robustness
from gossamer.experiments.data.batches import begins_epoch, keyed_generator
from gossamer.experiments.models import build
from gossamer.experiments.study import Study
from gossamer.experiments.train import train
from gossamer.nn import KWinners, KWinners2d

from .tiny import Make, assert_continues_exactly

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("kwinners*.yaml"))
MNIST = ((1, 28, 28), 10)


def test_the_network_of_the_study() -> None:
    nets = []
    for activation in ("kwinners", "relu"):
        torch.manual_seed(0)
        nets.append(build("winners", MNIST, activation=activation))
    kinds = [type(module) for module in nets[0]]
    assert kinds == [nn.Conv2d, nn.MaxPool2d, KWinners2d, nn.Flatten, nn.Linear, KWinners, nn.Linear]
    assert nets[0](torch.rand(2, *MNIST[0])).shape == (2, 10)
    assert (nets[0].act1.k(6, 6), nets[0].act2.k) == (108, 60)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other), "both start alike"
    with pytest.raises(ConfigError, match="at least 8x8"):
        build("winners", ((1, 7, 8), 10))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_compare_equal_non_zeros(path: Path) -> None:
    study = Study.from_file(path)
    labels = {row.label for row in study.rows}
    assert {"ReLU", "k-winners", "ReLU fan-in", "k-winners fan-in", "SMALL"} <= labels
    assert study.base["data_options"]["normalise"] is False


@pytest.mark.parametrize(("accumulate", "batch", "n"), [(1, 3, 10), (2, 3, 10), (4, 2, 9), (3, 7, 7)])
def test_epochs_begin_where_the_order_is_drawn_anew(accumulate: int, batch: int, n: int) -> None:
    epochs = [step * accumulate // (n // batch) for step in range(30)]
    begun = [True, *(before != now for before, now in pairwise(epochs))]
    assert [begins_epoch(step, accumulate, batch, n) for step in range(30)] == begun


def test_the_boost_falls_before_every_epoch_and_a_resumed_run_is_exact(make: Make) -> None:
    """1,293 digits are 6 batches of 200: steps 0, 6 and 12 begin an epoch."""
    values = {"model": "winners", "method": "static", "batch_size": 200, "steps": 14, "optimizer": "sgd", "lr": 0.01}
    assert_continues_exactly(make, values, 6, 9)
    state = load_model(Path(str(make("cut").out)) / "model.safetensors")
    assert float(state["act1.boost_strength"]) == pytest.approx(1.5 * 0.85**3)
    assert int(state["act2.learning_iterations"]) == 14 * 200
    assert float(state["act2.duty_cycle"].max()) > 0


def test_noise_replaces_whole_shares_of_the_pixels() -> None:
    images = torch.rand(5, 3, 4, 5)
    for level in (0.0, 0.05, 0.35, 0.5, 1.0):
        changed = robustness.noisy(images, level, 9.0, keyed_generator("noise", 0))
        hit = changed == 9.0
        assert bool((hit.sum((2, 3)) == round(level * 20)).all())
        assert torch.equal(hit, hit[:, :1].expand_as(hit)), "a pixel has all channels"
        assert torch.equal(changed[~hit], images[~hit])
    assert not torch.equal(hit[0], robustness.noisy(images, 0.5, 9.0, keyed_generator("noise", 0))[1] == 9.0)
    for bad in ((images, 1.5), (images[0], 0.1)):
        with pytest.raises(ConfigError, match=r"expected a share of the pixels, from 0 to 1, and images"):
            robustness.noisy(*bad, 9.0, keyed_generator("noise", 0))


def test_the_noise_value_is_two_deviations_above_the_mean() -> None:
    digits = data.load("digits", normalise=False)

    class Darkest(nn.Module):
        """Says 1 where a pixel is exactly the noise, else 0."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pixels = digits.train.whole()[0]
            found = (x == float(pixels.mean() + 2 * pixels.std())).flatten(1).sum(1)
            return nn.functional.one_hot((found == 19).long(), 10).float()

    y = digits.test.whole()[1]
    measured = robustness.measure(Darkest(), digits, (0.0, 0.3))
    assert measured.correct == (int((y == 0).sum()), int((y == 1).sum()))
    with pytest.raises(ConfigError, match="needs images with labels"):
        robustness.measure(nn.Identity(), data.load("mnist1d"))


def test_noise_robustness_of_runs(make: Make) -> None:
    for method in ("static", "small"):
        config = make(method, model="winners", method=method, density=0.5, model_options={"activation": "relu"})
        result = train(config)
        measured = robustness.of_run(Path(str(config.out)))
        assert measured.accuracies[0] == pytest.approx(result.metric["value"])
        assert measured.score == sum(measured.correct)
        assert measured.mean == pytest.approx(sum(measured.accuracies) / 11)
        assert measured == robustness.of_run(Path(str(config.out)))
    assert measured.to_dict()["score"] == measured.score
    with pytest.raises(ConfigError, match="holds no finished run"):
        robustness.of_run(Path(str(config.out)) / "nowhere")
