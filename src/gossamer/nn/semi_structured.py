"""Layers whose 2:4 weight is multiplied by sparse tensor cores, and the same on the CPU in emulation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from .. import distributed
from ..errors import ConfigError, check_choice
from ..kernels import semi_structured
from ._forms import check_module, recorded, same_as
from ._two_four import is_pointwise
from .packed import PackedActivation

Execution = Literal["auto", "dense", "packed"]
_EXECUTIONS = ("auto", "dense", "packed")
_OWN = ("_execution", "_rows", "_columns", "_declared", "_seen")


class SemiStructured(nn.Module):
    """What both layers share: whether the weight is 2:4, and when to make use of it.

    A product with packed values is right only while the weight is 2:4. A layer without a controller looks at the weight
    whenever storage or version of it changed (on a GPU it waits for the device then), and computes densely while it
    is not. The controller of a method vouches for the Parameter of its layer, not for copies of it, and nothing waits.
    Packing checks once more: on the CPU a weight that is not 2:4 is an error then, on a GPU it makes all outputs NaN,
    and `check` says which layer it was.
    """

    weight: Tensor
    bias: Any  # Tensor | None
    _dense: ClassVar[type[nn.Module]]
    _axis: ClassVar[int]  # of inputs and outputs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    def _begin(self) -> None:
        self._execution: Execution = "auto"
        self._rows = self._columns = False
        self._declared: tuple[bool, bool] | None = None  # what a controller keeps of rows and columns
        self._seen: int | None = None  # serial of the weight as it was last looked at

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy: the controller keeps the original, and serials are of one process."""
        super().__setstate__({**state, "_declared": None, "_seen": None})

    @classmethod
    def from_dense(cls, module: nn.Module, support: Any = None) -> Self:
        """The same layer with the same Parameters, hooks and mode; the weight is left as it is.

        support: not looked at; layers of other kinds want one.

        Raises:
            ConfigError: the module is of another class.
        """
        check_module(cls, module, cls._dense)
        layer = same_as(module, cls)
        layer._begin()
        layer.refresh()
        return layer

    def dense_module(self) -> nn.Module:
        """Return the plain torch layer with the same Parameters, hooks and mode.

        Raises:
            ConfigError: the layer is parametrized, which a plain one is not.
        """
        if parametrize.is_parametrized(self):
            raise ConfigError(
                f"{type(self).__name__} computes its parameters from others, which a plain layer does not; call "
                "torch.nn.utils.parametrize.remove_parametrizations(layer, name) first"
            )
        return same_as(self, self._dense, without=_OWN)

    @property
    def execution(self) -> Execution:
        """How products are computed.

        "auto": packed on a GPU where that was measured to be faster, else dense. "dense". "packed": packed wherever the
        weight is 2:4 and of the right size and type; on the CPU that is an emulation, for tests.
        """
        return self._execution

    @execution.setter
    def execution(self, value: Execution) -> None:
        check_choice("execution", value, _EXECUTIONS)
        self._execution = value

    # -- the pattern --

    @property
    def is_semi_structured(self) -> bool:
        """Whether the weight was 2:4 along its inputs when it was last looked at."""
        return self._rows

    @property
    def is_transposable(self) -> bool:
        """Whether it was 2:4 along its outputs too, so that the gradient of the input is a packed product."""
        return self._rows and self._columns

    def refresh(self) -> None:
        """Look at the weight, and forget what was packed.

        Under a controller a weight passes only for what all its supports are, whatever more it may be by chance. For
        changes that leave no trace: through ``weight.data``, by a collective, by a replayed CUDA graph; and before
        compiled code runs on a weight that changed, for it takes what was last seen.
        """
        weight = self.weight
        self._rows, self._columns = self._declared or (False, False)  # where nothing can be looked at
        self._seen = None
        sharded, faked = distributed.is_sharded(weight), detect_fake_mode(weight) is not None
        if weight.is_meta or sharded or faked or not self._takes_size():
            return
        semi_structured.forget(weight)
        matrix = weight.detach().flatten(1)
        rows, columns = self._declared or (True, True)
        self._rows = rows and semi_structured.is_valid(matrix)
        self._columns = self._rows and columns and semi_structured.is_valid(matrix, axis=0)
        self._seen = semi_structured.serial_of(weight)

    def check(self) -> None:
        """Raise ConfigError if the weight is not 2:4 now; waits for the device."""
        self.refresh()
        if not self._rows:
            raise ConfigError(
                f"the weight of {self} is not 2:4: in a group of four more than two entries are not zero, or its sizes "
                f"are no multiples of {semi_structured.MULTIPLE}; sparsify() with the structure NM(2, 4)"
            )

    def declare(self, mask: Tensor | None, *, both_ways: bool = True) -> None:
        """What a controller says: it keeps the weight zero off this mask, or (None) does so no longer.

        mask: bool, of the shape of the whole weight. Waits for the device, so controllers say it when they start and
        not when they rewire: a structure makes supports of one kind. both_ways: whether those that follow are 2:4 along
        outputs too, if this one is: one along inputs alone may be so by chance.
        """
        self._declared = self._seen = None
        self._rows = self._columns = False
        if mask is None:
            return
        if self._takes_size():
            self._rows = semi_structured.is_valid(mask.flatten(1))
            self._columns = self._rows and both_ways and semi_structured.is_valid(mask.flatten(1), axis=0)
        self._declared = self._rows, self._columns

    def __setattr__(self, name: str, value: Any) -> None:
        """Of another weight nothing is known; FSDP2 puts one in place whenever it gathered it, at one address."""
        if name == "weight":
            self.__dict__["_seen"] = None
            for each in (self.__dict__.get("_parameters", {}).get(name), value):
                if isinstance(each, Tensor) and not (each.is_meta or distributed.is_sharded(each)):
                    semi_structured.forget(each)
        super().__setattr__(name, value)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.refresh()

    # -- computing --

    def forward(self, x: Tensor) -> Tensor:
        """As the dense layer."""
        if isinstance(x, PackedActivation):
            x = x.unpacked()
        dtype = self._dtype(x)
        if dtype is None or not self._is_packed(x):
            return super().forward(x)
        always, read = self._execution == "packed", self._read(x)
        samples = read.numel() // read.shape[self._axis]
        if not (always or torch.compiler.is_compiling() or semi_structured.pays(samples, dtype, self.weight)):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return semi_structured.product(read.to(dtype), self.weight, bias, self._axis, False, self._columns, always)

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        """In which the product is computed; None for what is left to the dense layer."""
        if recorded(x) or x.is_nested or x.layout != torch.strided:
            return None
        device = x.device.type
        if self._execution == "dense" or device not in ("cuda", "cpu") or x.device != self.weight.device:
            return None
        if device == "cpu" and self._execution == "auto":
            return None
        if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        elif x.dtype == self.weight.dtype:
            dtype = x.dtype
        else:
            return None
        known = dtype.is_floating_point if device == "cpu" else dtype in (torch.float16, torch.bfloat16)
        return dtype if known else None

    def _is_packed(self, x: Tensor) -> bool:
        """Whether the weight is 2:4, and this a case for the operator."""
        eager = not torch.compiler.is_compiling()
        if eager and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0):
            return False
        if distributed.is_sharded(self.weight) or not self._takes(x):
            return False
        if eager and not self._is_known():
            self.refresh()
        return self._rows

    def _is_known(self) -> bool:
        """Whether the weight need not be looked at: its controller vouches for it, or nothing changed it since."""
        if self._declared == (self._rows, self._columns) and isinstance(self.weight, nn.Parameter):
            return True
        return self._seen is not None and self._seen == semi_structured.serial_of(self.weight)

    def _takes_size(self) -> bool:
        """Whether a weight of this size can be packed."""
        return semi_structured.fits(*self.weight.shape[:2])

    def _takes(self, x: Tensor) -> bool:
        raise NotImplementedError

    def _read(self, x: Tensor) -> Tensor:
        """What of an input is read."""
        return x

    def extra_repr(self) -> str:
        """As the dense layer's, and the pattern."""
        pattern = "transposable 2:4" if self.is_transposable else "2:4" if self._rows else "not 2:4"
        return f"{super().extra_repr()}, {pattern}, execution={self._execution!r}"


