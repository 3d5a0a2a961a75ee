"""Products with a 2:4 matrix, of which at most two of every four consecutive entries of a row are not zero.

`product` is the torch operator ``gossamer::semi_structured``: on CUDA devices cuSPARSELt, on the CPU an emulation that
packs and computes from what was packed. A matrix is packed once for all products until it changes.

Source: Mishra et al. 2021 (2104.08378).
"""

from __future__ import annotations

from .layout import MULTIPLE, fits, is_valid, pack, unpack
from .operator import pays, product
from .packs import forget, serial_of

__all__ = ["MULTIPLE", "fits", "forget", "is_valid", "pack", "pays", "product", "serial_of", "unpack"]
