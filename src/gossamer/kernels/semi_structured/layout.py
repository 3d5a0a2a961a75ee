"""The packed form of a 2:4 matrix in plain torch: kept values, and where in its group of four each of them stood.

Of a matrix (rows, columns) there are

- values (rows, columns / 2): two of each group of four consecutive entries of a row, in their order. Where less than
  two are not zero, the zeros that come first fill up.
- places (rows, columns / 8), bytes: the positions 0..3 of two groups' values, two bits each, the first value lowest.

This is 1.125 bytes per weight of a 16-bit type, as in cuSPARSELt, whose own order of the bits is another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ConfigError

MULTIPLE = 16  # rows and columns that the hardware asks of 16-bit types


def fits(rows: int, columns: int) -> bool:
    """Whether a matrix is of a size that can be packed, as it is and transposed."""
    return rows % MULTIPLE == 0 and columns % MULTIPLE == 0 and rows > 0 and columns > 0


def is_valid(matrix: Tensor, axis: int = 1) -> bool:
    """Whether at most two of every four consecutive entries along an axis of a matrix are not zero.

    >>> is_valid(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
    True
    >>> is_valid(torch.tensor([[1.0, 0.0, 2.0, 3.0]]))
    False
    """
    return matrix.shape[axis] % 4 == 0 and not bool(overfull(matrix if axis == 1 else matrix.t()))


def overfull(matrix: Tensor) -> Tensor:
    """A bool without dimensions, on the device of the matrix: whether a group along the columns has more than two."""
    return (_groups(matrix).ne(0).sum(-1, dtype=torch.uint8) > 2).any()


def _groups(matrix: Tensor) -> Tensor:
    return matrix.reshape(matrix.shape[0], -1, 4)


def pack(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Values and places of a matrix.

    Raises:
        ConfigError: columns are no multiple of 16, or a group has more than two entries that are not zero.

    >>> values, places = pack(torch.tensor([[0.0, 5.0, 0.0, 7.0, 1.0, 0.0, 0.0, 0.0] * 2]))
    >>> values, [f"{place:08b}" for place in places[0].tolist()]
    (tensor([[5., 7., 1., 0., 5., 7., 1., 0.]]), ['01001101', '01001101'])
    """
    if matrix.ndim != 2 or matrix.shape[1] % MULTIPLE:
        raise ConfigError(
            f"a matrix of shape {tuple(matrix.shape)} cannot be packed; its columns must divide by {MULTIPLE}"
        )
    groups = _groups(matrix)
    kept = groups != 0
    count = kept.sum(-1, dtype=torch.uint8)
    if bool((count > 2).any()):
        raise ConfigError(too_many(matrix.shape, int((count > 2).sum()), count.numel()))
    places = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(-1).values
    values = groups.gather(-1, places).flatten(1)
    codes = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    return values, codes[:, 0::2] | codes[:, 1::2] << 4


def unpack(values: Tensor, places: Tensor) -> Tensor:
    """The matrix."""
    codes = torch.stack((places & 15, places >> 4), -1).flatten(1)
    at = torch.stack((codes & 3, codes >> 2), -1).long()
    groups = values.new_zeros(*codes.shape, 4).scatter_(-1, at, values.view(at.shape))
    return groups.flatten(1)


def too_many(shape: Sequence[int], wrong: int, groups: int) -> str:
    """What an error says of a matrix that is not 2:4."""
    return (
        f"the weight, {' x '.join(map(str, shape))} here, is not 2:4: {wrong:,} of {groups:,} groups of four have more "
        "than two entries that are not zero, which packing would lose; sparsify() with the structure NM(2, 4), or call "
        "refresh() on the layer, which then computes densely"
    )
