"""ResNets without batch norm: scalar biases, a scalar factor, and an initialisation that needs no normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...nn.offset import OffsetConv2d, OffsetLinear
from .layers import chain, he_normal_, scaled

Shape = tuple[int, ...]


class Shift(nn.Module):
    """x + bias, the same number for every entry; 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add it."""
        return x + self.bias


class FixupBlock(nn.Module):
    """relu(scale * conv2(relu(conv1(x + b1) + b2) + b3) + b4 + shortcut).

    The shortcut is x; where the image is halved, every other pixel of x + b1, and zeros for the added channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.shift1, self.shift2, self.shift3, self.shift4 = Shift(), Shift(), Shift(), Shift()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        shifted = self.shift1(x)
        branch = self.conv2(self.shift3(nn.functional.relu(self.shift2(self.conv1(shifted)))))
        if self.stride > 1 or self.added:
            x = shifted[:, :, :: self.stride, :: self.stride]
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, self.added))
        return nn.functional.relu(self.shift4(branch * self.scale) + x)


def fixup8(input_shape: Shape, classes: int, width: float = 1.0, *, he: bool = False) -> nn.Module:
    """Return Fixup-ResNet-8: one block at each of 16, 32, 64 channels; options as `fixup110`."""
    return _fixup(1, input_shape, classes, width, he)


def fixup20(input_shape: Shape, classes: int, width: float = 1.0, *, he: bool = False) -> nn.Module:
    """Return Fixup-ResNet-20: three blocks at each of 16, 32, 64 channels; options as `fixup110`."""
    return _fixup(3, input_shape, classes, width, he)


def fixup110(input_shape: Shape, classes: int, width: float = 1.0, *, he: bool = False) -> nn.Module:
    """Return Fixup-ResNet-110: 18 blocks at each of 16, 32, 64 channels.

    he: every weight He-normal, as the sparse baselines of DCTpS start, instead of Fixup's initialisation, whose zeros
    leave a saliency nothing to score.
    """
    return _fixup(18, input_shape, classes, width, he)


def _fixup(blocks: int, input_shape: Shape, classes: int, width: float, he: bool) -> nn.Module:
    """`blocks` at each of 16, 32, 64 channels, the second and third of which begin by halving the image.

    The last convolution of every branch and the head start at zero, the first one He-normal by its outputs, times
    (number of branches)^(-1/2); the stem is He-normal.

    Source: Zhang et al. 2019, arXiv:1901.09321, section 3 with branches of two layers. Deviation: the authors' code
    leaves the stem at torch's default.
    """
    channels = scaled(16, width)
    layers: dict[str, nn.Module] = {
        "stem": nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False),
        "shift": Shift(),
        "relu": nn.ReLU(),
    }
    for number, wanted in enumerate((16, 32, 64), 1):
        outputs = scaled(wanted, width)
        for block in range(blocks):
            stride = 2 if number > 1 and block == 0 else 1
            layers[f"stage{number}_{block + 1}"] = FixupBlock(channels, outputs, stride)
            channels = outputs
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "shift": Shift()}
    layers["head"] = chain({**head, "linear": nn.Linear(channels, classes)})
    model = he_normal_(chain(layers))
    if not he:
        _start(model)
    return model


def _blocks(model: nn.Module) -> list[FixupBlock]:
    return [module for module in model.modules() if isinstance(module, FixupBlock)]


def _spread(weight: Sequence[int], branches: int) -> float:
    """Standard deviation of a branch's first convolution."""
    return math.sqrt(2 / (weight[0] * math.prod(weight[2:]) * branches))


def _start(model: nn.Module) -> None:
    blocks = _blocks(model)
    head = model.get_submodule("head.linear")
    for block in blocks:
        weight = block.conv1.weight
        nn.init.normal_(weight, std=_spread(weight.shape, len(blocks)))
        nn.init.zeros_(block.conv2.weight)
    if isinstance(head, nn.Linear):
        nn.init.zeros_(head.weight)


def fixup_offset_alphas(model: nn.Module, *, published: bool = True) -> nn.Module:
    """Give the offsets of a converted Fixup net the scale of its initialisation; call it after `gossamer.convert`.

    With r the expected norm of a filter of Fixup's first convolution (a Gaussian one) over the mean norm of the
    offset's filters: alpha of every branch's first convolution is sqrt(r), of its second one and of the head 0; the
    stem keeps its alpha. For FixupResNet-110 r is 0.192, and 0.136 where the image is halved.

    published: sqrt(r), as the authors' code has it; False: r, which gives the scale that Fixup asks for.

    Source: the code of Price and Tanner 2021, arXiv:2102.07655.

    Raises:
        ConfigError: the model has no blocks of Fixup with offsets in all of their convolutions.
    """
    pairs: list[tuple[nn.Module, nn.Module]] = [(block.conv1, block.conv2) for block in _blocks(model)]
    last = [model.get_submodule("head.linear"), *(second for _, second in pairs)] if pairs else []
    firsts = [first for first, _ in pairs if isinstance(first, OffsetConv2d)]
    zeroed = [layer for layer in last if isinstance(layer, OffsetConv2d | OffsetLinear)]
    if not firsts or len(firsts) + len(zeroed) < 2 * len(pairs) + 1:
        raise ConfigError(
            "the model is no Fixup net with an offset in every layer; build one with models.build('fixup20', ...) and "
            "convert all of its convolutions and its head, e.g. gossamer.convert(model, offset=gossamer.offsets.DCT())"
        )
    with torch.no_grad():
        for layer in firsts:
            ratio = _ratio(layer, len(pairs))
            layer.alpha.fill_(math.sqrt(ratio) if published else ratio)
        for other in zeroed:
            other.alpha.zero_()
    return model


def _ratio(layer: OffsetConv2d, branches: int) -> float:
    """r: norm of a filter of d Gaussian entries, sqrt(2) s Gamma((d + 1) / 2) / Gamma(d / 2), over that of D."""
    shape = layer.weight_shape
    entries = math.prod(shape[1:])
    norm = math.sqrt(2) * math.exp(math.lgamma((entries + 1) / 2) - math.lgamma(entries / 2))
    own = layer.offset_weight().flatten(1).norm(dim=1).mean().item()
    return norm * _spread(shape, branches) / own
