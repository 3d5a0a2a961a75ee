"""Which weights layers for 2:4 weights are for, as `conversion` asks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .analysis.sanity import Targets
from .errors import ConfigError
from .kernels import semi_structured
from .method import Method
from .nn._two_four import kept
from .targets import choose
from .topology import Support


def check(what: object) -> None:
    """Raise ConfigError for a method or given supports that make other weights."""
    if isinstance(what, Method) and not kept(what.structure)[0]:
        raise ConfigError(
            f"method {what.name!r} makes {what.structure.name} weights, semi-structured layers are for 2:4 along "
            "inputs; use dataclasses.replace(method, structure=NM(2, 4)) with density 0.5 and allocation 'uniform'"
        )
    for name, support in what.items() if isinstance(what, Mapping) else ():
        mask = support.mask if isinstance(support, Support) else support
        if isinstance(mask, Tensor) and mask.ndim > 1 and not _is_valid(mask):
            raise ConfigError(
                f"the given support of {name} is not 2:4 along its inputs: more than two of four consecutive ones are "
                "active; choose it with NM(2, 4).select, or leave the weight out"
            )


def present(model: nn.Module, targets: Targets) -> dict[str, Support]:
    """The supports of the targeted weights that are 2:4 already.

    Raises:
        ConfigError: there is none.
    """
    rows = [row for row in choose(model, targets) if row.sparse]
    found = {row.name: Support.from_mask(row.parameter.detach() != 0) for row in rows if _is_valid(row.parameter)}
    if not found:
        raise ConfigError(
            f"none of the {len(rows)} targeted weights is 2:4 yet; pass a method with the structure NM(2, 4), or a "
            "model that was trained with one"
        )
    return found


def _is_valid(weight: Tensor) -> bool:
    """Along inputs, at each kernel position."""
    matrix = weight.detach().reshape(*weight.shape[:2], -1).movedim(1, -1).flatten(0, -2)
    return semi_structured.is_valid(matrix)
