"""What structures and layers 2:4 products are for."""

from __future__ import annotations

from torch import nn

from ..kernels import semi_structured
from ..topology import NM


def kept(structure: object) -> tuple[bool, bool]:
    """Whether every support of a structure is 2:4 along inputs, and whether along outputs too."""
    if not isinstance(structure, NM) or structure.axis != "inputs" or 4 % structure.m or 2 * structure.n > structure.m:
        return False, False
    return True, structure.transposable


def unfit(module: nn.Module) -> str:
    """Why the weight of a dense layer cannot be packed, or ''."""
    if isinstance(module, nn.Conv2d) and not is_pointwise(module):
        return "only 1x1 convolutions without groups and padding are matrix products; this one stays masked"
    rows, columns = module.get_parameter("weight").shape[:2]
    if not semi_structured.fits(rows, columns):
        return f"{rows} x {columns}: packing needs multiples of {semi_structured.MULTIPLE}"
    return ""


def is_pointwise(module: nn.Conv2d) -> bool:
    """Whether a convolution looks at one position at a time, and at all channels there."""
    padded = module.padding not in ("valid", "same") and any(module.padding)
    return module.kernel_size == (1, 1) and module.groups == 1 and not padded
