"""Layers whose weight is a fixed dense matrix, which costs no memory, plus a trained sparse one."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import ConfigError, check_flag, check_kept_seed
from ..offsets import DCT, Offset
from ._checks import check_tensor
from ._forms import check_place, refuse_tracers
from ._offset_operator import kind_of, map_of, scaled
from .hybrid import Hybrid
from .packed import PackedActivation
from .weight import SparseWeight

DEFAULT = DCT()
_HELD = "_map"  # of the map and the seed that it was drawn from: never copied, never saved


class OffsetLayer(nn.Module):
    """What both layers share: a layer of S and b, and D beside it.

    Attributes:
        sparse: the layer of S and b: dense (for `sparsify` to mask), sparse or hybrid. The name of S is
            ``<path>.sparse.weight``.
        alpha: the factor of D, of shape (1,): a Parameter, or a buffer if it is not trained.
        offset: which D.
        offset_seed: buffer, the seed that D is drawn from; None for offsets that are not drawn.
    """

    sparse: nn.Module
    alpha: Tensor
    offset: Offset
    offset_seed: Tensor | None
    _features: ClassVar[int]  # dimensions of a sample
    _layers: ClassVar[tuple[type[nn.Module], ...]]  # which `from_dense` takes

    def _assemble(self, layer: nn.Module, offset: Offset, alpha: float, train_alpha: bool, seed: int | None) -> None:
        """layer: that of S, of any values. seed: None for one from the global generator."""
        self.offset, self._kind = offset, kind_of(offset)
        weight = _weight(layer)
        if abs(alpha) > torch.finfo(weight.dtype).max:
            raise ConfigError(
                f"alpha={alpha!r:.20} is beyond what {weight.dtype} holds; use a smaller number, e.g. 1.0"
            )
        if seed is None:
            seed = int(torch.randint(2**31, ())) if offset.seeded else 0
        self._initial = float(alpha), seed
        value = torch.empty(1, dtype=weight.dtype, device=weight.device)
        if train_alpha:
            self.alpha = nn.Parameter(value)
        else:
            self.register_buffer("alpha", value)
        drawn = torch.empty((), dtype=torch.int64, device=weight.device) if offset.seeded else None
        self.register_buffer("offset_seed", drawn)
        self.sparse = layer
        self.train(layer.training)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        alpha, seed = self._initial
        _weight(self.sparse).zero_()
        self.alpha.fill_(alpha)
        if self.offset_seed is not None:
            self.offset_seed.fill_(seed)

    @classmethod
    def from_dense(
        cls,
        module: nn.Module,
        offset: Offset = DEFAULT,
        *,
        alpha: float = 1.0,
        train_alpha: bool = True,
        seed: int | None = None,
    ) -> Self:
        """Make the layer that has sizes, bias (the same Parameter) and mode of a dense, sparse or hybrid one.

        S has the support of the module, which is left as it is, and is 0. Other arguments are those of the constructor.

        Raises:
            ConfigError: an argument cannot be, or the module is of another class, or its weight cannot be swapped.
        """
        if type(module) not in cls._layers:
            names = ", ".join(kind.__name__ for kind in cls._layers)
            raise ConfigError(
                f"{cls.__name__} takes the place of one of {names}, of no subclass and of no other module; "
                f"got a {type(module).__name__}"
            )
        check_options(offset, alpha, train_alpha, seed)
        _check_module(module)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._assemble(_with_zeros(module), offset, alpha, train_alpha, seed)
        return layer

    def reset_parameters(self) -> None:
        """Set S to 0, alpha and the seed of D to what they were made with, and draw the bias as torch does."""
        self.sparse.reset_parameters()  # type: ignore[operator]
        self._start()

    # -- the weight --

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of D and S."""
        return getattr(self.sparse, "weight_shape", None) or _weight(self.sparse).shape

    def offset_weight(self) -> Tensor:
        """D in the shape of the weight, float64: of the size of the dense weight."""
        raise NotImplementedError

    def effective_weight(self) -> Tensor:
        """alpha D + S, the weight of the dense layer that computes the same; differentiable."""
        values = self.sparse.to_dense() if isinstance(self.sparse, SparseWeight) else _weight(self.sparse)
        return self.alpha * self.offset_weight().to(self.alpha) + values

    def dense_module(self) -> nn.Module:
        """Return the dense torch layer that computes the same, with `effective_weight` and the same bias Parameter."""
        layer = self.sparse
        made = layer.dense_module() if isinstance(layer, SparseWeight | Hybrid) else _twin(layer)
        weight = self.effective_weight().detach()
        made.weight = nn.Parameter(weight, requires_grad=_weight(layer).requires_grad)
        return made.train(self.training)

    def extra_repr(self) -> str:
        """The offset and how alpha is held, for ``repr``."""
        return f"{self.offset!r}, train_alpha={isinstance(self.alpha, nn.Parameter)}"

    # -- computing --

    def forward(self, x: Tensor) -> Tensor:
        """As the plain layer: of the same shapes, with and without a batch."""
        refuse_tracers(x)
        check_tensor(x)
        if not torch.compiler.is_compiling():
            self._hold()
        if isinstance(self.sparse, SparseWeight) and self.sparse.packs:
            return self.sparse(x, self._packed_offset)
        y = self.sparse(x)
        plain = x.unpacked() if isinstance(x, PackedActivation) else x
        return y + self._plain_offset(plain).to(y.dtype)

    def _packed_offset(self, packed: Tensor) -> Tensor:
        return self._offset_of(packed, packed=True)

    def _plain_offset(self, x: Tensor) -> Tensor:
        if x.ndim > self._features:
            return self._offset_of(x, packed=False)
        return self._offset_of(x.unsqueeze(0), packed=False).squeeze(0)

    def _offset_of(self, x: Tensor, *, packed: bool) -> Tensor:
        return scaled(x, self.alpha, self.offset_seed, self._kind, list(self.weight_shape), self._how(), packed)

    def _how(self) -> list[int]:
        """Of a convolution what `map_of` wants to know."""
        return []

    def _hold(self) -> None:
        """Keep the map of D for as long as the layer is there."""
        if self.alpha.is_meta or type(self.alpha) not in (Tensor, nn.Parameter):  # without numbers, e.g. fake ones
            return
        seed = seed_of(self.offset_seed)
        held = self.__dict__.get(_HELD)
        if held is None or held[1] != seed:
            self.__dict__[_HELD] = map_of(self._kind, self.weight_shape, self._how(), seed), seed

    # -- copies and states --

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _HELD}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._kind = kind_of(self.offset)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Metadata tell which offset the state is of."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["offset"] = repr(self.offset)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *given: Any) -> None:
        saved = metadata.get("offset", repr(self.offset))
        if saved != repr(self.offset):
            name = prefix.rstrip(".") or "at the root"
            given[-1].append(f"offset layer {name}: the state is of {saved}, the layer has {self.offset}")
        super()._load_from_state_dict(state, prefix, metadata, *given)


