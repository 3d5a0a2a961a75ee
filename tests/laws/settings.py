"""What the laws are asserted over: every torch.optim class, small models, methods."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from gossamer import Method, Zero, foresight, methods
from gossamer.topology import Clock, DropGrow, Linear, scores

STEPS = 12
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

# Every optimizer of torch that steps dense parameters, with arguments under which it moves weights and uses its slots.
OPTIMIZERS: dict[str, tuple[str, dict[str, object]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "sgd-nesterov-foreach": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "foreach": True}),
    "sgd-fused": ("SGD", {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam-amsgrad-foreach": ("Adam", {"lr": 0.01, "amsgrad": True, "foreach": True}),
    "adam-fused": ("Adam", {"lr": 0.01, "fused": True}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw-fused": ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "fused": True}),
    "nadam": ("NAdam", {"lr": 0.01}),
    "radam": ("RAdam", {"lr": 0.01}),
    "adamax": ("Adamax", {"lr": 0.01}),
    "adagrad": ("Adagrad", {"lr": 0.05, "initial_accumulator_value": 0.1}),
    "adadelta": ("Adadelta", {"lr": 1.0}),
    "rmsprop": ("RMSprop", {"lr": 0.005, "momentum": 0.5, "centered": True}),
    "rprop": ("Rprop", {"lr": 0.01}),
    "asgd": ("ASGD", {"lr": 0.05, "t0": 5}),
    "adafactor": ("Adafactor", {"lr": 0.01}),
    "muon": ("Muon", {"lr": 0.02, "weight_decay": 0.1}),
    "lbfgs": ("LBFGS", {"lr": 0.1, "max_iter": 3}),
}
REFUSED = {"SparseAdam"}
# Optimizers whose update of an entry depends on that entry's gradient and state alone.
ELEMENTWISE = [name for name in OPTIMIZERS if name not in {"adafactor", "muon", "lbfgs"}]
LIVE_OK = [name for name in OPTIMIZERS if name != "lbfgs"]
NO_MOMENTUM = {"sgd", "adagrad", "adadelta", "rprop", "asgd", "adafactor", "lbfgs"}
FEW = {"sgd-momentum", "adamw", "rmsprop", "adagrad", "muon", "lbfgs"}  # one of each kind


def optimizer_classes() -> set[str]:
    """Names of all optimizer classes that this torch has."""
    base = torch.optim.Optimizer
    return {n for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, base) and c is not base}


def make_optimizer(name: str, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Build it; Muon takes 2-D weights only, so AdamW steps the rest: two optimizers at once."""
    kind, arguments = OPTIMIZERS[name]
    build = getattr(torch.optim, kind)
    if kind != "Muon":
        return [build(model.parameters(), **arguments)]
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    return [build(matrices, **arguments), torch.optim.AdamW(rest, lr=0.01)]


def mlp(seed: int = 0) -> nn.Sequential:
    """20-16-12-4 with a LayerNorm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))


def convnet(seed: int = 0) -> nn.Sequential:
    """A strided, a depthwise and a pointwise convolution, then a linear layer; input 2 x 6 x 6."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(54, 4),
    )


