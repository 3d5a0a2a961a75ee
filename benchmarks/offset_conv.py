"""Convolutions with an offset, y = alpha D x + S x, against dense ones: forward and backward.

    python benchmarks/offset_conv.py [--only layers networks] [--rounds 30] [--json FILE]

D is the DCT, S is really sparse at density .001. "packed" takes and gives activations in the packed layout, as between
the layers of a converted model; "with copies" is the public layer on ordinary tensors; "D alone" is the offset's share,
both of its directions: no layer can be faster, whatever its density. Dense is fp32, the better one of contiguous and
channels_last. Of whole networks one step is measured: forward, backward and SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from timing import restart_pinned

restart_pinned()

import torch  # noqa: E402
from comparison import Report, agree, best, measure, options  # noqa: E402
from sparse_training import SETTINGS as NETWORKS  # noqa: E402
from sparse_training import Training, dense_sides  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import gossamer  # noqa: E402
from gossamer import methods  # noqa: E402
from gossamer.kernels import sparse  # noqa: E402
from gossamer.nn import OffsetConv2d, OffsetLinear  # noqa: E402
from gossamer.nn.packed import PackedActivation, leave  # noqa: E402
from gossamer.offsets import DCT, ConvolutionMap, ConvolutionShape  # noqa: E402

DENSITY = 0.001
BATCH = 32
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DENSE = tuple(f"dense {name}" for name in FORMATS)


class Setting(NamedTuple):
    """Padding that keeps the size at stride 1. floor: how many times faster than dense the packed layer has to be."""

    inputs: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1
    groups: int = 1
    floor: float | None = None

    def __str__(self) -> str:
        more = f", stride {self.stride}" * (self.stride > 1) + f", {self.groups} groups" * (self.groups > 1)
        return f"{self.inputs}->{self.outputs} {self.kernel}x{self.kernel} @{self.size}{more}, batch {BATCH}"

    @property
    def how(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups, "bias": False}


LAYERS = (
    Setting(64, 64, 3, 32),
    Setting(128, 128, 3, 16),
    Setting(256, 256, 3, 8, floor=2.0),
    Setting(512, 512, 1, 7),
    Setting(64, 128, 3, 32, stride=2),
    Setting(128, 128, 3, 16, groups=128),
    Setting(3, 64, 3, 32),
)


def dense_side(setting: Setting, x: Tensor, layout: torch.memory_format) -> Callable[[], object]:
    layer = nn.Conv2d(setting.inputs, setting.outputs, setting.kernel, **setting.how).to(memory_format=layout)
    x = x.contiguous(memory_format=layout).requires_grad_()
    slope = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), (x, layer.weight), slope)


def offset_sides(setting: Setting, x: Tensor) -> dict[str, Callable[[], object]]:
    """The layer on both layouts, checked against torch with its weight; and the offset alone."""
    layer = OffsetConv2d(setting.inputs, setting.outputs, setting.kernel, DENSITY, **setting.how)
    with torch.no_grad():
        how = {name: value for name, value in setting.how.items() if name != "bias"}
        agree(layer(x), nn.functional.conv2d(x, layer.effective_weight(), **how))
    plain, slope = x.clone().requires_grad_(), torch.randn_like(layer(x))
    packed, packed_slope = sparse.pack(x).requires_grad_(), sparse.pack(slope)
    trained = list(layer.parameters())

    def with_copies() -> object:
        layer.sparse.keep_packed = False
        return torch.autograd.grad(layer(plain), (plain, *trained), slope)

    def on_packed() -> object:
        layer.sparse.keep_packed = True
        y = layer(leave(packed, (BATCH,), keep=True))
        return torch.autograd.grad(y, (packed, *trained), leave(packed_slope, (BATCH,), keep=True))

    pair = (setting.kernel // 2,) * 2
    weight = (setting.outputs, setting.inputs // setting.groups, setting.kernel, setting.kernel)
    shape = ConvolutionShape(weight, (setting.stride,) * 2, pair, groups=setting.groups)
    made, image = DCT().convolution(shape), packed.detach()
    alone = there_and_back(made, image)
    return {"packed": on_packed, "with copies": with_copies, "D alone": alone}


def there_and_back(made: ConvolutionMap, x: Tensor) -> Callable[[], object]:
    slope = torch.randn_like(made.apply(x))
    return lambda: (made.apply(x), made.transpose(slope, x.shape))


def layer(setting: Setting, report: Report, rounds: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, setting.inputs, setting.size, setting.size)
    runs = {f"dense {name}": dense_side(setting, x, layout) for name, layout in FORMATS.items()}
    runs |= offset_sides(setting, x)
    timings = measure(runs, rounds)
    report.timings(f"{setting}, forward and backward", timings)
    against = best(timings, *DENSE)
    report.ratios(
        [
            (f"{side} against {against}", timings[against], timings[side], setting.floor if side == "packed" else None)
            for side in ("packed", "with copies", "D alone")
        ]
    )


def offsets_alone(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Both directions of D in all layers, on packed activations of their sizes."""
    runs: list[Callable[[], object]] = []

    def record(module: nn.Module, given: tuple[Any, ...], _: object) -> None:
        seen = given[0].unpacked() if isinstance(given[0], PackedActivation) else given[0]
        image, made = sparse.pack(seen.detach()), module.__dict__["_map"][0]
        if isinstance(module, OffsetConv2d):
            runs.append(there_and_back(made, image))
        else:
            slope = torch.randn_like(made.apply(image, 1))
            runs.append(lambda: (made.apply(image, 1), made.transpose(slope, 1)))

    hooks = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, OffsetConv2d | OffsetLinear)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return lambda: [run() for run in runs]


def network(name: str, report: Report, rounds: int) -> None:
    torch.manual_seed(0)
    setting = NETWORKS[name]
    x = torch.randn(128, *setting.shape)
    sides = {side: made for side, made in dense_sides(setting, x).items() if "fp32" in side}
    dense, method = tuple(sides), methods.static(DENSITY, "equal_per_layer")
    with_offset = gossamer.convert(setting.build(), method, offset=DCT())
    sides["offsets and sparse"] = Training(with_offset, x)
    sides["sparse without offsets"] = Training(gossamer.convert(setting.build(), method), x)
    runs: dict[str, Callable[[], object]] = {side: training.step for side, training in sides.items()}
    runs["D of all layers alone"] = offsets_alone(with_offset, x)
    timings = measure(runs, rounds)
    report.timings(f"{name}, batch {len(x)}, one step at density {DENSITY:g}", timings)
    against = best(timings, *dense)
    others = [side for side in timings if side not in dense]
    report.ratios([(f"{side} against {against}", timings[against], timings[side], None) for side in others])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=("layers", "networks"), default=["layers", "networks"])
    arguments = parser.parse_args()
    report = Report("Convolutions with offsets", arguments)
    for setting in LAYERS if "layers" in arguments.only else ():
        layer(setting, report, arguments.rounds)
    for name in ("vgg11-small", "resnet20") if "networks" in arguments.only else ():
        network(name, report, arguments.rounds)
    report.write()


if __name__ == "__main__":
    main()
