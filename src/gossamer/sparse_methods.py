"""Which methods run on sparse layers, which hold no inactive weight: the reason why one does not, and what to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import distributed
from .errors import ConfigError
from .inactive import Live
from .method import Method
from .topology import (
    Constant,
    DropGrow,
    PruneThen,
    Rule,
    Score,
    Select,
    Static,
    Unstructured,
    mean_gradient,
    own,
    survivors,
)
from .topology.structures import Block

HYBRID = 'hybrid layers, convert(model, method, layout="hybrid")'
MASKED = 'masked weights (leave convert() out, or go back with convert(model, layout="dense"))'
_QUOTAS = (None, own, survivors, mean_gradient)  # the others look at shapes or at every entry


@dataclass(frozen=True)
class Refusal:
    """Why a method runs on no sparse layer; `instead`: parts or methods that do, or ''."""

    why: str
    instead: str = ""

    def told(self, way: str) -> str:
        """In a line; way: of running the method all the same."""
        return f"{self.why}; use {f'{self.instead}, or ' if self.instead else ''}{way}"


def check_method(
    method: Method, name: str, *, compiled: bool, block: int | None = None, shape: Sequence[int] = ()
) -> None:
    """Raise ConfigError if the method cannot run on the sparse layer whose weight is called `name`.

    compiled: whether the model is. block: side of the layer's blocks, if it has any. shape: of the weight.
    """
    uneven = "" if block is None or not any(size % block for size in shape) else f"{block} does not divide {shape}"
    found = refusal(method, blocks=block is not None)
    moves, has = not isinstance(method.rule, Static), method.structure
    if found is None and block is not None and moves and isinstance(has, Block) and has.shape != (block, block):
        own = f"its supports have the structure {method.structure.name}, the layer has blocks of {block}"
        found = Refusal(own, f"structure=Block({block})")
    problem = (
        found.told(HYBRID)
        if found
        else (_of_compiled(method) if compiled else "") or _of_counts(method, compiled, uneven)
    )
    if problem:
        raise ConfigError(f"method {method.name!r} cannot run on {name}, a weight of a sparse layer: {problem}")


def refusal(method: Method, *, blocks: bool = False) -> Refusal | None:
    """Why a method runs on no sparse layer; None if it runs. Hybrid layers and masked weights run every method.

    blocks: layers of blocks are meant.
    """
    return _of_inactive(method) or _of_structure(method, blocks) or _of_rule(method.rule)


def options_of_blocks(what: object, layout: str, block: int | None) -> dict[str, Any]:
    """What the layers of a layout are told of their blocks: nothing, if they have none."""
    if layout != "block":
        if block is not None:
            raise ConfigError(f'block={block} is of layout="block", not of layout="{layout}"; leave one of them out')
        return {}
    own = what.structure.shape if isinstance(what, Method) and isinstance(what.structure, Block) else None
    side = block if own is None else own[0]
    had = "no structure of blocks" if own is None else f"blocks of {own}"
    if side is None or (own is not None and (own != (side, side) or block not in (None, side))):
        raise ConfigError(
            f'layout="block" got block={block!r} and {had}; '
            "pass a method with structure=Block(16), of squares, or supports of whole blocks with block=16"
        )
    return {"block": side}


def _of_inactive(method: Method) -> Refusal | None:
    if isinstance(method.inactive, Live):
        return Refusal("its inactive weights keep a value, and a sparse layer has none")
    if method.inactive.slots == "keep":
        return Refusal("it keeps optimizer slots of inactive weights, and a sparse layer has none", "dsr or rigl")
    if method.action is not None or "sign" in method.needs:
        return Refusal("it keeps a sign of every inactive weight, and a sparse layer has none", "set")
    return None


def _of_structure(method: Method, blocks: bool) -> Refusal | None:
    if isinstance(method.structure, Block if blocks else Unstructured) or isinstance(method.rule, Static):
        return None
    return Refusal(
        f"its supports have the structure {method.structure.name}",
        "structure=Block(16)" if blocks else "an unstructured method",
    )


def _of_rule(rule: Rule) -> Refusal | None:
    if isinstance(rule, Static):
        return None
    if isinstance(rule, Select):
        return _of_score(rule.score, frozenset())
    inner = rule.rule if isinstance(rule, PruneThen) else rule
    if not isinstance(inner, DropGrow):
        return Refusal(f"its rule {type(rule).__name__} may look at every entry", "DropGrow or Select")
    if inner.quota not in _QUOTAS:
        assert inner.quota is not None
        why = f"its quota {inner.quota.name!r} may look at every entry, or at the weight's shape"
        return Refusal(why, "own, survivors or mean_gradient")
    if {"grad", "generator"} <= inner.grow.needs:
        return Refusal(f"its score {inner.grow.name!r} needs gradients and random numbers at once", "one of them")
    return _of_score(inner.drop, frozenset({"grad", "age"})) or _of_score(inner.grow, frozenset({"grad", "generator"}))


def _of_score(score: Score, known: frozenset[str]) -> Refusal | None:
    missing = sorted(score.needs - known)
    return Refusal(f"its score {score.name!r} needs {missing[0]!r} of inactive weights too") if missing else None


def _of_compiled(method: Method) -> str:
    if "grad" not in method.rule.needs:
        return ""
    return f"it looks at the gradient of inactive weights, which compiled layers cannot tell; use set, or {MASKED}"


def _of_counts(method: Method, compiled: bool, uneven: str) -> str:
    """Buckets of DDP and compiled code hold to the sizes that they first met.

    uneven: why there are blocks of several sizes, so that at one count their number is not always the same; or ''.
    """
    moves = (method.scope == "global" or uneven != "") and not isinstance(method.rule, Static)
    if not moves and isinstance(method.density, float | int | Constant):
        return ""
    culprit = "DistributedDataParallel" if distributed.active() else "torch.compile" if compiled else ""
    why = f" ({uneven}, so edges have smaller blocks)" if uneven else ""
    told = f"it changes the number of values of a layer{why}, which {culprit} does not allow; use {MASKED}"
    return told if culprit else ""
