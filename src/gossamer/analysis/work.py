"""What the ledger has to know of every parameter of a model: its shape, how it is computed with and what trains it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from ..coverage import Coverage
from ..method import Live, Method, Zero
from ..nn.hybrid import Hybrid
from ..nn.layer_shape import LayerShape
from ..nn.offset import OffsetConv2d, OffsetLinear
from ..sparse_layer import is_sparse_layer
from ..targets import canonical
from ..topology import Static, as_schedule
from ._offset_work import OffsetWork, offset_work

Execution = Literal["dense", "masked", "sparse", "hybrid"]
_END = 1 << 60  # a step after the end of every schedule


@dataclass(frozen=True)
class Work:
    """What the ledger knows of one parameter.

    shape: None for what is no linear layer or convolution, which counts with its memory only. numel, count: N and n.
    trained: g; None: n. slots: optimizer slots per entry. index_bytes: of a sparse or hybrid layer. live: inactive
    entries keep a value. rewires: its support changes. grows_by_gradient: by the gradient of inactive entries.
    offset: the fixed matrix beside it.
    """

    name: str
    shape: LayerShape | None
    numel: int
    count: int
    execution: Execution
    trained: int | None = None
    slots: int = 0
    index_bytes: int = 0
    live: bool = False
    rewires: bool = False
    grows_by_gradient: bool = False
    offset: OffsetWork | None = None

    @property
    def g(self) -> int:
        """Entries that get a gradient in every step."""
        return self.count if self.trained is None else self.trained

    @property
    def computes_densely(self) -> bool:
        """Whether forward and activation gradient compute with all entries."""
        return self.execution in ("dense", "masked")


def works(
    model: nn.Module,
    shapes: Mapping[str, LayerShape],
    coverage: Coverage,
    method: object = None,
    optimizers: Sequence[Optimizer] = (),
) -> tuple[Work, ...]:
    """What there is to know of every parameter of a model.

    shapes: as `gossamer.nn.measure.traced(model, batch)` returns. coverage: of its sparsifier. method: what the
    sparsifier runs; learned methods have the gradient of all entries. optimizers: after a step, when they have slots.
    """
    modules = {canonical(f"{path}.").removesuffix("."): module for path, module in model.named_modules()}
    slots, made = _slots(model, optimizers), list[Work]()
    trains = what_trains(method, {row.name: row.shape for row in coverage.rows if row.sparse})
    for row in coverage.rows:
        execution, index_bytes = _execution(modules, row.name, row.sparse)
        shape, about = shapes.get(row.name), trains.get(row.name, {})
        work = Work(row.name, shape, row.numel, row.count, execution, index_bytes=index_bytes, **about)
        offset = _offset(modules, row.name, shape, packed=execution == "sparse")
        made.append(replace(work, slots=slots.get(row.name, 0), offset=offset))
    return tuple(made)


def what_trains(method: object, shapes: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    """Fields of the `Work` of every sparse weight that the method decides, by name; None is a support that stays."""
    if method is None:
        return {}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not isinstance(method, Method):
        return {name: {"trained": size} for name, size in sizes.items()}
    zero, rewires = isinstance(method.inactive, Zero), not isinstance(method.rule, Static)
    keeps = isinstance(method.inactive, Zero) and method.inactive.slots == "keep"
    about: dict[str, Any] = {"live": not zero, "rewires": rewires}
    if not zero or keeps:
        trained = _reach(method, shapes) or sizes
        return {name: {**about, "trained": trained[name]} for name in shapes}
    about["grows_by_gradient"] = rewires and "grad" in method.rule.needs
    return {name: dict(about) for name in shapes}


def _reach(method: Method, shapes: Mapping[str, Sequence[int]]) -> dict[str, int] | None:
    """Entries that are trained when training ends, where the method limits them (Top-KAST)."""
    if not isinstance(method.inactive, Live) or method.inactive.reach is None:
        return None
    density, reach = (as_schedule(part).resolve(_END)(_END) for part in (method.density, method.inactive.reach))
    last = replace(method, density=density, inactive=replace(method.inactive, reach=max(density, reach)))
    return last.reach_counts(shapes, 0)


def _offset(
    modules: Mapping[str, nn.Module], name: str, shape: LayerShape | None, *, packed: bool
) -> OffsetWork | None:
    """What the layer around a sparse one adds to it."""
    layer = modules.get(name.removesuffix(".sparse.weight"))
    if shape is None or not isinstance(layer, OffsetLinear | OffsetConv2d):
        return None
    return offset_work(layer.offset, shape, packed=packed, alpha=isinstance(layer.alpha, nn.Parameter))


def _execution(modules: Mapping[str, nn.Module], name: str, sparse: bool) -> tuple[Execution, int]:
    """How the weight's layer computes, and the bytes of its index."""
    module = modules.get(name.rpartition(".")[0])
    if sparse and name.endswith("weight") and is_sparse_layer(module):
        return "sparse", module.index.nbytes
    if sparse and name.endswith("weight") and isinstance(module, Hybrid):
        return "hybrid", 0 if module._index is None else module._index.nbytes
    return "masked" if sparse else "dense", 0


def _slots(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, int]:
    """Logical parameter name -> number of optimizer slots of its shape."""
    state = {parameter: slots for optimizer in optimizers for parameter, slots in optimizer.state.items()}
    found = {}
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            logical = "weight" if is_sparse_layer(module) and attribute == "values" else attribute
            tensors = [v for v in state.get(parameter, {}).values() if isinstance(v, Tensor)]
            name = canonical(f"{path}.{logical}" if path else logical)
            found[name] = sum(tensor.shape == parameter.shape and tensor.ndim > 0 for tensor in tensors)
    return found
