"""What sparse layers are made of, checked: every error is raised before anything changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels import sparse
from ..topology import Support, check_density


def chosen(shape: torch.Size, density: float | None, support: Support | None) -> Tensor | int:
    """The active flat positions, or how many are to be drawn."""
    if support is None:
        if density is None:
            raise ConfigError("a sparse layer needs a density, such as 0.1, or support=, a Support of its weight")
        return round(check_density(density) * math.prod(shape))
    check_shape(support, shape)
    if density is not None and round(check_density(density) * support.numel) != support.count:
        raise ConfigError(f"density={density} and a support of density {support.density:.4g}; pass density=None")
    return support.index.cpu()


def check_shape(support: Support, shape: torch.Size) -> None:
    if not isinstance(support, Support):
        raise ConfigError(f"support is a {type(support).__name__}; expected a Support, e.g. Support.from_mask(mask)")
    if support.shape != shape:
        raise ConfigError(f"the support has shape {tuple(support.shape)}, the weight has {tuple(shape)}")


def check_device(values: Tensor) -> None:
    if values.device.type not in ("cpu", "meta"):
        raise ConfigError(f"a sparse layer cannot be on {values.device}: its kernels are for the CPU; leave it there")
    if values.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ConfigError(f"a sparse layer cannot hold {values.dtype} values; use torch.float32")


def check_sizes(**sizes: object) -> None:
    """Raise ConfigError unless every size is a whole number from 1 on, which a tensor can have."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral) or int(size) < 1:
            raise ConfigError(f"{name}={size!r}: expected a whole number of 1 or more")
        if int(size) >= 2**63:
            raise ConfigError(f"{name}={size}: expected a whole number below 2**63")


def check_tensor(x: object) -> None:
    """An input must be an ordinary tensor, whose memory kernels can read."""
    if not isinstance(x, Tensor):
        raise ConfigError(f"the input is a {type(x).__name__}; expected a tensor, e.g. torch.as_tensor(x)")
    if x.layout != torch.strided or x.is_nested:
        kind = "nested tensor" if x.is_nested else f"{x.layout} tensor"
        raise ConfigError(f"the input is a {kind}; sparse layers take dense ones, e.g. x.to_dense()")


def check_input(x: Tensor, values: Tensor, fits: bool, wanted: str) -> None:
    """An input must fit, and the values be where kernels for packed activations are."""
    check_device(values)
    check_fit(x, values, fits, wanted)


def check_fit(x: Tensor, values: Tensor, fits: bool, wanted: str) -> None:
    """An input must be of the wanted shape, and on the device and of the dtype of the values (autocast: floating)."""
    if not fits:
        raise ConfigError(f"a sparse layer got an input of shape {tuple(x.shape)}; expected {wanted}")
    if x.device != values.device:
        raise ConfigError(f"the input is on {x.device}, the layer on {values.device}; move one of them")
    kind = "cpu" if values.is_meta else values.device.type
    if x.dtype != values.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(kind)):
        raise ConfigError(
            f"the input is {x.dtype}, the values of the layer are {values.dtype}; convert one of them, e.g. with "
            "x.to(layer.values.dtype)"
        )


def unindexable(weight_shape: Sequence[int]) -> str:
    """Why no index can be made for a weight, wherever its values lie, or ''."""
    try:
        sparse.index_bytes((weight_shape[0], math.prod(weight_shape[1:])), 0, math.prod(weight_shape[2:]))
    except ConfigError as error:
        return str(error)
    return ""


def make_index(flat: Tensor, matrix: tuple[int, int], taps: int) -> Tensor:
    """The index of some positions; an error if there is no memory for it, as of huge and nearly empty weights."""
    try:
        return sparse.build(flat, matrix, taps)[0]
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        size = sparse.index_bytes(matrix, len(flat), taps)
        raise ConfigError(
            f"a weight of {matrix[0]} x {matrix[1]} with {len(flat)} values needs an index of {size / 2**30:.3g} GiB, "
            "for which there is no memory; use a smaller layer"
        ) from error


def coordinates(indices: Tensor, values: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Flat positions in ascending order and their values; (n,) flat or (dimensions, n) indices in any order."""
    flat, place = _flat_positions(indices, shape).sort()
    if values.shape != flat.shape or not values.is_floating_point() or values.device.type != "cpu":
        raise ConfigError(
            f"values are {values.dtype} of shape {tuple(values.shape)} on {values.device}; expected ({len(flat)},) "
            "floating point numbers on the CPU"
        )
    repeated = flat[1:][flat[1:] == flat[:-1]]
    if len(repeated):
        raise ConfigError(
            f"position {int(repeated[0])} occurs more than once in indices; add up such values with coalesce()"
        )
    return flat, values[place]


def _flat_positions(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Flat positions of (n,) flat or (dimensions, n) indices, in the given order."""
    if (
        indices.is_floating_point()
        or indices.is_complex()
        or indices.dtype == torch.bool
        or indices.device.type != "cpu"
    ):
        raise ConfigError(f"indices are {indices.dtype} on {indices.device}; expected integers on the CPU")
    if indices.ndim == 1:
        indices, sizes = indices[None], [math.prod(shape)]
    else:
        sizes = list(shape)
    if indices.ndim != 2 or len(indices) != len(sizes):
        raise ConfigError(
            f"indices have shape {tuple(indices.shape)}; expected (n,) flat positions or ({len(shape)}, n) coordinates"
        )
    flat = torch.zeros(indices.shape[1], dtype=torch.int64)
    for row, size in zip(indices.long(), sizes, strict=True):
        if row.numel() and (int(row.min()) < 0 or int(row.max()) >= size):
            raise ConfigError(f"index {int(row.min())}..{int(row.max())} is out of range 0..{size - 1}")
        flat = flat * size + row
    return flat