class SemiStructuredLinear(SemiStructured, nn.Linear):
    """`nn.Linear` with a 2:4 weight: products with it, and with its transpose if that is 2:4 too, run on packed values.

    The same arguments, Parameters, ``state_dict`` and results (to rounding) as `nn.Linear`, of which it is a subclass.
    The weight is an ordinary dense one with zeros; a method with the structure ``NM(2, 4)`` puts them there. It is
    packed once until it changes. The gradient of the weight is dense, at zeros too: methods need it, and the controller
    gates it where they do not.

    Packed products need sizes that are multiples of 16, and on a GPU float16 or bfloat16 inputs (or autocast to these)
    and cuSPARSELt. Everything else is computed as `nn.Linear` does: weights that are not 2:4, other types and devices,
    shapes for which packing was not measured to be faster, torch.func transforms, forward-mode derivatives, tracing.

    Deviation: zeros of the weight are not multiplied on a GPU, so NaN or infinity in an input does not reach outputs
    through them.

    Source: Mishra et al. 2021 (2104.08378); dense weight gradients: Advances in Sparse Neural Model Training,
    algorithm 1. The GPU path was not yet run on hardware.

    >>> layer = SemiStructuredLinear(32, 16)
    >>> layer.weight = nn.Parameter(layer.weight * torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(8))
    >>> layer(torch.zeros(2, 32)).shape, layer.check()
    (torch.Size([2, 16]), None)
    >>> layer
    SemiStructuredLinear(in_features=32, out_features=16, bias=True, 2:4, execution='auto')
    """

    _dense, _axis = nn.Linear, -1

    def _takes(self, x: Tensor) -> bool:
        return x.ndim >= 1 and x.shape[-1] == self.in_features


class SemiStructuredConv2d(SemiStructured, nn.Conv2d):
    """`nn.Conv2d` of kernel size 1, which is a linear layer at each position, as `SemiStructuredLinear` is `nn.Linear`.

    Packed products need inputs in ``torch.channels_last``, which are not copied then, and give such outputs. Other
    kernel sizes, groups and padding are computed as `nn.Conv2d` does: no library has 2:4 convolutions.

    >>> SemiStructuredConv2d(16, 32, 1)(torch.zeros(2, 16, 5, 5)).shape
    torch.Size([2, 32, 5, 5])
    """

    _dense, _axis = nn.Conv2d, 1

    def _takes_size(self) -> bool:
        return is_pointwise(self) and super()._takes_size()

    def _takes(self, x: Tensor) -> bool:
        fits = x.ndim == 4 and x.shape[1] == self.in_channels
        return fits and x.is_contiguous(memory_format=torch.channels_last)

    def _read(self, x: Tensor) -> Tensor:
        down, right = self.stride
        return x if down == right == 1 else x[:, :, ::down, ::right]