def batches(shape: tuple[int, ...] = (20,), n: int = STEPS, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """n batches of 8, the same for everybody."""
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, *shape, generator=g), torch.randint(0, 4, (8,), generator=g)) for _ in range(n)]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train_step(model: nn.Module, optimizers: list[torch.optim.Optimizer], batch: tuple[Tensor, Tensor]) -> float:
    """One ordinary step; optimizers that need a closure get one."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    if isinstance(optimizers[0], torch.optim.LBFGS):

        def closure() -> Tensor:
            optimizers[0].zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss.detach()

        return float(optimizers[0].step(closure))
    loss = loss_of(model, batch)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


def compose(name: str, density: float, **parts: object) -> Method:
    """A method that is no named one: rewires every third step, after the update."""
    return Method(name=name, density=density, init=scores.random, clock=Clock(every=3), **parts)  # type: ignore[arg-type]


def small_methods(density: float = 0.3, shape: tuple[int, ...] = (20,)) -> dict[str, gossamer.Method]:
    """Every kind of method, with a clock that acts within a few steps; shape: of one input of the model."""
    return basic_methods(density) | further_methods(density) | foresight_methods(density, shape)


def basic_methods(density: float = 0.3) -> dict[str, gossamer.Method]:
    """Those that run under every optimizer: one of each kind of mechanism."""
    return {
        "static": methods.static(density),
        "static-epf": methods.static(density, allocation="equal_per_filter"),
        "set": methods.set_(density, every=2),
        "set-unsigned": methods.set_(density, every=2, split_signs=False, newborn="zero"),
        "rigl": methods.rigl(density, every=3, fraction=0.5),
        "rigl-global": methods.rigl(density, every=3, fraction=0.5, scope="global", allocation="uniform"),
        "grow-after": compose("grow-after", density, rule=DropGrow(scores.magnitude, scores.gradient, 0.5)),
        "dense-slots": compose(
            "dense-slots", density, rule=DropGrow(scores.magnitude, scores.momentum, 0.5), inactive=Zero(slots="keep")
        ),
        "rewire": methods.rewire(density, exploit=None),
        "rewire-reset": methods.rewire(density, exploit=gossamer.Reset(3), every=2),
        "rewire-fix": methods.rewire(density, exploit=gossamer.Fix(0.5), scale=0.5),
        "rewire-regularize": methods.rewire(density, exploit=gossamer.Regularize(0.1), scale=0.0),
        "rewire-global": methods.rewire(density, exploit=None, scope="global", scale=0.3, scale_on="update"),
    }


def further_methods(density: float = 0.3) -> dict[str, gossamer.Method]:
    """The other named methods and their variants."""
    reach = Linear(0.9, density, end=8)
    return {
        "set-itop": methods.set_itop(density, every=2),
        "set-drawn": methods.set_(density, every=2, newborn_std=0.1),
        "set-grace": methods.set_(density, every=2, grace=5),
        "rigl-itop": methods.rigl_itop(density, every=3),
        "rebalance": methods.rebalance(density, every=3, fraction=0.5, target=2.0),
        "rigl-grace": methods.rigl(density, every=3, fraction=0.5, grace=4),
        "deepr": methods.deepr(density, temperature=1e-3),
        "deepr-global": methods.deepr(density, temperature=1e-3, every=2, scope="global"),
        "dsr": methods.dsr(density, every=2, target=0.2, threshold=0.02),
        "dsr-fixed": methods.dsr(density, every=2, target=20, threshold=0.02, reallocate=False, grace=3),
        "snfs": methods.snfs(density, every=3),
        "snfs-fixed": methods.snfs(density, every=3, reallocate=False),
        "snfs-random": methods.snfs(density, every=3, grow="random"),
        "snfs-drop": methods.snfs(density, every=3, drop="momentum", grace=4),
        "topkast": methods.topkast(density, every=2, decay=0.0 if density == 1 else 1e-2),
        "topkast-global": methods.topkast(density, backward=reach, decay=0.0, scope="global"),
        "srigl": methods.srigl(density, every=3, fraction=0.5),
        "ste": methods.ste(density, every=2),
        "ste-global": methods.ste(density, scope="global"),
        "sr-ste": methods.sr_ste(1.0 if density == 1 else 0.5, decay=1e-2, group=2),
        "sr-ste-free": methods.sr_ste(density, decay=1e-2, group=None),
        "one-shot": methods.one_shot(density, at=5),
        "one-shot-layer": methods.one_shot(density, at=0.5, scope="layer", allocation="erk"),
        "gmp": methods.gmp(density, every=2, stop=0.6),
        "gmp-global": methods.gmp(density, every=3, start=2, stop=9, initial=max(density, 0.8), scope="global"),
        "granet": methods.granet(density, every=2),
    }


@functools.cache
def examples(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """The batches that first supports are scored on: one list, so that methods made twice are equal."""
    return batches(shape, 4, seed=6)


def scored_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy; of a model that returns its loss, that."""
    return output if output.ndim == 0 else nn.functional.cross_entropy(output, target)


