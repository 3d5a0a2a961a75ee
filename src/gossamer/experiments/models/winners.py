"""The network of the k-winners settings: one convolution, one hidden layer, k-winners or ReLU behind each."""

from __future__ import annotations

from typing import Literal

from torch import nn

from ...errors import ConfigError
from ...nn.k_winners import KWinners, KWinners2d
from .layers import chain, he_normal_, scaled

Shape = tuple[int, ...]
KERNEL, POOL = 5, 4


def winners(
    input_shape: Shape,
    classes: int,
    width: float = 1.0,
    *,
    activation: Literal["kwinners", "relu"] = "kwinners",
    conv_density: float = 0.1,
    linear_density: float = 0.2,
    k_inference_factor: float = 1.0,
    boost_strength: float = 1.5,
    boost_strength_factor: float = 0.85,
    reference: bool = False,
) -> nn.Module:
    """Return conv 5x5 (30 channels), max pooling 4, activation, linear 300, activation, linear head; all with biases.

    conv_density, linear_density: shares of winners; they, the boost and `reference` are as in `gossamer.nn.KWinners`,
    and do nothing with activation="relu".

    Source: the defaults and the order of layers of MNISTSparseCNN in Numenta's nupic.torch (Ahmad and Scheinkman 2019,
    1903.11257), which has two convolutions and 700 units; its sparse weights are a method's business here.
    """
    channels, height, columns = input_shape
    if min(height, columns) < KERNEL - 1 + POOL:
        least = KERNEL - 1 + POOL
        raise ConfigError(f"winners cannot take {height}x{columns} images: it needs at least {least}x{least}")
    filters, units = scaled(30, width), scaled(300, width)
    pixels = ((height - KERNEL + 1) // POOL) * ((columns - KERNEL + 1) // POOL)
    boost = (k_inference_factor, boost_strength, boost_strength_factor)
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(channels, filters, KERNEL),
        "pool": nn.MaxPool2d(POOL),
        "act1": KWinners2d(filters, conv_density, *boost, reference=reference),
        "flat": nn.Flatten(),
        "linear": nn.Linear(filters * pixels, units),
        "act2": KWinners(units, linear_density, *boost, reference=reference),
        "head": nn.Linear(units, classes),
    }
    if activation == "relu":
        layers |= {"act1": nn.ReLU(), "act2": nn.ReLU()}
    return he_normal_(chain(layers))
