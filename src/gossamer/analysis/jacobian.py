"""Signal propagation: singular values of Jacobians at a batch, of a whole model and of its layers."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..targets import canonical, choose
from ._lanczos import JacobianMap, exact, quadrature
from ._recording import Statistics, apart, record, unwrapped

How = Literal["auto", "exact", "lanczos"]
EXACT_ENTRIES = 2**22  # "auto" forms the explicit Jacobians of a batch up to this many entries: 32 MiB in float64
DEAD = 1e-6  # of the largest singular value
LAST_SEED = 2**63 - 1
RESIDUE = 1e-20  # quadrature weight of a node that only rounding has put there


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the Jacobians of a batch, pooled over its examples: min(inputs, outputs) per example.

    count: how many there are. exact: whether all were computed.
    mean, std, mean_square: over all of them (std of the population). dead: the fraction below 1e-6 of the largest.
    max, min: the largest and the smallest. condition: max over the smallest one that is not dead; at most 1e6.
    values: (examples, min(inputs, outputs)), float64, falling in each row; None unless exact.

    If not exact: `mean_square` is an unbiased estimate (Hutchinson); `mean` and `std` come from the same random vectors
    by Lanczos quadrature. `max` is a lower bound of the largest value, which converges first; `min` is an upper bound
    of the smallest, often a loose one. `condition` and `dead` are None: they need the smallest values, which a few
    products do not resolve. If all values are zero, `dead` is 1 and `condition` None in either case.
    """

    mean: float
    std: float
    max: float
    min: float
    mean_square: float
    condition: float | None
    dead: float | None
    count: int
    exact: bool
    values: Tensor | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        condition = "-" if self.condition is None else f"{self.condition:.3g}"
        dead = "-" if self.dead is None else f"{self.dead:.1%}"
        return (
            f"mean {self.mean:.3g}, std {self.std:.3g}, max {self.max:.3g}, min {self.min:.3g}, mean square "
            f"{self.mean_square:.3g}, condition {condition}, dead {dead} "
            f"({self.count} singular values, {'exact' if self.exact else 'estimated'})"
        )


class LayerSpectra(dict[str, Spectrum]):
    """Name of a module -> spectrum, in the order of the calls; `print` it for a table.

    start: "layer" if each Jacobian begins at the input of its layer, "input" if at the input of the model.
    """

    def __init__(self, start: str, spectra: dict[str, Spectrum]) -> None:
        """Keep `spectra` in their order."""
        super().__init__(spectra)
        self.start = start

    @property
    def log10_mean_square(self) -> dict[str, float]:
        """Name -> log10 of the mean squared singular value; -inf where all are zero."""
        return {name: math.log10(s.mean_square) if s.mean_square else -math.inf for name, s in self.items()}

    @property
    def slope(self) -> float | None:
        """Decades by which the mean square changes per layer: below 0 the signal vanishes, above it explodes.

        start="input": the least-squares slope of `log10_mean_square` over the position; None for a single layer.
        start="layer": the mean of `log10_mean_square`. It predicts the former for a chain of layers of one width
        whose singular vectors are unrelated; it says nothing about layers in parallel.
        """
        logs = list(self.log10_mean_square.values())
        if -math.inf in logs:
            return -math.inf
        if self.start == "layer":
            return math.fsum(logs) / len(logs)
        centre, mean = (len(logs) - 1) / 2, math.fsum(logs) / len(logs)
        spread = math.fsum((place - centre) ** 2 for place in range(len(logs)))
        rise = math.fsum((place - centre) * (log - mean) for place, log in enumerate(logs))
        return rise / spread if spread else None

    def __str__(self) -> str:
        width = max(5, *map(len, self))
        lines = [f"{'layer':{width}}  log10 ms  mean sq     mean      std      max   dead  singular values"]
        for (name, s), log in zip(self.items(), self.log10_mean_square.values(), strict=True):
            figures = " ".join(f"{value:8.3g}" for value in (s.mean_square, s.mean, s.std, s.max))
            kind = "exact" if s.exact else "estimated"
            dead = "-" if s.dead is None else f"{s.dead:.1%}"
            lines.append(f"{name:{width}}  {log:8.2f} {figures} {dead:>6}  {s.count} {kind}")
        rate = "-" if self.slope is None else f"{self.slope:+.3f}"
        return "\n".join([*lines, f"log10 of the mean square per layer, from the {self.start}: {rate}"])


