"""Convolutional nets without shortcuts: LeNet-5, VGG and the small net of the Fashion-MNIST settings."""

from __future__ import annotations

import math

from torch import nn

from ...errors import ConfigError
from .layers import chain, conv_bn, he_normal_, pooled_head, scaled

Shape = tuple[int, ...]
Pool = type[nn.MaxPool2d] | type[nn.AvgPool2d]
POOL = 0  # in a VGG plan: halve the image
VGG_PLANS = {
    11: (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    19: (64, 64, POOL, 128, 128, POOL, *[256] * 4, POOL, *[512] * 4, POOL, *[512] * 4, POOL),
}
SMALL = 0.25


def lenet5(input_shape: Shape, classes: int, width: float = 1.0, *, padded: bool = True) -> nn.Module:
    """Return LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; the first linear layer follows the image's size.

    padded: whether the first convolution keeps the image's size. Not so it is the network of Li et al. 2018.
    """
    padding = 2 if padded else 0
    return _lenet5("lenet5", input_shape, classes, width, 84, nn.MaxPool2d, padding=padding, bias=True)


def lenet5_dctps(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return the LeNet-5 of DCTpS: no biases, average pooling, no padding, 82 instead of 84 units.

    Source: the code of Price and Tanner 2021, arXiv:2102.07655.
    """
    return _lenet5("lenet5-dctps", input_shape, classes, width, 82, nn.AvgPool2d, padding=0, bias=False)


def _lenet5(
    name: str, input_shape: Shape, classes: int, width: float, last: int, pool: Pool, *, padding: int, bias: bool
) -> nn.Module:
    channels, height, columns = input_shape
    least = 16 - 2 * padding
    if min(height, columns) < least:
        raise ConfigError(
            f"{name} cannot take {height}x{columns} images: its two 5x5 layers need at least {least}x{least}"
        )
    first, second, third, fourth = (scaled(size, width) for size in (6, 16, 120, last))
    pixels = math.prod(((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, columns))
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, first, 5, padding=padding, bias=bias),
        "relu1": nn.ReLU(),
        "pool1": pool(2),
        "conv2": nn.Conv2d(first, second, 5, bias=bias),
        "relu2": nn.ReLU(),
        "pool2": pool(2),
        "flat": nn.Flatten(),
        "linear1": nn.Linear(second * pixels, third, bias=bias),
        "relu3": nn.ReLU(),
        "linear2": nn.Linear(third, fourth, bias=bias),
        "relu4": nn.ReLU(),
        "head": nn.Linear(fourth, classes, bias=bias),
    }
    return he_normal_(chain(layers))


def vgg11(input_shape: Shape, classes: int, width: float = 1.0, *, small: bool = False) -> nn.Module:
    """Return VGG-11 with batch norm and one linear layer; `small` has a quarter of the channels."""
    return _vgg(VGG_PLANS[11], input_shape, classes, width, small)


def vgg19(input_shape: Shape, classes: int, width: float = 1.0, *, small: bool = False) -> nn.Module:
    """Return VGG-19 with batch norm and one linear layer; `small` has a quarter of the channels."""
    return _vgg(VGG_PLANS[19], input_shape, classes, width, small)


def _vgg(plan: tuple[int, ...], input_shape: Shape, classes: int, width: float, small: bool) -> nn.Module:
    """Source: Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, for 32x32: an image of one pixel is not halved."""
    layers: dict[str, nn.Module] = {}
    channels, side = input_shape[0], min(input_shape[1:])
    for number, wanted in enumerate(plan, 1):
        if wanted != POOL:
            outputs = scaled(wanted, width * (SMALL if small else 1.0))
            layers[f"layer{number}"] = conv_bn(channels, outputs, 3)
            channels = outputs
        elif side > 1:
            layers[f"layer{number}"] = nn.MaxPool2d(2)
            side //= 2
    return he_normal_(chain({**layers, "head": pooled_head(channels, classes)}))


def cnn(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return five 3x3 convolutions 16-32-32-64-64 with batch norm, of which the second and fourth halve the image."""
    layers: dict[str, nn.Module] = {}
    channels = input_shape[0]
    for number, (wanted, stride) in enumerate(((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)), 1):
        outputs = scaled(wanted, width)
        layers[f"layer{number}"] = conv_bn(channels, outputs, 3, stride=stride)
        channels = outputs
    return he_normal_(chain({**layers, "head": pooled_head(channels, classes)}))
