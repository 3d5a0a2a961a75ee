"""Which methods run on sparse layers, which hold no inactive weight: the reason why one does not, and what to use."""

from __future__ import annotations

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

MASKED = 'convert(model, method, layout="dense") trains it masked'
_QUOTAS = (None, own, survivors, mean_gradient)  # the others look at shapes or at every entry


def check_method(method: Method, name: str, *, compiled: bool) -> None:
    """Raise ConfigError if the method cannot run on the sparse layer whose weight is called `name`.

    compiled: whether the model is.
    """
    problem = refusal(method) or (_of_compiled(method) if compiled else None) or _of_counts(method, compiled)
    if problem:
        raise ConfigError(f"method {method.name!r} cannot run on {name}, a weight of a sparse layer: {problem}")


def refusal(method: Method) -> str | None:
    """Why a method runs on no sparse layer and what to use instead; None if it runs."""
    return _of_inactive(method) or _of_structure(method) or _of_rule(method.rule) or None


def _of_inactive(method: Method) -> str:
    if isinstance(method.inactive, Live):
        return (
            "its inactive weights keep a value, and a sparse layer has none; use hybrid layers, "
            'convert(model, method, layout="hybrid")'
        )
    if method.inactive.slots == "keep":
        return (
            f"it keeps optimizer slots of inactive weights, and a sparse layer has none; use dsr or rigl, or {MASKED}"
        )
    if method.action is not None or "sign" in method.needs:
        return f"it keeps a sign of every inactive weight, and a sparse layer has none; use set, or {MASKED}"
    return ""


def _of_structure(method: Method) -> str:
    if isinstance(method.structure, Unstructured):
        return ""
    return f"its supports have the structure {method.structure.name}; use an unstructured method, or {MASKED}"


def _of_rule(rule: Rule) -> str:
    if isinstance(rule, Static):
        return ""
    if isinstance(rule, Select):
        return _of_score(rule.score, frozenset())
    inner = rule.rule if isinstance(rule, PruneThen) else rule
    if not isinstance(inner, DropGrow):
        return f"its rule {type(rule).__name__} may look at every entry; use DropGrow or Select, or {MASKED}"
    if inner.quota not in _QUOTAS:
        assert inner.quota is not None
        return (
            f"its quota {inner.quota.name!r} may look at every entry, or at the weight's shape; use own, survivors or "
            f"mean_gradient, or {MASKED}"
        )
    if {"grad", "generator"} <= inner.grow.needs:
        return f"its score {inner.grow.name!r} needs gradients and random numbers at once; use one of them, or {MASKED}"
    return _of_score(inner.drop, frozenset({"grad", "age"})) or _of_score(inner.grow, frozenset({"grad", "generator"}))


def _of_score(score: Score, known: frozenset[str]) -> str:
    missing = sorted(score.needs - known)
    return f"its score {score.name!r} needs {missing[0]!r} of inactive weights too; {MASKED}" if missing else ""


def _of_compiled(method: Method) -> str | None:
    if "grad" not in method.rule.needs:
        return None
    return f"it looks at the gradient of inactive weights, which compiled layers cannot tell; use set, or {MASKED}"


def _of_counts(method: Method, compiled: bool) -> str:
    """Buckets of DDP and compiled code hold to the sizes that they first met."""
    moves = method.scope == "global" and not isinstance(method.rule, Static)
    if not moves and isinstance(method.density, float | int | Constant):
        return ""
    if distributed.active():
        return f"it changes the number of values of a layer, which DistributedDataParallel does not allow; {MASKED}"
    if compiled:
        return f"it changes the number of values of a layer, which torch.compile does not allow; {MASKED}"
    return ""
