"""Activations that stay packed between consecutive sparse layers: tensors that lie in memory in another order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map, tree_map_only

from ..errors import ConfigError
from ..kernels import sparse

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
HANDLERS: dict[Any, Handler] = {}  # operator -> how it acts on packed memory; NotImplemented: unpack, as all others do


@dataclasses.dataclass(slots=True)
class Cell:
    """The memory of an activation, shared by its views: packed, plain and contiguous, or the same in both forms."""

    packed: Tensor | None = None
    plain: Tensor | None = None


class PackedActivation(Tensor):
    """A tensor (\\*lead, \\*features) whose memory holds sixteen samples side by side, (tiles, \\*features, 16).

    Layers of a converted model hand these on, so that the next one need not pack. Elementwise operations, batch norm,
    pooling and flattening act on the packed memory; every other operation unpacks by itself and gives a plain tensor.
    So it can be used wherever a tensor can, by hooks and autograd too; only its `data_ptr` means nothing to foreign
    code that reads memory by itself. `unpacked` gives the plain tensor.
    """

    cell: Cell
    lead: int  # dimensions whose product is the batch that runs through tiles and lanes

    @staticmethod
    def __new__(cls, cell: Cell, shape: Sequence[int], lead: int) -> PackedActivation:  # noqa: D102
        memory = cell.plain if cell.packed is None else cell.packed
        assert memory is not None
        self = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=memory.dtype, device=memory.device)
        self.cell, self.lead = cell, lead
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Below autograd: act on the packed memory if there is a way, else on the plain one."""
        handler = HANDLERS.get(func)
        if handler is not None:
            result = handler(func, args, kwargs or {})
            if result is not NotImplemented:
                return result
        if torch.is_inference_mode_enabled():  # there, operators arrive before they are taken apart
            result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return _plainly(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        """The same memory, outside autograd; it can be written to, not replaced."""
        return super().data

    @data.setter
    def data(self, value: Tensor) -> None:
        raise ConfigError("the memory of a PackedActivation cannot be replaced; use x.data.copy_(...) or x.unpacked()")

    @property
    def batch(self) -> int:
        """Number of samples."""
        return math.prod(self.shape[: self.lead])

    @property
    def features(self) -> torch.Size:
        """Shape of a sample."""
        return self.shape[self.lead :]

    def packed(self) -> Tensor:
        """The memory as (tiles, \\*features, 16), outside autograd."""
        memory = self.cell.packed
        if memory is None:
            assert self.cell.plain is not None
            return sparse.pack(self.cell.plain.reshape(self.batch, *self.features))
        return memory.view(len(memory), *self.features, sparse.LANES)

    def plain(self) -> Tensor:
        """The memory as (\\*lead, \\*features), outside autograd."""
        if self.cell.plain is None:
            self.cell.plain = sparse.unpack(self.packed(), self.batch)
        return self.cell.plain.view(self.shape)

    def unpacked(self) -> Tensor:
        """The same as a plain tensor; differentiable."""
        return _Unpack.apply(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedActivation({self.unpacked()!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.unpacked().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = memo[id(self)] = self.unpacked().__deepcopy__(memo)
        return copied

    def numpy(self, *, force: bool = False) -> Any:
        """As of the plain tensor."""
        return self.unpacked().numpy(force=force)

    def __array__(self, dtype: Any = None) -> Any:
        return self.unpacked().__array__(dtype)

    def share_memory_(self) -> Any:
        """Not possible: the memory belongs to no storage of its own."""
        raise ConfigError("a PackedActivation has no storage to share; use x.unpacked().share_memory_()")

    def tolist(self) -> Any:
        """As of the plain tensor."""
        return self.unpacked().tolist()


def _plainly(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on plain memory; one that writes, or whose result shares memory, ends the packed form."""
    if torch.Tag.inplace_view in func.tags and func is not torch.ops.aten.detach_.default:
        name = func.name().removeprefix("aten::").partition(".")[0]
        raise ConfigError(
            f"{name} on a PackedActivation: its shape cannot change in place; use x.unpacked().{name}(...)"
        )
    wrappers: dict[int, PackedActivation] = {}
    aliased = {a.name for a in func._schema.arguments if a.alias_info is not None}

    def unpack(x: PackedActivation, *, keep: bool) -> Tensor:
        plain = x.plain()
        if not keep:
            x.cell.packed = None
        wrappers[id(plain)] = x
        return plain

    def convert(name: str, value: Any) -> Any:
        keep = name not in aliased
        return tree_map_only(PackedActivation, lambda x: unpack(x, keep=keep), value)

    names = [argument.name for argument in func._schema.arguments]
    plain = [convert(name, value) for name, value in zip(names, args, strict=False)]
    result = func(*plain, **{name: convert(name, value) for name, value in kwargs.items()})
    return tree_map_only(Tensor, lambda out: _wrapper(out, wrappers), result)


def _wrapper(out: Tensor, wrappers: dict[int, PackedActivation]) -> Tensor:
    """The activation that an operator wrote to, which keeps its shape."""
    x = wrappers.get(id(out), out)
    if x.shape != out.shape:
        raise ConfigError(
            f"a result of shape {tuple(out.shape)} does not fit out=, a PackedActivation of {tuple(x.shape)}"
        )
    return x


def clear_padding(packed: Tensor, batch: int) -> Tensor:
    """Make the lanes of missing samples zero, whatever operations made of them; nobody reads them otherwise."""
    used = batch % sparse.LANES
    if used:
        packed.data[-1, ..., used:] = 0  # .data: no change that autograd would have to know
    return packed


class _Enter(torch.autograd.Function):
    """PackedActivation -> (tiles, features, 16), for a kernel."""

    @staticmethod
    def forward(ctx: Any, x: PackedActivation) -> Tensor:
        ctx.lead = tuple(x.shape[: x.lead])
        return clear_padding(x.packed(), x.batch).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _wrap(grad, ctx.lead)


class _Leave(torch.autograd.Function):
    """(tiles, features, 16) -> PackedActivation."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, lead: tuple[int, ...]) -> Tensor:
        ctx.lead = len(lead)
        return _wrap(packed.detach(), lead)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if isinstance(grad, PackedActivation) and grad.lead == ctx.lead:
            return clear_padding(grad.packed(), grad.batch), None
        plain = grad.plain() if isinstance(grad, PackedActivation) else grad
        return sparse.pack(plain.flatten(0, ctx.lead - 1)), None


class _Unpack(torch.autograd.Function):
    """PackedActivation -> the plain tensor."""

    @staticmethod
    def forward(ctx: Any, x: PackedActivation) -> Tensor:
        return x.plain().detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _wrap(packed: Tensor, lead: Sequence[int]) -> PackedActivation:
    return PackedActivation(Cell(packed.contiguous()), (*lead, *packed.shape[1:-1]), len(lead))


def enter(x: Tensor, lead: int, dtype: torch.dtype) -> Tensor:
    """Pack an activation whose first `lead` dimensions are the batch, (tiles, \\*features, 16); differentiable."""
    if isinstance(x, PackedActivation):
        if x.lead == lead and x.dtype == dtype:
            return _Enter.apply(x)
        x = x.unpacked()
    batch = math.prod(x.shape[:lead])
    return sparse.pack(x.reshape(batch, *x.shape[lead:]).to(dtype))


def leave(packed: Tensor, lead: Sequence[int], *, keep: bool) -> Tensor:
    """The activation (\\*lead, \\*features) of a kernel's output, packed still if `keep`; differentiable."""
    if keep and lead and math.prod(lead):
        return _Leave.apply(packed, tuple(lead))
    return sparse.unpack(packed, math.prod(lead)).reshape(*lead, *packed.shape[1:-1])


def unpack_outputs(module: Any, inputs: Any, output: Any) -> Any:
    """Forward hook of a converted model: whatever leaves it is plain, in tuples, dicts and dataclasses too."""
    return None if torch.compiler.is_compiling() else _plain_tree(output)


def _plain_tree(output: Any) -> Any:
    def plain(leaf: Any) -> Any:
        if isinstance(leaf, PackedActivation):
            return leaf.unpacked()
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                object.__setattr__(leaf, field.name, _plain_tree(getattr(leaf, field.name)))  # frozen ones too
        return leaf

    return tree_map(plain, output)