def end_to_end(
    model: nn.Module,
    inputs: Tensor,
    *,
    method: How = "auto",
    statistics: Statistics = "running",
    steps: int = 30,
    probes: int = 4,
    seed: int = 0,
) -> Spectrum:
    """Singular values of the Jacobian of the model's output with respect to its input, per example.

    Measured on a float64 copy in evaluation mode (no dropout), so the model, its modes, statistics, gradients and
    hooks and the random state stay as they are; hooks of modules run once, on the copy. The output is the first
    floating-point tensor that the model returns, flattened per example. It must be differentiable, for the iterative
    method and for more outputs than inputs twice.

    inputs: one tensor, (examples, ...), floating point. To measure a model that takes several, wrap it in a
        module that takes one and supplies the others.
    method: "exact" forms the Jacobians and takes every singular value; "lanczos" multiplies with them only, and
        estimates (see `Spectrum`); "auto" is exact up to 2^22 entries of all Jacobians together.
    statistics: constants of batch norms: "running" as in evaluation, "batch" those of these inputs, which is what
        training sees, and the only choice that means something at initialisation. Norms without running statistics
        always use the batch's.
    steps, probes, seed: Lanczos steps per random vector, random vectors per example, and their seed. Memory of the
        iterative method: 8 * steps * examples * (inputs + outputs) bytes, beside the graph of the forward pass.

    Source: mean squared singular values and isometry as in Saxe et al. 2014 (1312.6120), Pennington et al. 2017
    (1711.04735); the check of Lee et al. 2020 (1906.06307), whose numbers are pooled over examples as these.

    Raises:
        ConfigError: an argument is out of range or does not fit the model, examples depend on each other, or a
            derivative does not exist.
        DivergedError: the Jacobian is not finite.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> print(end_to_end(model, torch.ones(1, 2)))
    mean 3.5, std 0.5, max 4, min 3, mean square 12.5, condition 1.33, dead 0.0% (2 singular values, exact)
    """
    how = _Settings(method, steps, probes, seed)
    if isinstance(inputs, Tensor) and not inputs.is_floating_point():
        raise ConfigError(f"inputs are {inputs.dtype}: there is no Jacobian with respect to them; use layerwise()")
    model = unwrapped(model)
    with apart():
        seen = record(model, inputs, {}, statistics)
        return how.measure(JacobianMap(type(model).__name__, seen.x, seen.y))


def layerwise(
    model: nn.Module,
    inputs: Tensor,
    modules: str | type[nn.Module] | Sequence[str | type[nn.Module]] | None = None,
    *,
    start: Literal["layer", "input"] = "layer",
    method: How = "auto",
    statistics: Statistics = "running",
    steps: int = 30,
    probes: int = 4,
    seed: int = 0,
) -> LayerSpectra:
    """Singular values of the Jacobian of each module, at the input that it receives in this forward pass.

    A convolution is measured as it runs, with its padding and stride; a block with its norms, activations and
    shortcuts, which is the layer Jacobian of the theory, diag(phi'(h)) W, when the block is weight, norm, activation.
    The Jacobian is that of the first floating-point output with respect to the first floating-point argument (all
    arguments that are the same tensor, as in self-attention). A module that is called again has a row per call:
    "fc", "fc#2". All else as `end_to_end`; the inputs may be integers here.

    inputs: one tensor, (examples, ...).
    modules: names, globs or module types; a `*` stays within one level: "layer*" are the blocks, "layer*.conv" what is
        in them. None: every module that owns a weight which is sparse by default (`gossamer.targets.choose`), except
        those that the forward pass does not call (the output projection of nn.MultiheadAttention).
    start: "layer" as said; "input": the Jacobian of the module's output with respect to the input of the model, whose
        mean square over depth shows vanishing and exploding directly.

    Raises:
        ConfigError: as `end_to_end`; or nothing matches, a named module is not called, or it mixes examples.
        DivergedError: a Jacobian is not finite.
    """
    how = _Settings(method, steps, probes, seed)
    if start not in ("layer", "input"):
        raise ConfigError(f"start={start!r}: expected 'layer' or 'input'")
    if start == "input" and isinstance(inputs, Tensor) and not inputs.is_floating_point():
        raise ConfigError(f"inputs are {inputs.dtype}: there is no Jacobian with respect to them; use start='layer'")
    model = unwrapped(model)
    names = _chosen(model, modules)
    spectra = {}
    with apart():
        seen = record(model, inputs, names, statistics)
        called = {call.name for call in seen.calls}
        silent = sorted(set(names.values()) - called)
        if not called or (silent and modules is not None):
            raise ConfigError(f"the forward pass does not call {', '.join(silent[:3])}; choose modules that it calls")
        for call in seen.calls:
            spectra[call.name] = how.measure(JacobianMap(call.name, seen.x if start == "input" else call.x, call.y))
    return LayerSpectra(start, spectra)


