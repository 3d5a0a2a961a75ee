"""What one run is: a frozen `RunConfig`, read from flags, YAML or Python, checked before anything trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError, did_you_mean
from ..offsets import Offset
from ..subspace import Dense, Disjoint, Fastfood, Sparse
from .values import DATA, parameters, parse, spell

if TYPE_CHECKING:
    from ..method import Method

OFFSET_ONLY = "offset-only"
CONTROLS = {
    "dense": "every weight trains",
    "small": "a narrower dense twin of the model with the sparse one's number of weights",
    OFFSET_ONLY: "no weight is added to the offset: its factor trains, and norm and biases do",
}
ONLY_DENSITY = {"dense": 1.0, OFFSET_ONLY: 0.0}  # of methods that leave no choice


def _option(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


def _required(help: str) -> Any:
    return field(metadata={"help": help})


def _options(help: str) -> Any:
    return field(default_factory=dict, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. Fields left at None come from the recipe of (data, model); see `recipes`.

    >>> RunConfig(data="digits", model="mlp", method="rewire", density=0.1, args={"every": 10}).args
    {'every': 10}
    """

    data: str = _required("data set; `gossamer data` lists them")
    model: str = _required("model; `gossamer models` lists them")
    method: str = _option("dense, small, offset-only, or a method; `gossamer methods` lists them", "dense")
    density: float | None = _option("fraction of the targeted weights that is kept, in (0, 1]")
    args: Mapping[str, Any] = _options("arguments of the method, name -> value")
    control: Literal["shuffle", "reinit", "invert"] | None = _option(
        "sanity check of the first support: shuffle it within layers, train other initial weights, or invert its scores"
    )
    kept_weights: Literal["isometry", "fan-in"] | None = _option(
        "before training, move the kept weights towards isometry, or scale them by the fan-in that is left"
    )
    mask_data: str | None = _option("data set whose examples score the first support, instead of the run's own")
    offset: Offset | None = _option(  # noqa: RUF009 - a field
        "fixed dense matrix that targeted weights are added to, e.g. dct; `gossamer offsets` lists them"
    )
    alpha: float = _option("first value of the factors of the offset, times what the model's initialisation says", 1.0)
    freeze: tuple[Literal["norm", "alpha"], ...] = _option(
        "what does not train, comma-separated: scale and shift of normalisation layers, factors of the offset", ()
    )
    subspace: int | None = _option("train that many numbers theta in place of all weights: w = d + U theta")
    projection: Dense | Sparse | Fastfood | Disjoint = _option(  # noqa: RUF009 - a field
        "U of the subspace: dense, sparse, fastfood, or disjoint:ALLOCATION, which trains some of the weights",
        Fastfood(),
    )
    origin: Literal["init", "zero"] = _option("d of the subspace: the initial weights, or zero (disjoint only)", "init")
    targets: str | None = _option("which weights: a preset (advances, dctps) or comma-separated globs")
    seed: int = _option("seed of init, data order and method", 0)
    execution: Literal["masked", "sparse", "hybrid", "block", "semi_structured", "auto"] = _option(
        "masked: dense kernels on weights with zeros; sparse: sparse layers; hybrid: dense weights with sparse "
        "products, for every method; block: layers of blocks, for structure=block:16 and its like; semi_structured: "
        "2:4 on sparse tensor cores, for structure=nm:2,4; auto: masked, sparse or hybrid, as measured to be faster",
        "masked",
    )
    out: str | None = _option("run folder; default runs/<data>-<model>-<method>-<density>-<checks, if any>-<seed>")
    steps: int | None = _option("optimizer steps")
    epochs: float | None = _option("passes over the training data, instead of steps")
    batch_size: int | None = _option("examples per micro-batch")
    accumulate: int | None = _option("micro-batches per optimizer step")
    optimizer: Literal["sgd", "adam", "adamw", "muon"] | None = _option("optimizer")
    lr: float | None = _option("peak learning rate")
    momentum: float | None = _option("momentum of sgd and muon, beta1 of adam and adamw")
    beta2: float | None = _option("beta2 of adam and adamw")
    weight_decay: float | None = _option("weight decay of tensors with two or more dimensions")
    schedule: Literal["cosine", "step", "constant"] | None = _option("learning rate after warm-up")
    warmup: float | None = _option("fraction of the steps with linearly growing learning rate")
    clip: float | None = _option("largest gradient norm; 0 does not clip")
    amp: Literal["bf16", "fp16"] | None = _option("autocast precision; none for full precision")
    valid_fraction: float = _option("share of the training data held out for validation; 0 for none", 0.1)
    eval_every: int | None = _option("steps between rows of metrics.jsonl; default steps / 20")
    checkpoint_every: int | None = _option("steps between training checkpoints; default steps / 10")
    model_options: Mapping[str, Any] = _options("options of the model, name -> value")
    data_options: Mapping[str, Any] = _options("options of the data set, name -> value")
    mask_data_options: Mapping[str, Any] = _options("options of mask_data, name -> value")
    device: str | None = _option("torch device; default cuda if there is one, else cpu")
    threads: int | None = _option("CPU threads; other numbers may give other rounding")

    def __post_init__(self) -> None:
        for name, (kind, _) in FIELDS.items():
            value = getattr(self, name)
            if name in MAPPINGS:
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{name} = {value!r}: expected a mapping of names to values")
                for key in value:
                    if not isinstance(key, str):
                        raise ConfigError(f"{name} has the key {key!r}: expected names, e.g. every")
                object.__setattr__(self, name, {key: spell(item) for key, item in value.items()})
            else:
                object.__setattr__(self, name, parse(value, kind, name))
        _check_ranges(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from a mapping such as a parsed YAML file; unknown keys raise with the nearest known ones."""
        for name in values:
            if name not in FIELDS:
                raise ConfigError(f"unknown key {name!r} in the config{did_you_mean(str(name), FIELDS)}")
        for name in ("data", "model"):
            if not values.get(name):
                raise ConfigError(f"no {name} given: name one, e.g. --{name} {_EXAMPLES[name]}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, readable by `from_dict` and by any JSON or YAML reader."""
        return {name: spell(getattr(self, name)) for name in FIELDS}

    def with_settings(self, settings: Sequence[str]) -> RunConfig:
        """Apply ``key=value`` texts: method arguments, run fields, ``model.x``, ``data.x``."""
        known = method_parameters(self.method)
        changes: dict[str, Any] = {name: dict(getattr(self, name)) for name in MAPPINGS}
        for setting in settings:
            key, equals, value = setting.partition("=")
            prefix, _, option = key.partition(".")
            if not equals:
                raise ConfigError(f"--set {setting!r}: expected key=value, e.g. --set every=100")
            if key in known:
                changes["args"][key] = value
            elif option and f"{prefix}_options" in changes:
                changes[f"{prefix}_options"][option] = value
            elif key in FIELDS and key not in MAPPINGS:
                changes[key] = value
            else:
                fields = [name for name in FIELDS if name not in MAPPINGS]
                options = [name.replace("_options", ".<option>") for name in MAPPINGS if name != "args"]
                short = prefix.removesuffix("_options")
                spelled = option and prefix in MAPPINGS and short != prefix
                hint = f"; write {short}.{option}" if spelled else did_you_mean(key, [*known, *fields, *options])
                raise ConfigError(f"--set {setting!r}: unknown key {key!r} for {self.method}{hint}")
        return dataclasses.replace(self, **changes)


FIELDS: dict[str, tuple[Any, Any]] = parameters(RunConfig)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(RunConfig):
    """A `RunConfig` with nothing left open; `recipes.resolve` makes it."""

    density: float
    out: str
    steps: int
    batch_size: int
    accumulate: int
    optimizer: Literal["sgd", "adam", "adamw", "muon"]
    lr: float
    momentum: float
    beta2: float
    weight_decay: float
    schedule: Literal["cosine", "step", "constant"]
    warmup: float
    clip: float
    eval_every: int
    checkpoint_every: int
    device: str
    threads: int


MAPPINGS = ("args", "model_options", "data_options", "mask_data_options")
_EXAMPLES = {"data": "mnist1d", "model": "mlp"}

_Range = tuple[Callable[[Any], bool], str]
_AT_LEAST_ONE: _Range = (lambda v: v >= 1, "at least 1")
_NOT_NEGATIVE: _Range = (lambda v: 0 <= v < math.inf, "0 or more, and finite")
_WEIGHT_DECAY: _Range = (lambda v: 0 <= v < 1e4, "0 or more, and below 10000")
_LR: _Range = (lambda v: 0 < v < 1e4, "above 0, and below 10000")
_FRACTION: _Range = (lambda v: 0 <= v < 1, "in [0, 1)")
_POSITIVE: _Range = (lambda v: 0 < v < math.inf, "above 0, and finite")
_RANGES: dict[str, _Range] = {
    "subspace": _AT_LEAST_ONE,
    "density": (lambda v: 0 < v <= 1, "a fraction kept, above 0 and at most 1, e.g. 0.1"),
    "seed": (lambda v: 0 <= v < 2**63, "0 or more, and below 2**63"),
    "steps": _AT_LEAST_ONE,
    "epochs": _POSITIVE,
    "batch_size": _AT_LEAST_ONE,
    "accumulate": _AT_LEAST_ONE,
    "lr": _LR,
    "momentum": _FRACTION,
    "beta2": _FRACTION,
    "weight_decay": _WEIGHT_DECAY,
    "warmup": _FRACTION,
    "clip": _NOT_NEGATIVE,
    "valid_fraction": _FRACTION,
    "eval_every": _AT_LEAST_ONE,
    "checkpoint_every": _AT_LEAST_ONE,
    "threads": (lambda v: 1 <= v <= 1024, "1 to 1024"),
    "alpha": (lambda v: abs(v) <= 1e30, "a finite number, at most 1e30 in size"),
}


def _check_ranges(config: RunConfig) -> None:
    for name, (holds, expected) in _RANGES.items():
        value = getattr(config, name)
        if config.method == OFFSET_ONLY and name == "density":
            holds, expected = (lambda v: v == 0), f"none: {OFFSET_ONLY} trains no weight"
        if value is not None and not holds(value):
            raise ConfigError(f"{name} = {value!r}: expected {expected}")
    if config.steps is not None and config.epochs is not None:
        raise ConfigError("both steps and epochs are given; give one of them")


def field_help(name: str) -> str:
    """The one-line description of a field."""
    return str(RunConfig.__dataclass_fields__[name].metadata["help"])


def method_parameters(method: str) -> dict[str, tuple[Any, Any]]:
    """Arguments of a method that ``--set`` may name; raises on an unknown method."""
    if method in CONTROLS:
        return {}
    from ..foresight.named import INITS
    from ..methods import REGISTRY, find

    if method not in REGISTRY:
        if method in INITS:
            raise ConfigError(f"{method!r} is a first support, no method; the method static keeps it: --method static")
        known = [*CONTROLS, *REGISTRY]
        same = method.lower().replace("_", "-")
        hint = f"; did you mean {same!r}?" if same in known else did_you_mean(method, known)
        raise ConfigError(f"unknown method {method!r}{hint}")
    return parameters(find(method).build, skip=("density", *DATA))


def typed_options(given: Mapping[str, Any], known: Mapping[str, tuple[Any, Any]], owner: str) -> dict[str, Any]:
    """Return `given` with the types that `known` (from `values.parameters`) asks for; unknown names raise."""
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) if known else "; it takes none"
            raise ConfigError(f"unknown option {name!r} of {owner}{hint}")
    return {name: parse(value, known[name][0], name) for name, value in given.items()}


def build_method(config: RunConfig) -> Method | None:
    """Return the method of a config, or None for the controls; every argument is checked."""
    arguments = typed_options(config.args, method_parameters(config.method), f"method {config.method}")
    if config.density is None and config.method not in ONLY_DENSITY:
        raise ConfigError(f"method {config.method!r} needs the fraction kept, e.g. --density 0.1")
    if config.method in CONTROLS:
        return None
    from ..methods import find

    return find(config.method).build(config.density, **arguments)


def parse_targets(targets: str | None) -> str | list[str] | None:
    """``"a.*,b.*"`` is a list of globs, a single word a preset or glob, None the default targets."""
    if targets is None or "," not in targets:
        return targets
    return [glob.strip() for glob in targets.split(",") if glob.strip()]
