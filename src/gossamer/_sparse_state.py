"""Sparse layers in the form in which masked models are saved: the weight and its slots by ascending flat position.

So a file does not tell which of the two wrote it, and either can read it. The dense weight is never made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import optimizer_state
from ._safetensors import raw
from ._sparse_values import SparseValues
from .errors import CheckpointError
from .nn.offset import OffsetLayer
from .nn.weight import SparseWeight
from .targets import canonical
from .topology import Support

_VALUES, _INDEX = "values", "index"  # as `SparseWeight` names them in its state dict


@dataclass(frozen=True)
class Entry:
    """One entry of a model's state dict. name: there; layer: the sparse layer of which these are the values."""

    name: str
    value: Any
    layer: SparseWeight | None

    @property
    def shape(self) -> torch.Size | None:
        """That of the weight or tensor, None of anything else."""
        if self.layer is not None:
            return self.layer.weight_shape
        return self.value.shape if isinstance(self.value, Tensor) else None


def entries(model: nn.Module) -> dict[str, Entry]:
    """Saved name -> entry of the state dict, without what DDP or `torch.compile` put before the name.

    The values of a sparse layer at `fc` are saved as `fc.weight`, its index goes with them.
    """
    modules = model.named_modules(remove_duplicate=False)
    layers = {canonical(f"{path}." if path else ""): m for path, m in modules if isinstance(m, SparseWeight)}
    out = {}
    for own, value in model.state_dict().items():
        name = canonical(own)
        last = name.rpartition(".")[2]
        start = name.removesuffix(last)
        if start not in layers or last not in (_VALUES, _INDEX):
            out[name] = Entry(own, value, None)
        elif last == _VALUES:
            out[f"{start}weight"] = Entry(own, value, layers[start])
    return out


def offsets_in(model: nn.Module) -> dict[str, str]:
    """Path -> offset of the layers that have one; it is not among the tensors that are saved."""
    layers = ((path, module) for path, module in model.named_modules() if isinstance(module, OffsetLayer))
    return {canonical(f"{path}.").rstrip("."): repr(layer.offset) for path, layer in layers}


@dataclass(frozen=True)
class Arrangement:
    """How a layer stores its weight: the i-th number is that at position `index[order[i]]` of `index`, which ascends.

    An order of -1 is that of a number which belongs to no weight, 0. form: of the values, without the first dimension.
    """

    shape: torch.Size
    index: Tensor
    order: Tensor
    form: torch.Size

    @classmethod
    def of(cls, layer: SparseWeight) -> Arrangement:
        """The present one of a layer."""
        index, place = layer.ascending()
        order = torch.full((layer.values.numel(),), -1)
        order[place] = torch.arange(len(index))
        return cls(layer.weight_shape, index, order, layer.values.shape[1:])

    def saved(self, stored: Tensor, fill: float = 0.0) -> SparseValues:
        """Stored values, or a slot of theirs, in the form that is saved; fill: see `SparseValues`."""
        values, held = torch.empty(len(self.index), dtype=stored.dtype), self.order >= 0
        values[self.order[held]] = stored.detach().cpu().reshape(-1)[held]
        return SparseValues(self.shape, self.index, values, fill)

    def stored(self, saved: Tensor | SparseValues) -> Tensor:
        """The reverse, of a tensor that was saved sparse or dense."""
        here = saved.at(self.index) if isinstance(saved, SparseValues) else saved.reshape(-1)[self.index]
        padded = torch.cat([here, here.new_zeros(1)])  # -1 is the last
        return padded[self.order].view(-1, *self.form)


def model_state(model: nn.Module) -> tuple[dict[str, Any], dict[int, Arrangement]]:
    """What is saved of a model, and the arrangements of its sparse layers by the id of their `values`."""
    arranged: dict[int, Arrangement] = {}
    weights: dict[int, SparseValues] = {}
    state = {}
    for name, entry in entries(model).items():
        if entry.layer is None or entry.layer.values.is_meta:
            state[name] = entry.value
            continue
        key = id(entry.layer.values)
        if key not in arranged:
            arranged[key] = Arrangement.of(entry.layer)
            weights[key] = arranged[key].saved(entry.value)
        state[name] = weights[key]
    return state, arranged


def slots_state(optimizer: Optimizer, arranged: Mapping[int, Arrangement]) -> dict[str, Any]:
    """What is saved of an optimizer: its state dict, slots of sparse layers' values by flat position."""
    state = optimizer.state_dict()
    slots = dict(state["state"])
    for parameter, number in numbered(optimizer, state):
        if id(parameter) in arranged and number in slots:
            arrangement, held = arranged[id(parameter)], slots[number]
            slots[number] = {
                slot: arrangement.saved(value, optimizer_state.resting_value(slot, optimizer, parameter))
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for slot, value in held.items()
            }
    return {**state, "state": slots}


def own_slots(optimizer: Optimizer, saved: Mapping[str, Any], arranged: Mapping[int, Arrangement]) -> dict[str, Any]:
    """Undo `slots_state` for this optimizer, whose sparse layers will have these arrangements."""
    slots = dict(saved["state"])
    for parameter, number in numbered(optimizer, saved):
        if id(parameter) in arranged and number in slots:
            arrangement = arranged[id(parameter)]
            slots[number] = {
                slot: arrangement.stored(value) if getattr(value, "shape", None) == arrangement.shape else value
                for slot, value in slots[number].items()
            }
    return {**saved, "state": slots}


def numbered(optimizer: Optimizer, state: Mapping[str, Any]) -> list[tuple[nn.Parameter, int]]:
    """The parameters of an optimizer with their numbers in its state dict."""
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    return [pair for mine, its in groups for pair in zip(mine["params"], its["params"], strict=True)]


def own_state(
    model: nn.Module, state: Mapping[str, Any], supports: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[int, Arrangement]]:
    """The state dict of this model out of a saved one that fits it, and the arrangements its sparse layers will have.

    supports: weight name -> the sparsifier's state of its support, for weights that were saved dense.

    Raises:
        CheckpointError: the support of the sparsifier is another than that of the weight.
    """
    own: dict[str, Any] = {}
    indices: dict[int, Tensor] = {}
    arranged: dict[int, Arrangement] = {}
    for name, entry in entries(model).items():
        if entry.layer is None:
            own[entry.name] = state[name]
            continue
        key = id(entry.layer.values)
        if key not in arranged:
            positions = _positions(name, entry.layer, state[name], supports.get(name))
            indices[key], order = entry.layer.arrange(positions)
            form = entry.layer.values.shape[1:]
            arranged[key] = Arrangement(entry.layer.weight_shape, positions, order, form)
        own[entry.name] = arranged[key].stored(state[name])
        own[entry.name.removesuffix(_VALUES) + _INDEX] = indices[key]
    return own, arranged


def _positions(name: str, layer: SparseWeight, saved: Tensor | SparseValues, support: Any) -> Tensor:
    """The active positions of a saved weight.

    One that was saved dense has no support of its own: it is the sparsifier's, else the layer's if that holds all of
    the weight, else that of its exact non-zeros.
    """
    if isinstance(saved, SparseValues):
        if support is not None and support["count"] != len(saved.index):
            raise CheckpointError(
                f"the file is damaged: {name} has {len(saved.index)} values, its support {support['count']}"
            )
        return saved.index
    if support is not None:
        return Support.from_state(support).index
    mine, nonzero = layer.support().index, raw(saved).nonzero().view(-1)
    return mine if bool(torch.isin(nonzero, mine, assume_unique=True).all()) else nonzero