def foresight_methods(density: float = 0.3, shape: tuple[int, ...] = (20,)) -> dict[str, gossamer.Method]:
    """First supports that are scored: of each kind under static, and some under every kind of dynamic method."""
    data: dict[str, Any] = {"data": examples(shape), "loss": scored_loss}
    flow, force = foresight.synflow(shape, rounds=5), foresight.force(rounds=4, **data)
    inits = {
        "magnitude": foresight.magnitude(),
        "magnitude-layer": foresight.magnitude(scope="layer"),
        "snip": foresight.snip(batches=2, **data),
        "snip-eval": foresight.snip(batch_norm="eval", allow_collapse=True, **data),
        "snip-layer": foresight.snip(scope="layer", **data),
        "snip-lowest": dataclasses.replace(foresight.snip(**data), invert=True),
        "iter-snip": dataclasses.replace(foresight.iter_snip(rounds=3, **data), schedule="linear", batches=2),
        "force": force,
        "force-random": foresight.force(rounds=4, positions="random", **data),
        "grasp": foresight.grasp(**data),
        "synflow": flow,
        "synflow-random": foresight.synflow(shape, rounds=5, positions="random"),
    }
    dynamic = {
        "set-force": methods.set_(density, every=2, init=force),
        "rigl-synflow": methods.rigl(density, every=3, fraction=0.5, init=flow),
        "rigl-synflow-global": methods.rigl(density, every=3, fraction=0.5, scope="global", init=flow),
        "srigl-synflow": methods.srigl(density, every=3, fraction=0.5, init=flow),
        "deepr-synflow": methods.deepr(density, temperature=0.1, init=flow),
        "dsr-force": methods.dsr(density, every=2, target=0.2, threshold=0.2, init=force),
        "rewire-synflow": methods.rewire(density, exploit=gossamer.Reset(3), init=flow),
        "topkast-synflow": methods.topkast(density, every=2, decay=0.0 if density == 1 else 1e-2, init=flow),
    }
    if density < 1:  # starts dense otherwise
        dynamic["granet-synflow"] = methods.granet(density, every=2, init=flow)
    return {f"static-{name}": methods.static(density, init=init) for name, init in inits.items()} | dynamic


def needs_momentum(method: gossamer.Method) -> bool:
    """Whether it looks at the optimizer's momentum."""
    return "momentum" in method.needs


def runs(method: gossamer.Method, optimizer: str) -> bool:
    """Whether the method may be run by the optimizer."""
    return not (is_live(method) and optimizer == "lbfgs") and not (needs_momentum(method) and optimizer in NO_MOMENTUM)


def cases(density: float = 0.3) -> list[tuple[str, str]]:
    """(method, optimizer): basic methods under every optimizer, the others under a few, scored supports under two."""
    found = [(name, method, list(OPTIMIZERS)) for name, method in basic_methods(density).items()]
    found += [(name, method, sorted(FEW)) for name, method in further_methods(density).items()]
    found += [(name, method, ["adamw", "sgd-momentum"]) for name, method in foresight_methods(density).items()]
    return [(name, optimizer) for name, method, names in found for optimizer in names if runs(method, optimizer)]


def some_optimizer(method: gossamer.Method, otherwise: str = "sgd") -> str:
    """A plain optimizer that the method accepts."""
    return "sgd-momentum" if needs_momentum(method) else otherwise


def grows_dense(sparsifier: gossamer.Sparsifier) -> bool:
    """Whether the backward pass of the step that comes next is to let the dense gradient through."""
    method, step = sparsifier.method, sparsifier.step
    if isinstance(method.inactive, gossamer.Live) or method.inactive.slots == "keep":
        return True
    return "grad" in method.rule.needs and method.clock.due(step if method.at == "replace" else step + 1)


def is_live(method: gossamer.Method) -> bool:
    """Whether inactive weights keep a value."""
    return isinstance(method.inactive, gossamer.Live)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name}: {(a[name] - b[name]).abs().max()}"


def equal_trees(a: object, b: object) -> bool:
    """Whether two nests of mappings, tensors and values are the same."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal_trees(a[key], b[key]) for key in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


@contextmanager
def sparse_run(
    model: nn.Module, method: gossamer.Method, optimizer: str, total: int = STEPS, targets: list[str] | None = None
) -> Iterator[tuple[gossamer.Sparsifier, list[torch.optim.Optimizer]]]:
    """Attach, yield, detach."""
    optimizers = make_optimizer(optimizer, model)
    sparsifier = gossamer.sparsify(model, method, optimizers, total_steps=total, targets=targets, seed=3)
    yield sparsifier, optimizers
    sparsifier.detach()


def trained(
    method: Method | None, optimizer: str, steps: int = STEPS, make: Callable[[], nn.Sequential] = mlp
) -> dict[str, Tensor]:
    """All parameters after some steps; None trains densely."""
    model = make()
    inputs = model[0].in_features if isinstance(model[0], nn.Linear) else 0
    data = batches((inputs,), steps)
    if method is None:
        optimizers = make_optimizer(optimizer, model)
        for batch in data:
            train_step(model, optimizers, batch)
        return weights(model)
    with sparse_run(model, method, optimizer, total=steps) as (_, optimizers):
        for batch in data:
            train_step(model, optimizers, batch)
    return weights(model)
