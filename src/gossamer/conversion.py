"""Swap the layers of a model for those that execute sparsity, as a method or given supports say."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from . import _two_four, distributed
from .analysis.sanity import Targets
from .errors import AttachError, ConfigError, check_choice, check_seed
from .method import Method
from .nn.convert import (
    Choice,
    add_offsets,
    conversion_report,
    densify,
    note,
    offset_layers,
    put,
    refusal,
    swap,
    swapped,
)
from .nn.hybrid import Hybrid
from .offsets import Offset
from .ownership import owned
from .seeding import generator_for
from .sparse_methods import options_of_blocks
from .sparse_methods import refusal as refusal_of_method
from .starting import inner_name, outer_name, refuse_targets, start_supports
from .targets import Candidate, check_initialised, choose
from .topology import Constant, Support, as_schedule

Layout = Literal["sparse", "hybrid", "block", "semi_structured", "auto", "masked", "dense"]
_LAYOUTS = get_args(Layout)


def convert(
    model: nn.Module,
    what: Method | Mapping[str, Support | Tensor] | None = None,
    *,
    offset: Offset | None = None,
    alpha: float = 1.0,
    train_alpha: bool = True,
    targets: Targets = None,
    layout: Layout = "sparse",
    block: int | None = None,
    seed: int = 0,
    total_steps: int | None = None,
    batch: Any = None,
) -> nn.Module:
    """Swap linear layers and convolutions for ones that execute sparsity; call it before the optimizer is built.

    Every swapped layer computes what the dense one with a masked weight does; biases stay the same Parameters, and
    mode, ``requires_grad`` and forward and backward hooks are kept. What cannot be swapped stays dense, for `sparsify`
    to mask; `gossamer.nn.conversion_report` says what and why. The model is changed in place.

    With an ``offset`` layers become `nn.OffsetLinear` and `nn.OffsetConv2d`, whose weight is alpha D + S with S = 0.
    What is said of a weight then holds of S, named ``fc.sparse.weight``. Layers that take no offset do without.

    Args:
        what: a method, whose first supports are those that `sparsify` finds for the same model and seed; or weight name
            -> Support or bool mask. None to go back; with an offset, to let each layer hold S as it holds its weight,
            a dense one for `sparsify` to mask; with "semi_structured", for weights that are 2:4 already.
        offset, alpha, train_alpha: as of `nn.OffsetLinear`; without an offset nothing is added, and the other two are
            refused.
        targets: of a method or an offset, as for `sparsify`.
        layout: "sparse": values and indices only. "hybrid": dense weights, sparse products, for methods whose inactive
            weights keep a value; they run every method. "block": whole blocks, `nn.BlockSparseLinear`, of linear
            layers. "auto": sparse, or hybrid if sparse layers do not run the method, for layers that were measured to
            be faster that way on this machine, at the density that training ends with. "dense": back, bit for bit,
            with zeros for what did not exist; layers with an offset
            become plain ones with the weight alpha D + S. "masked": the same, but offsets stay, with a dense S.
        block: side of the blocks of "block"; None takes that of the method's structure, ``structure=Block(16)``.
        seed, total_steps: as for `sparsify`. Offsets that are drawn are drawn from the seed and the name of the weight.
        batch: for "auto", one batch of inputs: a tensor, a tuple of positional arguments, or a dict of named ones.

    Returns:
        The model, or the new layer if the model is a single one.

    Raises:
        ConfigError: an argument cannot be, the layers do not run the method, or no layer can be swapped.
        AttachError: the model is sparsified already.
    """
    check_choice("layout", layout, _LAYOUTS)
    check_seed(seed)
    if offset is None and (alpha != 1.0 or train_alpha is not True):
        raise ConfigError(
            f"alpha={alpha!r}, train_alpha={train_alpha!r} are of an offset, and none is given; pass one, e.g. "
            "offset=gossamer.offsets.DCT()"
        )
    _check_model(model)
    if layout in ("masked", "dense"):
        if what is not None or offset is not None:
            raise ConfigError(
                f'layout="{layout}" goes back to dense layers and takes neither a method nor supports nor an offset'
            )
        return densify(model, keep_offsets=layout == "masked")
    more = options_of_blocks(what, layout, block)
    options = {"layout": layout, "seed": seed, "total_steps": total_steps, "batch": batch, "more": more}
    if offset is None:
        return _converted(model, what, targets, **options)
    added = {"offset": offset, "alpha": alpha, "train_alpha": train_alpha}
    return _with_offsets(model, what, targets, added, **options)


def _converted(
    model: nn.Module,
    what: Any,
    targets: Targets,
    *,
    layout: str,
    seed: int,
    total_steps: int | None,
    batch: Any,
    more: dict[str, Any],
) -> nn.Module:
    """Swap layers for sparse or hybrid ones; those of S where there are offsets."""
    if next(iter(swapped(model)), None) is not None:
        raise ConfigError('the model holds sparse layers already; call convert(model, layout="dense") first')
    if layout == "auto" and batch is None:
        raise ConfigError('layout="auto" measures layers on inputs of the right size; pass batch=, one batch of inputs')
    kind = _kind(what, layout)
    existing = what is None and layout == "semi_structured"
    supports = (
        _two_four.present(model, targets) if existing else start_supports(model, what, targets, seed, total_steps)
    )
    rows = {row.name: row for row in choose(model, list(supports))}
    choices = [_choice(model, rows[name], support, kind) for name, support in supports.items()]
    if layout == "auto":
        choices = _measured(model, choices, batch, what, total_steps)
    chosen = {rows[c.name].module: supports[c.name] for c in choices if c.layout != "dense"}
    if not chosen and layout != "auto":
        raise ConfigError(f"no layer can be swapped: {'; '.join(f'{c.name}: {c.why}' for c in choices[:3])}")
    model = swap(model, chosen, kind, **more)
    note(model, choices)
    return model


def _with_offsets(
    model: nn.Module, what: Any, targets: Targets, added: dict[str, Any], *, layout: str, seed: int, **options: Any
) -> nn.Module:
    """Add offsets, then swap the layers of S; if that raises, the model is as it was."""
    if offset_layers(model):
        raise ConfigError('the model holds offset layers already; call convert(model, layout="dense") first')
    if layout == "semi_structured":
        raise ConfigError('layout="semi_structured" takes no offset: its layers compute with a plain weight')
    if what is None and layout != "sparse":
        raise ConfigError(
            f'layout="{layout}" is for S of a method or of given supports, and there are none; leave it out'
        )
    if isinstance(what, Mapping):
        refuse_targets(targets)
        held = dict(model.named_parameters())
        what = {name if name in held else outer_name(name): support for name, support in what.items()}
        targets = list(what)
    rows = [row for row in choose(model, targets, layers=True) if row.sparse]
    why = {row.name: refusal(model, row.module, row.attribute, "offset") for row in rows}
    taking = {row.module: row.name for row in rows if not why[row.name]}
    if not taking:
        raise ConfigError(f"no layer can take an offset: {'; '.join(f'{n}: {w}' for n, w in list(why.items())[:3])}")
    seeds = {module: generator_for(seed, name, "offset").initial_seed() for module, name in taking.items()}
    whole, undo = add_offsets(model, seeds, **added)
    names = [name if why[name] else inner_name(name) for name in why]
    try:
        if what is None:
            note(whole, [_as_it_is(row) for row in choose(whole, names, layers=True) if row.sparse])
        else:
            named = None if isinstance(what, Mapping) else names
            whole = _converted(whole, what, named, layout=layout, seed=seed, **options)
    except BaseException:
        put(whole, undo)
        raise
    report = conversion_report(whole)
    assert report is not None
    note(whole, [_told(choice, why.get(choice.name, "")) for choice in report.choices])
    return whole


def _as_it_is(row: Candidate) -> Choice:
    """Of a weight that only got an offset."""
    layer = row.layer
    layout: Any = "sparse" if layer else ("hybrid" if isinstance(row.module, Hybrid) else "dense")
    return Choice(row.name, layout, tuple(row.shape), row.parameter.numel(), "asked for")


def _told(choice: Choice, why: str) -> Choice:
    """With the reason why the weight has no offset, if there is one."""
    first = "" if choice.why in ("asked for", why) else f"{choice.why}; "
    return replace(choice, why=f"{first}no offset: {why}") if why else choice


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    distributed.refuse(model)
    if isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise ConfigError(f"convert() swaps layers; call it before the model is wrapped in {type(model).__name__}")
    check_initialised(model)
    made = list(model.parameters())
    if torch.is_inference_mode_enabled() or (made and all(parameter.is_inference() for parameter in made)):
        raise ConfigError(
            "what is made inside torch.inference_mode cannot be trained; make the model and convert it outside"
        )
    for name, parameter in model.named_parameters():
        if parameter in owned:
            raise AttachError(f"{name} is sparsified already; call convert() before sparsify(), or detach() first")


def _kind(what: object, layout: str) -> str:
    if layout == "semi_structured":
        _two_four.check(what)
        return layout
    found = refusal_of_method(what, blocks=layout == "block") if isinstance(what, Method) else None
    if layout == "auto":
        return "hybrid" if found else "sparse"
    if isinstance(what, Method) and found and layout in ("sparse", "block"):
        told = found.told('layout="hybrid"')
        raise ConfigError(f"method {what.name!r} cannot run on sparse layers: {told}")
    return layout


def _choice(model: nn.Module, row: Candidate, support: Support, kind: str) -> Choice:
    why = refusal(model, row.module, row.attribute, kind)
    layout: Any = "dense" if why else kind
    return Choice(row.name, layout, tuple(support.shape), support.count, why or "asked for")


def _period(what: object, total_steps: int | None) -> float:
    """Steps between two rewirings, which cost a hybrid layer the making of an index."""
    return what.resolve(total_steps).clock.every if isinstance(what, Method) else math.inf


def _last_counts(choices: list[Choice], what: object, total_steps: int | None) -> dict[str, int]:
    """Weight name -> number of active entries at the end of a density schedule, as the allocation shares them out."""
    if not isinstance(what, Method) or isinstance(as_schedule(what.density), Constant):
        return {}
    shapes = {choice.name: choice.shape for choice in choices}
    return what.resolve(total_steps).counts(shapes, total_steps or sys.maxsize)


def _measured(
    model: nn.Module, choices: list[Choice], batch: Any, what: object, total_steps: int | None
) -> list[Choice]:
    """Leave dense what was not measured to be faster otherwise, at the density that training ends with."""
    from .nn.measure import judge, traced

    shapes, last, every = traced(model, batch), _last_counts(choices, what, total_steps), _period(what, total_steps)

    def decide(choice: Choice) -> Choice:
        if choice.layout == "dense":
            return choice
        if choice.name not in shapes:
            return replace(choice, layout="dense", why="the batch did not run through it")
        count = last.get(choice.name, choice.count)
        verdict = judge(shapes[choice.name], count, choice.layout, every=every)  # type: ignore[arg-type]
        when = f"at its last density {count / math.prod(choice.shape):.3g}: " if last else ""
        return replace(choice, layout=choice.layout if verdict.sparse else "dense", why=when + verdict.why)

    return [decide(choice) for choice in choices]
