"""Which weights become sparse, and why the others do not."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .errors import TargetError, did_you_mean
from .sparse_layer import SparseLayer, is_sparse_layer, layer_of

PRESETS = {
    "default": "weights of linear, convolution, attention and recurrent layers, minus vocabulary heads",
    "advances": "default, minus convolutions with input channels not a multiple of 16, and task heads of text models",
    "dctps": "every convolution and linear weight",
}
TASK_HEADS = frozenset({"classifier", "score", "qa_outputs", "cls", "head", "lm_head", "out_proj_head"})
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")

LINEAR = (nn.Linear,)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Candidate:
    """One parameter of the model, whether it is to be sparse, and why.

    The 1-D `values` of a sparse layer at path `fc` stand for its weight: their name is `fc.weight`.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    sparse: bool
    reason: str

    @property
    def layer(self) -> SparseLayer | None:
        """The sparse layer whose values the parameter holds, None for other parameters."""
        return layer_of(self.module, self.parameter)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight, which for the values of a sparse layer is not that of the parameter."""
        return self.parameter.shape if self.layer is None else self.layer.weight_shape


def canonical(name: str) -> str:
    """Parameter name without what DDP, torch.compile and FSDP put before it.

    >>> canonical("module._orig_mod.fc.weight")
    'fc.weight'
    """
    for wrapper in WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name if not name.startswith(WRAPPERS) else canonical(name)


def choose(
    model: nn.Module,
    targets: str | type[nn.Module] | Sequence[str | type[nn.Module]] | None,
    *,
    layers: bool = False,
) -> list[Candidate]:
    """Classify every parameter of `model`.

    targets: None or a preset name (see `PRESETS`); or name globs and module types, any of which may match; a glob
        that starts with "!" takes away: from the preset that the list begins with, or from the default preset if
        nothing else is given. Explicit targets
        include what presets leave out, but never 1-D parameters (biases, norms). The weight `fc.sparse.weight` of an
        offset layer at `fc` matches as `fc.weight` too.
    layers: whether the caller can train sparse layers, whose dense weight does not exist; they match by the name of
        that weight. Otherwise they are left as they are.

    Raises:
        TargetError: nothing matches, or what matches cannot be sparse.
    """
    check_initialised(model)
    if next(model.parameters(), None) is None:
        raise TargetError(f"the model, a {type(model).__name__}, has no parameters that could be sparse")
    preset, patterns = _parse(model, targets)
    rows = [_classify(model, p, preset, patterns, layers) for p in _parameters(model)]
    if not any(row.sparse for row in rows):
        wanted = "the default targets" if targets is None else f"targets={targets!r}"
        matched = [f"{row.name}: {row.reason}" for row in rows if row.reason.startswith("named in targets, but")]
        why = "; ".join(matched[:3]) or f"parameters are {', '.join(row.name for row in rows[:8]) or 'none'}"
        raise TargetError(f"{wanted} match no weight that can be sparse ({why}); name weights by glob, e.g. '*.weight'")
    return rows


def check_initialised(model: nn.Module) -> None:
    """Raise TargetError while lazy layers do not know their sizes."""
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise TargetError(f"{', '.join(lazy[:3])}: not initialised yet, of no shape; run the model on a batch first")


def _parse(model: nn.Module, targets: object) -> tuple[str, list[str | type[nn.Module]]]:
    if targets is None:
        return "default", []
    if isinstance(targets, str) and targets in PRESETS:
        return targets, []
    if not isinstance(targets, str | type | Sequence):
        raise TargetError(f"targets={targets!r}: expected None, a preset, name globs or nn.Module types")
    items = [targets] if isinstance(targets, str | type) else list(targets)
    if not items:
        raise TargetError("targets is empty; leave it out for the default, or give globs or module types")
    first = items[0]
    preset = items.pop(0) if isinstance(first, str) and first in PRESETS else ""
    for item in items:
        if isinstance(item, type) and issubclass(item, nn.Module):
            continue
        if not isinstance(item, str):
            raise TargetError(f"targets holds {item!r}; expected name globs or nn.Module types")
        known = list(_parameters(model))
        if not any(p.matches(item.removeprefix("!")) for p in known):
            hint = did_you_mean(item.removeprefix("!"), [*PRESETS, *(p.name for p in known)])
            raise TargetError(f"target {item!r} matches no parameter and is no preset{hint}")
    only_less = all(isinstance(i, str) and i.startswith("!") for i in items)
    return str(preset or ("default" if only_less else "none")), items


@dataclass(frozen=True)
class _Parameter:
    name: str
    module: nn.Module
    attribute: str
    value: nn.Parameter
    twins: tuple[str, ...]  # other names of the same parameter
    plain: str  # the name, of the weight of an offset layer that of the layer's own

    def matches(self, pattern: str) -> bool:
        """Whether a glob matches one of the names."""
        return fnmatch.fnmatchcase(self.name, pattern) or fnmatch.fnmatchcase(self.plain, pattern)

    @property
    def layer(self) -> SparseLayer | None:
        return layer_of(self.module, self.value)

    @property
    def shape(self) -> torch.Size:
        return self.value.shape if self.layer is None else self.layer.weight_shape


def _parameters(model: nn.Module) -> Iterator[_Parameter]:
    """Every parameter once, under its first name."""
    names: dict[int, list[tuple[str, nn.Module, str, nn.Parameter]]] = {}
    inside: set[nn.Module] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if is_offset_layer(module):
            inside.add(module.get_submodule("sparse"))
        for attribute, value in module.named_parameters(recurse=False):
            known = "weight" if layer_of(module, value) is not None else attribute
            full = canonical(f"{path}.{known}" if path else known)
            names.setdefault(id(value), []).append((full, module, attribute, value))
    for seen in names.values():
        name, module, attribute, value = seen[0]
        owners = {id(m) for _, m, _, _ in seen}
        twins = tuple(n for n, *_ in seen[1:]) if len(owners) > 1 else ()
        start, _, last = name.rpartition("sparse.")
        yield _Parameter(name, module, attribute, value, twins, start + last if module in inside else name)


def is_offset_layer(module: nn.Module) -> bool:
    """Whether a module is one of `gossamer.nn.offset`, seen from below: its weight is that of its part `sparse`."""
    return "sparse" in module._modules and hasattr(module, "effective_weight")


def _classify(
    model: nn.Module, p: _Parameter, preset: str, patterns: Sequence[str | type[nn.Module]], layers: bool
) -> Candidate:
    removed = [i for i in patterns if isinstance(i, str) and i.startswith("!")]
    named = any(_inside(model, p, i) if isinstance(i, type) else p.matches(i) for i in patterns if i not in removed)
    impossible = _impossible(p)
    if p.layer is not None and not layers:
        impossible = impossible or "held by a sparse layer, which only the step hooks of sparsify() rewire"
    if impossible:
        sparse, reason = False, f"named in targets, but {impossible}" if named else impossible
    elif any(p.matches(i[1:]) for i in removed):
        sparse, reason = False, "taken out by targets"
    elif named:
        sparse, reason = True, "named in targets"
    elif preset == "none":
        sparse, reason = False, "not named in targets"
    else:
        why_not = _why_dense(model, p, preset)
        sparse, reason = not why_not, why_not or _kind(p)
    return Candidate(p.name, p.module, p.attribute, p.value, sparse, reason)


def _inside(model: nn.Module, p: _Parameter, kind: type[nn.Module]) -> bool:
    """Whether a module of that type holds the parameter, itself or in a part."""
    return any(isinstance(m, kind) and any(q is p.value for q in m.parameters()) for m in model.modules())


def _impossible(p: _Parameter) -> str:
    if "parametrizations" in p.name:
        return "is computed by a parametrization (remove it first)"
    if not p.value.dtype.is_floating_point:
        return f"{p.value.dtype} is not a floating point type"
    if len(p.shape) < 2:
        return "1-D (bias, norm or scale)"
    if math.prod(p.shape) == 0:
        return "empty"
    if not p.value.requires_grad:
        return "frozen (requires_grad is False)"
    if p.value.is_inference():
        return "made in inference mode"
    if 0 in p.value.stride() and p.value.numel() > 1:
        return "expanded: its entries share memory (clone it first)"
    return ""


def stored_by_inputs(module: nn.Module) -> bool:
    """Whether the first dimension of its weight is that of the inputs: transposed convolutions, GPT-2's Conv1D."""
    return isinstance(module, TRANSPOSED) or _is_gpt2_conv(module)


