"""Whether a transform is worth it: what is faster, it or the product with its matrix."""

from __future__ import annotations

from torch import Tensor

from ..cpu.library import native
from .fast import BlockCosine, Cosine, Hadamard
from .maps import LinearMap, Product
from .tables import native_factors

# The shorter side of the matrix from which on the transform is the faster one: the product takes that many
# multiplications for every entry of a vector, the transform about as many whatever the shape. Both measured on the two
# cores of an AMD EPYC with AVX-512, of 16 to 1024 rows and of packed and plain images; where it depended on that, in
# between. By the native transform's length, and for the plain-torch reference.
EVEN, ODD, LARGE_PRIME, REFERENCE = 48, 64, 160, 384


def faster(transform: Cosine | BlockCosine | Hadamard) -> LinearMap:
    """The transform, or its matrix as a `Product` where that is expected to be faster."""
    if native() is None:
        least = REFERENCE
    elif isinstance(transform, Hadamard):
        least = EVEN
    elif native_factors(transform.length) is None:
        least = LARGE_PRIME
    else:
        least = ODD if transform.length % 2 else EVEN
    return transform if min(transform.rows, transform.columns) >= least else Product(transform.matrix())


def cosine_map(rows: int, columns: int, signs: Tensor | None = None) -> LinearMap:
    """`Cosine` in the faster of the two forms.

    Raises:
        ConfigError: as `Cosine`.
    """
    return faster(Cosine(rows, columns, signs))
