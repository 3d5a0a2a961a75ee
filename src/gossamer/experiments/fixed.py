"""What stays fixed in a run's model: offsets under sparse weights, frozen parameters, all but a subspace."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..conversion import convert
from ..coverage import Coverage, coverage
from ..errors import ConfigError
from ..method import Method
from ..nn.offset import OffsetLayer
from ..reparametrise import Learned
from ..sparse_layer import layer_of
from ..sparsifier import Sparsifier
from ..subspace import SubspaceModel
from ..targets import choose
from ..topology import DropGrow, FanInDropGrow, Score, Units, as_schedule
from . import subspaces
from .config import OFFSET_ONLY, ResolvedConfig, RunConfig
from .models.fixup import FixupBlock, fixup_offset_alphas
from .values import spell

Targets = str | list[str] | None
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check(config: RunConfig, method: object) -> None:
    """Raise ConfigError if the run asks for what only an offset or a subspace has, or its method cannot train it."""
    subspaces.check(config)
    if config.offset is None:
        asked = {f"alpha = {config.alpha!r}": config.alpha != 1, "freeze = 'alpha'": "alpha" in config.freeze}
        asked |= {f"method {OFFSET_ONLY!r}": config.method == OFFSET_ONLY}
        for what, given in asked.items():
            if given:
                raise ConfigError(f"{what} is of an offset, and the run has none; add e.g. --offset dct")
        return
    problem = None
    if config.method == "small":
        problem = "the control 'small' is a plain narrower network; leave the offset out"
    elif isinstance(method, Learned) or config.kept_weights is not None or config.control == "reinit":
        asked_for = config.method if isinstance(method, Learned) else config.kept_weights or config.control
        problem = f"weights added to an offset start at zero, so {asked_for!r} has nothing to work on"
    elif isinstance(method, Method) and isinstance(method.init, Score) and "generator" not in method.init.needs:
        problem = (
            f"weights added to an offset start at zero, so {method.init.name} tells none of them apart; start method "
            f"{config.method!r} from another support, e.g. --set init=random"
        )
    if problem:
        raise ConfigError(f"offset = {spell(config.offset)!r}: {problem}")


@dataclass(frozen=True)
class _Nothing:
    """A weight of which no entry trains."""

    count = 0

    def bytes(self) -> int:
        """Bytes held beside it."""
        return 0


def apply(model: nn.Module, config: ResolvedConfig, targets: Targets) -> tuple[nn.Module, Targets, Coverage]:
    """Put the offset of a run into its targeted layers, freeze what it does not train, put the rest in its subspace.

    Returns the model, the targets by which its sparse weights are found from now on, and the coverage that it has as
    long as nothing makes it sparse.

    Raises:
        ConfigError: a targeted weight is of no layer that can have an offset, the subspace has too many dimensions, or
            its origin would zero the scales of normalisation layers.
    """
    if config.offset is not None:
        model, targets = _put(model, config, targets)
    rows = choose(model, targets)
    idle = {row.name: _Nothing() for row in rows if row.sparse} if config.method == OFFSET_ONLY else {}
    table = coverage(rows, idle)
    for row in rows:
        frozen = "norm" in config.freeze and isinstance(row.module, NORMS)
        if frozen or row.name in idle:
            row.parameter.requires_grad_(False)
    if config.subspace is not None:
        scales = any(isinstance(row.module, NORMS) and row.parameter.requires_grad for row in rows)
        if scales and config.origin == "zero":
            raise ConfigError(
                f"subspace = {config.subspace}: origin = 'zero' sets the scales of normalisation layers to zero, too, "
                "and no signal passes them; add --freeze norm"
            )
        model, kept = subspaces.put(model, config.subspace, config)
        table = coverage(rows, kept)
    return model, targets, table


def _put(model: nn.Module, config: ResolvedConfig, targets: Targets) -> tuple[nn.Module, list[str]]:
    """Swap the layers; returns the model and the names of its sparse weights."""
    rows = [row for row in choose(model, targets) if row.sparse]
    for row in rows:
        if type(row.module) not in (nn.Linear, nn.Conv2d):
            raise ConfigError(
                f"offset = {spell(config.offset)!r}: {row.name} is the weight of a {type(row.module).__name__}, and "
                f"offsets are for linear layers and 2-D convolutions; leave it out with --targets '!{row.name}'"
            )
    trains = "alpha" not in config.freeze
    model = convert(model, offset=config.offset, train_alpha=trains, targets=targets, seed=config.seed)
    if any(isinstance(module, FixupBlock) for module in model.modules()):
        fixup_offset_alphas(model)
    for module in model.modules():
        if isinstance(module, OffsetLayer):
            module.alpha.detach().mul_(config.alpha)
    return model, [f"{row.name.removesuffix('weight')}sparse.weight" for row in rows]


def warn_of_still_weights(sparsifier: object) -> None:
    """Warn of weights with so few entries that the fraction which a method drops is never one entry, or one unit."""
    if not isinstance(sparsifier, Sparsifier):
        return
    method, last = sparsifier.method, sparsifier.total_steps or 0
    rule = method.rule.base if isinstance(method.rule, FanInDropGrow) else method.rule
    if not isinstance(rule, DropGrow) or rule.fraction is None or method.scope == "global":
        return
    schedule, units = as_schedule(rule.fraction), method.structure if isinstance(method.structure, Units) else None
    most = max((schedule(step) for step in range(last) if method.clock.due(step)), default=0.0)
    still = {
        name: site.count
        for name, site in sparsifier.sites.items()
        if int(most * site.count) < (units.smallest(site.shape) if units else 1)
    }
    if still and most:
        names = ", ".join(f"{name} ({count})" for name, count in [*still.items()][:3])
        more = f" and {len(still) - 3} more" if len(still) > 3 else ""
        whole = f" to whole units ({units.name})" if units else ""
        otherwise = "" if method.structure.single else ", or scope=global"
        warnings.warn(
            f"{method.name} drops at most {most:.3g} of the entries of a weight, rounded down{whole}, which is none of "
            f"those of {names}{more}: these are never rewired; use a larger fraction{otherwise}",
            stacklevel=2,
        )


def trained_counts(model: nn.Module, table: Coverage) -> dict[str, int]:
    """How many numbers a run trains.

    "weights": active entries of the sparse weights; "other weights": dense ones; "alpha": factors of offsets; "norm":
    scales and shifts; "bias"; "other". In a subspace "theta", and none of these.
    """
    sparse = {row.name for row in table.rows if row.sparse}
    counts = dict.fromkeys(("weights", "other weights", "alpha", "norm", "bias", "other"), 0)
    if isinstance(model, SubspaceModel):
        return counts | {"theta": model.dimension}
    counts["weights"] = table.active
    owners = {id(p): (m, attribute) for m in model.modules() for attribute, p in m.named_parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        module, attribute = owners[id(parameter)]
        weight = f"{name.removesuffix(attribute)}weight" if layer_of(module, parameter) else name
        if weight not in sparse and parameter.requires_grad:
            counts[_kind(module, attribute, parameter)] += parameter.numel()
    return counts


def _kind(module: nn.Module, attribute: str, parameter: nn.Parameter) -> str:
    if isinstance(module, OffsetLayer):
        return "alpha"
    if isinstance(module, NORMS):
        return "norm"
    if attribute == "bias":
        return "bias"
    return "other weights" if parameter.ndim > 1 else "other"
