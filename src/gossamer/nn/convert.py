"""Layers swapped for those that execute sparsity, and back: modules and supports in, modules out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from ..offsets import Offset
from ..topology import Support
from ._checks import unindexable
from ._two_four import unfit
from .block import BlockSparseLinear
from .convolution import SparseConv1d, SparseConv2d
from .hybrid import Hybrid, HybridConv2d, HybridLinear
from .linear import SparseLinear
from .offset import OffsetConv2d, OffsetLayer, OffsetLinear
from .packed import unpack_outputs
from .semi_structured import SemiStructured, SemiStructuredConv2d, SemiStructuredLinear
from .weight import SparseWeight

Layout = Literal["sparse", "hybrid", "block", "semi_structured", "dense"]

_KINDS: dict[str, dict[type[nn.Module], Any]] = {
    "sparse": {nn.Linear: SparseLinear, nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d},
    "hybrid": {nn.Linear: HybridLinear, nn.Conv2d: HybridConv2d},
    "block": {nn.Linear: BlockSparseLinear},
    "semi_structured": {nn.Linear: SemiStructuredLinear, nn.Conv2d: SemiStructuredConv2d},
    "offset": {
        **dict.fromkeys((nn.Linear, SparseLinear, HybridLinear), OffsetLinear),
        **dict.fromkeys((nn.Conv2d, SparseConv2d, HybridConv2d), OffsetConv2d),
    },
}
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
    *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


@dataclass(frozen=True)
class Choice:
    """What one weight became. why: of a weight left dense the reason, else what spoke for it.

    offset: the name of the offset beside it, or "".
    """

    name: str
    layout: Layout
    shape: tuple[int, ...]
    count: int
    why: str
    offset: str = ""

    @property
    def form(self) -> str:
        """Offset and layout."""
        return f"{self.offset} + {self.layout}" if self.offset else self.layout


@dataclass(frozen=True)
class ConversionReport:
    """What `gossamer.convert` made of each weight that was to be sparse; ``print`` it."""

    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        rows = [(c.name, c.form, "x".join(map(str, c.shape)), str(c.count), c.why) for c in self.choices]
        table = [("weight", "layout", "shape", "count", "why"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
            for row in table
        )


def conversion_report(model: nn.Module) -> ConversionReport | None:
    """What `gossamer.convert` did to the model, None if it is not converted."""
    return model.__dict__.get("_conversion")


def refusal(model: nn.Module, module: nn.Module, attribute: str, layout: str) -> str:
    """Why a weight cannot be held by a layer of that layout, or have an offset (layout "offset"); or ''."""
    kind, weight = type(module), getattr(module, attribute)
    if isinstance(module, nn.MultiheadAttention):
        return "attention computes with its weights itself"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent layers compute with their weights themselves"
    if kind not in _KINDS[layout] or attribute not in ("weight", "values"):
        base = next((b.__name__ for b in _KINDS[layout] if isinstance(module, b)), None)
        more = f", a {base} that may compute something else" if base else ""
        return f"there is no {layout} layer for {kind.__name__}{more}"
    if layout == "semi_structured":
        return unfit(module)
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={module.padding_mode!r}, the kernels pad with zeros"
    if sum(any(p is weight for p in m._parameters.values()) for m in model.modules()) > 1:
        return "tied: another module computes with the same Parameter"
    if weight.device.type != "cpu" and layout != "block":
        return f"on {weight.device}, the kernels are for the CPU"
    if layout in ("sparse", "hybrid") and (why := unindexable(weight.shape)):
        return why
    reader = next((m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer) and _child(m, module)), None)
    return "TransformerEncoderLayer reads its weight in evaluation" if reader and layout != "hybrid" else ""


def _child(parent: nn.Module, module: nn.Module) -> bool:
    return any(child is module for child in parent.children())


def swap(model: nn.Module, supports: Mapping[nn.Module, Support], layout: str, **options: Any) -> nn.Module:
    """Put layers that execute sparsity in the place of modules; return the model, or the layer if the model is one.

    options: of their ``from_dense``. Consecutive sparse layers hand activations on packed; a hook on the model unpacks
    what leaves it.
    """
    made = {m: _KINDS[layout][type(m)].from_dense(m, support, **options) for m, support in supports.items()}
    for module, layer in made.items():
        if isinstance(layer, SparseWeight):
            share_hooks(module, layer)
            layer.keep_packed = module is not model
    model = put(model, made)
    for outer in offset_layers(model):
        if outer.sparse in made.values() and isinstance(outer.sparse, SparseWeight):
            outer.sparse.keep_packed = outer is not model
    if any(isinstance(layer, SparseWeight) and layer.keep_packed for layer in made.values()):
        model.register_forward_hook(unpack_outputs)
    return model


def offset_layers(model: nn.Module) -> list[OffsetLayer]:
    """Those of a model."""
    return [module for module in model.modules() if isinstance(module, OffsetLayer)]


def add_offsets(
    model: nn.Module, modules: Mapping[nn.Module, int], offset: Offset, **options: Any
) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Put offset layers in the place of modules.

    modules: with the seed of each. options: alpha and train_alpha. Returns the model, or the layer if the model is one,
    and what `put` needs to undo it: each layer with the module whose place it took.
    """
    made = {m: _KINDS["offset"][type(m)].from_dense(m, offset, seed=seed, **options) for m, seed in modules.items()}
    for module, layer in made.items():
        share_hooks(module, layer)
    return put(model, made), {layer: module for module, layer in made.items()}


def densify(model: nn.Module, *, keep_offsets: bool = False) -> nn.Module:
    """Put dense layers, with zeros, in the place of those that execute sparsity; return the model, or the layer.

    Those with an offset become plain ones that hold alpha D + S; keep_offsets: they stay, with a dense S.
    """
    made: dict[nn.Module, nn.Module] = {}
    for outer in offset_layers(model):
        if not keep_offsets:
            made[outer] = outer.dense_module()
            share_hooks(outer, made[outer])
    model, made = put(model, made), {}
    for module in swapped(model):
        made[module] = module.dense_module()
        if isinstance(module, SparseWeight):
            share_hooks(module, made[module])
    for key, hook in list(model._forward_hooks.items()):
        if hook is unpack_outputs:
            del model._forward_hooks[key]
    model.__dict__.pop("_conversion", None)
    return put(model, made)


def swapped(model: nn.Module) -> Iterator[SparseWeight | Hybrid | SemiStructured]:
    """The sparse, hybrid and semi-structured layers of a model."""
    return (module for module in model.modules() if isinstance(module, SparseWeight | Hybrid | SemiStructured))


def note(model: nn.Module, choices: Sequence[Choice]) -> None:
    """Keep what was chosen for `conversion_report`, with the offsets that there are."""
    layers = {f"{path}.".lstrip("."): m for path, m in model.named_modules() if isinstance(m, OffsetLayer)}
    offsets = {f"{start}sparse.weight": layer.offset.label for start, layer in layers.items()}
    told = tuple(replace(choice, offset=offsets.get(choice.name, "")) for choice in choices)
    model.__dict__["_conversion"] = ConversionReport(told)


def share_hooks(old: nn.Module, new: nn.Module) -> None:
    """The same dicts, so that the handles that users hold still remove their hooks."""
    new.__dict__.update({name: old.__dict__[name] for name in _HOOKS})


def put(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put modules in the place of others; return the model, or what took its place."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in made:
                parent._modules[name] = made[child]
    return made.get(model, model)