def check_options(offset: object, alpha: object, train_alpha: object, seed: object) -> None:
    if not isinstance(offset, Offset):
        what = f"the class {offset.__name__}" if isinstance(offset, type) else f"a {type(offset).__name__}"
        raise ConfigError(f"offset is {what}; expected an Offset, e.g. gossamer.offsets.DCT()")
    if "__dataclass_fields__" not in vars(type(offset)):
        raise ConfigError(
            f"{type(offset).__name__} is no dataclass, and layers share what they compute D with where the fields of "
            "their offsets are equal; write @dataclass(frozen=True) above the class, and what it is given as fields"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -math.inf < alpha < math.inf:
        raise ConfigError(f"alpha={alpha!r}: expected a finite number, e.g. 1.0")
    check_flag("train_alpha", train_alpha)
    if seed is not None:
        check_kept_seed(seed)


def _check_module(module: nn.Module) -> None:
    """What a layer of an offset cannot take over."""
    weight, mode = _weight(module), getattr(module, "padding_mode", "zeros")
    if not isinstance(weight, nn.Parameter):
        raise ConfigError(
            "the weight of the module is no Parameter, a hook makes it; remove that first, e.g. weight_norm"
        )
    if not weight.numel():
        raise ConfigError(f"a weight of shape {tuple(weight.shape)} has no entries; leave that layer as it is")
    check_place(weight.device, weight.dtype)
    if mode != "zeros":
        raise ConfigError(
            f"padding_mode={mode!r}: offset layers pad with zeros only; pad the input with torch.nn.functional.pad "
            "before the layer"
        )


def seed_of(seed: Tensor | None) -> int:
    return 0 if seed is None else int(seed)


def _weight(layer: Any) -> Tensor:
    """What is trained of S: all of it, or its values."""
    return layer.values if isinstance(layer, SparseWeight) else layer.weight


def _twin(module: nn.Module) -> Any:
    """The same module with the same Parameters and no hooks; what is set on the one is not on the other."""
    made = type(module).__new__(type(module))
    nn.Module.__init__(made)
    fresh = made.__dict__.keys() - {"_parameters", "_buffers", "training"}
    for name, value in module.__dict__.items():
        if name not in fresh:
            made.__dict__[name] = copy.copy(value) if isinstance(value, dict) else value
    return made


def _with_zeros(module: nn.Module) -> nn.Module:
    """The same module with a weight or values of its own, which are 0, and the same bias."""
    made, old = _twin(module), _weight(module)
    for name, buffer in made._buffers.items():
        made._buffers[name] = None if buffer is None else buffer.clone()
    name = "values" if isinstance(module, SparseWeight) else "weight"
    setattr(made, name, nn.Parameter(torch.zeros_like(old), requires_grad=old.requires_grad))
    return made
