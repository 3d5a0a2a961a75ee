"""Random sparse matrices, and the same computation along every path that this machine and this build have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import ConfigError
from gossamer.kernels import sparse
from gossamer.kernels.cpu import library

Pair = tuple[int, int]


@contextmanager
def forced(path: str) -> Iterator[None]:
    """Run the kernels of one path, as GOSSAMER_CPU does for a whole process."""
    before = os.environ.get(library.VARIABLE)
    os.environ[library.VARIABLE] = path
    library.native.cache_clear()
    try:
        library.native()
        yield
    finally:
        os.environ.pop(library.VARIABLE)
        if before is not None:
            os.environ[library.VARIABLE] = before
        library.native.cache_clear()


def available() -> list[str]:
    found = []
    for path in library.CHOICES:
        try:
            with forced(path):
                found.append(path)
        except ConfigError:
            continue
    return found


PATHS = available()
NATIVE = [path for path in PATHS if path != "reference"]


def some_positions(rows: int, columns: int, density: float, seed: int) -> Tensor:
    """Ascending flat positions; at .3 and below whole rows and columns stay empty now and then."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, columns, generator=generator) < density
    if density < 0.5:
        chosen &= torch.rand(rows, 1, generator=generator) < 0.8
        chosen &= torch.rand(1, columns, generator=generator) < 0.8
    return chosen.flatten().nonzero().flatten()


def index_bytes(index: Tensor, shape: tuple[int, int], count: int) -> int:
    """What an index of so many entries takes up in blocks of the same size."""
    native = library.native()
    assert native is not None
    return int(native.index_bytes(*shape, count, *sparse.block_of(index)))


@st.composite
def geometries(draw: st.DrawFn, groups: int = 3, extra: Pair = (9, 9)) -> dict[str, Any]:
    """Kernel, image size, stride, padding, dilation and groups of a convolution that has an output.

    groups: the most. extra: by how much the image may be larger than it must.
    """

    def pair(low: int, high: int) -> Pair:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 4), pair(0, 3), pair(1, 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(low + draw(st.integers(0, more)) for low, more in zip(least, extra, strict=True))
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": draw(st.integers(1, groups))}
    return {"kernel": kernel, "size": size, **how}


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest number wanted."""
    if not wanted.numel():
        return 0.0
    difference, largest = (found.double() - wanted).detach().abs().max(), wanted.detach().abs().max()
    return float(difference / largest.clamp(min=1e-30))


def products(
    x: Tensor, dense: Tensor, bias: Tensor | None, slope: Tensor, flat: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Output of a sparse layer; the gradients of its input, of its values (in the order of ``flat``) and its bias."""
    index, order = sparse.build(flat, (dense.shape[0], dense.shape[1]))
    values = dense.flatten()[flat][order].to(dtype).requires_grad_()
    given = x.to(dtype).requires_grad_()
    shift = None if bias is None else bias.to(dtype).requires_grad_()
    packed = sparse.linear(sparse.pack(given), values, index, shift, dense.shape[0])
    out = sparse.unpack(packed, len(x))
    out.backward(slope.to(dtype))
    ordered = torch.empty_like(values)
    ordered[order] = values.grad
    parts = [out.detach(), given.grad, ordered, *([] if shift is None else [shift.grad])]
    return tuple(part for part in parts if part is not None)


def dense_products(x: Tensor, dense: Tensor, bias: Tensor | None, slope: Tensor, flat: Tensor) -> tuple[Tensor, ...]:
    """The same in float64 from a dense weight that is zero off the support."""
    masked = torch.zeros_like(dense).flatten()
    masked[flat] = dense.flatten()[flat]
    weight = masked.view_as(dense)
    out = x @ weight.T if bias is None else x @ weight.T + bias
    gradients = (slope @ weight, (slope.T @ x).flatten()[flat])
    return (out, *gradients) if bias is None else (out, *gradients, slope.sum(0))
