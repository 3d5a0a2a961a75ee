"""The work of one layer, as measurements and the ledger see it: the shape of its weight and of what goes through it."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..sparse_layer import is_sparse_layer
from ..targets import canonical

_TEXT = re.compile(r"(?:linear:)?(\d+)x(\d+)|conv:(\d+(?:x\d+){2,3})@(\d+(?:x\d+)?)")
_EXPECTED = (
    "write linear weights as OUTxIN, e.g. 4096x4096, convolutions as conv:OUTxINxKHxKW@SIZE, e.g. conv:64x64x3x3@32"
)


@dataclass(frozen=True)
class LayerShape:
    """A linear layer or a convolution and its input.

    weight: (out, in) of a linear layer, (out, in / groups, \\*kernel) of a convolution. batch: rows that go through a
    linear layer, examples of a convolution. size: spatial size of a convolution's input. stride, padding, dilation: one
    number per spatial axis. inner: its input needs a gradient, as that of every layer but the first does.
    """

    kind: Literal["linear", "conv"]
    weight: tuple[int, ...]
    batch: int
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    inner: bool = True

    def __post_init__(self) -> None:
        axes = len(self.weight) - 2
        numbers = (*self.weight, self.batch, *self.size)
        if any(number < 1 for number in numbers) or axes != len(self.size):
            raise ConfigError(
                f"layer {self.weight} on a batch of {self.batch}, size {self.size} cannot be; {_EXPECTED}"
            )
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            object.__setattr__(self, name, getattr(self, name) or (default,) * axes)
        if min(self.out_size, default=1) < 1:
            raise ConfigError(f"a kernel of {self.weight[2:]} does not fit an input of {self.size}; give a larger size")

    @classmethod
    def parse(cls, text: str, batch: int) -> Self:
        """Read ``"4096x4096"`` (out x in) or ``"conv:64x64x3x3@32"``, of stride 1 and padded by half its kernel.

        Raises:
            ConfigError: the text is no layer.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ConfigError(f"layer {text!r}: {_EXPECTED}")
        rows, columns, kernel, size = found.groups()
        if rows:
            return cls("linear", (int(rows), int(columns)), batch)
        weight = tuple(map(int, kernel.split("x")))
        axes = len(weight) - 2
        sizes = tuple(map(int, size.split("x")))
        if len(sizes) not in (1, axes):
            raise ConfigError(f"layer {text!r}: a kernel of {axes} axes and an input of {len(sizes)}; {_EXPECTED}")
        padding = tuple(taps // 2 for taps in weight[2:])
        return cls("conv", weight, batch, sizes if len(sizes) == axes else sizes * axes, padding=padding)

    @property
    def numel(self) -> int:
        """Entries of the dense weight."""
        return math.prod(self.weight)

    @property
    def out_size(self) -> tuple[int, ...]:
        """Spatial size of a convolution's output."""
        axes = zip(self.size, self.weight[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * pad - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pad, gap in axes)

    @property
    def positions(self) -> int:
        """How often every weight is used by one batch: rows of a linear layer, output positions of a convolution."""
        return self.batch * math.prod(self.out_size)

    @property
    def inputs(self) -> int:
        """Entries of the input."""
        return self.batch * self.weight[1] * self.groups * math.prod(self.size)

    @property
    def outputs(self) -> int:
        """Entries of the output."""
        return self.positions * self.weight[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.batch, self.weight[1] * self.groups, *self.size)

    def __str__(self) -> str:
        text = "x".join(map(str, self.weight))
        if self.kind == "linear":
            return text
        step = "" if set(self.stride) == {1} else f"/{self.stride[0]}"
        sizes = self.size[:1] if len(set(self.size)) == 1 else self.size
        return f"conv:{text}@{'x'.join(map(str, sizes))}{step}{f' g{self.groups}' if self.groups > 1 else ''}"


def traced(model: nn.Module, x: Any) -> dict[str, LayerShape]:
    """Logical weight name -> shape of every linear layer and convolution, dense or sparse, that a forward pass runs.

    x: one batch: a tensor, a tuple of positional arguments, or a dict of named ones. The model is left as it was;
    random numbers are drawn from a fork. A layer that runs more than once has the rows (a convolution: the examples)
    of all its calls.

    Raises:
        ConfigError: the model does not take the batch; tells what it raised.
    """
    calls: dict[str, LayerShape] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        shape = _shape_of(module, (*inputs, *named.values())[0])
        if name in calls:
            earlier = calls[name]
            shape = LayerShape(**{**vars(shape), "batch": shape.batch + earlier.batch, "inner": True})
        calls[name] = shape

    handles = []
    for path, module in model.named_modules():
        if _is_layer(module):
            name = canonical(f"{path}.weight" if path else "weight")
            seen = functools.partial(note, name)
            handles.append(module.register_forward_pre_hook(seen, with_kwargs=True))
    try:
        with _untouched(model), torch.enable_grad():
            _run(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _run(model: nn.Module, x: Any) -> None:
    try:
        if isinstance(x, Mapping):
            model(**x)
        else:
            model(*(x if isinstance(x, tuple) else (x,)))
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the model does not take this batch: {type(error).__name__}: {why}; pass one batch of its inputs: "
            "a tensor, a tuple of positional arguments, or a dict of named ones"
        ) from error


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Batch norm's running figures and the random state are put back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or is_sparse_layer(module)


def _shape_of(module: Any, x: Tensor) -> LayerShape:
    weight = tuple(module.weight_shape if is_sparse_layer(module) else module.weight.shape)
    inner = bool(x.requires_grad)
    axes = len(weight) - 2
    if axes == 0:
        return LayerShape("linear", weight, math.prod(x.shape[:-1]), inner=inner)
    padding = module.padding
    if isinstance(padding, str):  # "same" pads by what keeps the size, at stride 1
        spans = [gap * (taps - 1) for gap, taps in zip(module.dilation, weight[2:], strict=True)]
        padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
    batch = x.shape[0] if x.ndim == axes + 2 else 1
    size = tuple(x.shape[-axes:])
    return LayerShape("conv", weight, batch, size, module.stride, padding, module.dilation, module.groups, inner)
