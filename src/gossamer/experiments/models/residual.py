"""Convolutional nets with shortcuts, for images of 32x32 and smaller: ResNet and MobileNetV2."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import chain, conv_bn, he_normal_, pooled_head, scaled

Shape = tuple[int, ...]


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, branch: nn.Sequential, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = branch
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride=stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return nn.functional.relu(self.branch(x) + self.shortcut(x))


def _basic(inputs: int, channels: int, stride: int) -> tuple[Residual, int]:
    branch = nn.Sequential(conv_bn(inputs, channels, 3, stride=stride), conv_bn(channels, channels, 3, activation=None))
    return Residual(branch, inputs, channels, stride), channels


def _bottleneck(inputs: int, channels: int, stride: int) -> tuple[Residual, int]:
    outputs = 4 * channels
    branch = nn.Sequential(
        conv_bn(inputs, channels, 1),
        conv_bn(channels, channels, 3, stride=stride),
        conv_bn(channels, outputs, 1, activation=None),
    )
    return Residual(branch, inputs, outputs, stride), outputs


def _resnet(
    input_shape: Shape,
    classes: int,
    width: float,
    stages: tuple[tuple[int, int], ...],
    bottleneck: bool = False,
) -> nn.Module:
    """3x3 stem, stages of (channels, blocks) that halve the image from the second on, linear head.

    Source: He et al. 2016, arXiv:1512.03385; shortcuts are projections (option B).
    """
    channels = scaled(stages[0][0], width)
    layers: dict[str, nn.Module] = {"stem": conv_bn(input_shape[0], channels, 3)}
    for number, (wanted, blocks) in enumerate(stages):
        for block in range(blocks):
            make, stride = _bottleneck if bottleneck else _basic, 2 if number > 0 and block == 0 else 1
            layer, channels = make(channels, scaled(wanted, width), stride)
            layers[f"stage{number + 1}_{block + 1}"] = layer
    return he_normal_(chain({**layers, "head": pooled_head(channels, classes)}))


def resnet8(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return ResNet-8: one block at each of 16, 32, 64 channels."""
    return _resnet(input_shape, classes, width, ((16, 1), (32, 1), (64, 1)))


def resnet20(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return ResNet-20: three blocks at each of 16, 32, 64 channels."""
    return _resnet(input_shape, classes, width, ((16, 3), (32, 3), (64, 3)))


def resnet18(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return ResNet-18 with a 3x3 stem: two blocks at each of 64, 128, 256, 512 channels."""
    return _resnet(input_shape, classes, width, ((64, 2), (128, 2), (256, 2), (512, 2)))


def resnet50(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Return ResNet-50 with a 3x3 stem: 3, 4, 6, 3 bottleneck blocks at 64, 128, 256, 512 channels."""
    return _resnet(input_shape, classes, width, ((64, 3), (128, 4), (256, 6), (512, 3)), bottleneck=True)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by depthwise 3x3, project by 1x1; added to the input where the shapes agree.

    projections: expand by a factor of 1 too, and where only the channels differ add the input through a 1x1
    convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, projections: bool = False):
        super().__init__()
        hidden = inputs * expansion
        self.added = stride == 1 and (inputs == outputs or projections)
        project = self.added and inputs != outputs
        self.shortcut = conv_bn(inputs, outputs, 1, activation=None) if project else nn.Identity()
        self.branch = nn.Sequential(
            *([conv_bn(inputs, hidden, 1, activation=nn.ReLU6)] if expansion > 1 or projections else []),
            conv_bn(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6),
            conv_bn(hidden, outputs, 1, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branch."""
        return self.shortcut(x) + self.branch(x) if self.added else self.branch(x)


# (expansion, channels, blocks, stride of the first block): table 2 of the paper with the first two halvings left out
MOBILENET_PLAN = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenetv2(input_shape: Shape, classes: int, width: float = 1.0, *, projections: bool = False) -> nn.Module:
    """Return MobileNetV2 for 32x32: 32x32 after the stem and 4x4 before the head.

    projections: five more 1x1 convolutions, in the first stage and in shortcuts where only the channels change: the
    net that DCTpS was published with (Price and Tanner 2021, arXiv:2102.07655).

    Source: Sandler et al. 2018, arXiv:1801.04381. Deviations: the stem and the second stage keep the image's size; no
    dropout; channels are not rounded to multiples of 8.
    """
    channels, last = scaled(32, width), scaled(1280, width)
    layers: dict[str, nn.Module] = {"stem": conv_bn(input_shape[0], channels, 3, activation=nn.ReLU6)}
    for number, (expansion, wanted, blocks, first_stride) in enumerate(MOBILENET_PLAN, 1):
        outputs = scaled(wanted, width)
        for block in range(blocks):
            stride = 1 if block else first_stride
            layers[f"stage{number}_{block + 1}"] = InvertedResidual(channels, outputs, stride, expansion, projections)
            channels = outputs
    layers["last"] = conv_bn(channels, last, 1, activation=nn.ReLU6)
    return he_normal_(chain({**layers, "head": pooled_head(last, classes)}))
