"""Fully connected nets."""

from __future__ import annotations

import math

from torch import nn

from .layers import at_least_one, chain, he_normal_, scaled

Shape = tuple[int, ...]


def mlp(
    input_shape: Shape,
    classes: int,
    width: float = 1.0,
    *,
    hidden: tuple[int, ...] = (256, 256),
    batch_norm: bool = True,
    bias: bool = False,
) -> nn.Module:
    """Return linear, batch norm, ReLU for every hidden layer, then a linear layer with bias; inputs are flattened.

    bias: whether hidden layers have one (batch norm makes it superfluous).
    """
    at_least_one(hidden=hidden)
    layers: dict[str, nn.Module] = {"flat": nn.Flatten()}
    size = math.prod(input_shape)
    for number, wanted in enumerate(hidden, 1):
        outputs = scaled(wanted, width)
        layers[f"linear{number}"] = nn.Linear(size, outputs, bias=bias)
        if batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm1d(outputs)
        layers[f"relu{number}"] = nn.ReLU()
        size = outputs
    return he_normal_(chain({**layers, "head": nn.Linear(size, classes)}))


def lenet300(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return LeNet-300-100 (LeCun et al. 1998): two hidden layers with biases, no normalisation."""
    return mlp(input_shape, classes, width, hidden=(300, 100), batch_norm=False, bias=True)