def _is_gpt2_conv(module: nn.Module) -> bool:
    """Whether it is the linear layer of Hugging Face's GPT-2, known by its name: the package does not need theirs."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _kind(p: _Parameter) -> str:
    """The kind of layer weight that the default preset makes sparse, or ''."""
    module, attribute = p.module, p.attribute
    if p.layer is not None:
        return f"{'linear' if len(p.shape) == 2 else 'convolution'} weight, of a sparse layer"
    if attribute == "weight" and (isinstance(module, LINEAR) or _is_gpt2_conv(module)):
        return "linear weight"
    if attribute == "weight" and isinstance(module, CONVOLUTION):
        return "convolution weight"
    if isinstance(module, nn.MultiheadAttention) and attribute.endswith("proj_weight"):
        return "attention weight"
    if isinstance(module, RECURRENT) and attribute.startswith("weight_"):
        return "recurrent weight"
    return ""


def _why_dense(model: nn.Module, p: _Parameter, preset: str) -> str:
    kind = _kind(p)
    if isinstance(p.module, EMBEDDING):
        return "embedding"
    if p.twins:
        return f"tied with {', '.join(p.twins)}"
    if not kind:
        return f"parameter of {type(p.module).__name__}: no linear, convolution, attention or recurrent weight"
    if preset == "dctps":
        return "" if kind != "recurrent weight" else "recurrent weight, not in preset dctps"
    if _is_vocabulary_head(model, p):
        return "vocabulary head"
    if preset == "advances":
        return _advances_exemption(model, p)
    return ""


def _is_vocabulary_head(model: nn.Module, p: _Parameter) -> bool:
    """Whether it is the last linear layer whose shape is that of a token embedding."""
    tables = {(m.num_embeddings, m.embedding_dim) for m in model.modules() if isinstance(m, EMBEDDING)}
    like = [m for m in model.modules() if _matrix_shape(m) in tables]
    return bool(like) and like[-1] is p.module


def _matrix_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the weight of a linear layer, () for other modules."""
    if is_sparse_layer(module):
        return tuple(module.weight_shape)
    return tuple(module.weight.shape) if isinstance(module, nn.Linear) else ()


def _advances_exemption(model: nn.Module, p: _Parameter) -> str:
    inputs = 0
    if isinstance(p.module, CONVOLUTION):
        inputs = p.module.in_channels // p.module.groups
    elif p.layer is not None and len(p.shape) > 2:
        inputs = p.shape[1]
    if inputs % 16:
        return f"{inputs} input channels, not a multiple of 16"
    layer = p.plain.rsplit(".", 2)[-2] if "." in p.plain else ""
    if layer in TASK_HEADS and any(isinstance(m, EMBEDDING) for m in model.modules()):
        return "task head"
    return ""