def _chosen(model: nn.Module, modules: Any) -> dict[nn.Module, str]:
    """Module -> name, once per module."""
    paths = {m: canonical(f"{path}.").rstrip(".") for path, m in model.named_modules()}
    if modules is None:
        owners = {id(row.module) for row in choose(model, None) if row.sparse}
        return {m: path or type(model).__name__ for m, path in paths.items() if id(m) in owners}
    named = {m: path for m, path in paths.items() if path}
    found: set[nn.Module] = set()
    if not isinstance(modules, str | type | Iterable):
        raise ConfigError(f"modules={modules!r}: expected names, globs or nn.Module types")
    for item in [modules] if isinstance(modules, str | type) else list(modules):
        if isinstance(item, type) and issubclass(item, nn.Module):
            matching = {m for m in named if isinstance(m, item)}
        elif isinstance(item, str):
            depth = item.count(".")
            matching = {m for m, p in named.items() if p.count(".") == depth and fnmatch.fnmatchcase(p, item)}
        else:
            raise ConfigError(f"modules holds {item!r}; expected names, globs or nn.Module types")
        if not matching:
            hint = did_you_mean(item, named.values()) if isinstance(item, str) else ""
            raise ConfigError(f"modules={item!r} matches no module of {type(model).__name__}{hint}")
        found |= matching
    if not found:
        raise ConfigError("modules is empty; leave it out for the default, or give names or module types")
    return {m: path for m, path in named.items() if m in found}


@dataclass(frozen=True)
class _Settings:
    method: str
    steps: int
    probes: int
    seed: int

    def __post_init__(self) -> None:
        if self.method not in ("auto", "exact", "lanczos"):
            raise ConfigError(f"method={self.method!r}: expected 'auto', 'exact' or 'lanczos'")
        for name, value, least in (("steps", self.steps, 1), ("probes", self.probes, 1), ("seed", self.seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r}: expected a whole number from {least} on")
        if self.seed > LAST_SEED:
            raise ConfigError(f"seed={self.seed!r}: expected a whole number below 2^63")

    def measure(self, jacobian: JacobianMap) -> Spectrum:
        """The spectrum by the method that was asked for."""
        small = jacobian.entries <= EXACT_ENTRIES
        if self.method == "exact" or (self.method == "auto" and small):
            return _counted(exact(jacobian))
        generator = torch.Generator().manual_seed(self.seed)
        runs = [quadrature(jacobian, self.steps, generator) for _ in range(self.probes)]
        nodes, weights = (torch.cat(parts, 1) for parts in zip(*runs, strict=True))
        return _weighted(nodes, weights / weights.sum(), jacobian.count)


def _counted(values: Tensor) -> Spectrum:
    largest = float(values.max())
    alive = values[values >= DEAD * largest] if largest else values[:0]
    return Spectrum(
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        max=largest,
        min=float(values.min()),
        mean_square=float(values.square().mean()),
        condition=largest / float(alive.min()) if largest else None,
        dead=1 - alive.numel() / values.numel(),
        count=values.numel(),
        exact=True,
        values=values.detach(),
    )


def _weighted(nodes: Tensor, weights: Tensor, count: int) -> Spectrum:
    mean, mean_square = float((weights * nodes).sum()), float((weights * nodes.square()).sum())
    largest = float(nodes.max())
    return Spectrum(
        mean=mean,
        std=math.sqrt(max(0.0, mean_square - mean * mean)),
        max=largest,
        min=float(nodes[weights > RESIDUE].min()),
        mean_square=mean_square,
        condition=None,
        dead=None if largest else 1.0,
        count=count,
        exact=False,
    )
