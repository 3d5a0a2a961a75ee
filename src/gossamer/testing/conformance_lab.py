"""What the laws are tried on: small models, batches, training runs; and how a broken law is told."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ..errors import GossamerError
from ..method import Method
from ..sparsifier import Sparsifier
from ..topology import Constant

STEPS = 12  # of an ordinary run
OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD with momentum": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda parameters: AdamW(parameters, lr=0.01, weight_decay=0.1),
}
Batch = tuple[Tensor, Tensor]
Masks = dict[str, Tensor]


def law(holds: object, message: str) -> None:
    """Raise AssertionError with `message` unless `holds`; works under ``python -O``."""
    if not holds:
        raise AssertionError(message)


def not_applicable(reason: str) -> Callable[[Any], None]:
    """A law that is skipped, with its reason: ``test_... = not_applicable("why")`` in the class of laws."""

    def skipped(self: Any) -> None:
        raise SkipTest(reason)

    return skipped


def run_laws(laws: object) -> dict[str, str]:
    """Run every ``test_*`` method of `laws` without a test runner; return "passed" or why it was skipped, by name.

    Raises:
        AssertionError, or whatever else the first broken law raises.
    """
    outcome = {}
    for name in sorted(name for name in dir(laws) if name.startswith("test_")):
        try:
            getattr(laws, name)()
            outcome[name] = "passed"
        except SkipTest as skip:
            outcome[name] = f"skipped: {skip}"
    return outcome


# -- models and data -------------------------------------------------------------------------------------------


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators, and put them back afterwards."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def global_state() -> tuple[Any, ...]:
    """The state of the global generators, comparable."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), kind, list(keys), rest, random.getstate()


def mlp() -> nn.Module:
    """16-12-8-4 with a LayerNorm; every input dimension divides by 4."""
    return nn.Sequential(nn.Linear(16, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))


def convnet() -> nn.Module:
    """A convolution, a depthwise and a grouped one, a linear layer; input 4 x 4 x 4."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


def tiny_layers() -> nn.Module:
    """Weights of 16, 1 and 4 entries."""
    return nn.Sequential(nn.Linear(16, 1), nn.Tanh(), nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 4))


def one_layer() -> nn.Module:
    """A single linear layer."""
    return nn.Sequential(nn.Linear(16, 4))


def make_model(build: Callable[[], nn.Module] = mlp, seed: int = 0) -> nn.Module:
    """Build a model whose initial values depend on `seed` alone."""
    with global_seed(seed):
        return build()


def batches(n: int = STEPS, shape: tuple[int, ...] = (16,), dtype: torch.dtype = torch.float32) -> list[Batch]:
    """n batches of 8 examples of 4 classes, the same at every call."""
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, *shape, generator=g).to(dtype), torch.randint(4, (8,), generator=g)) for _ in range(n)]


def loss_of(model: Callable[..., Any], batch: Batch) -> Tensor:
    """Cross entropy, in float32."""
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])


# -- a run -----------------------------------------------------------------------------------------------------


@dataclass
class Training:
    """A model in training, with whatever controller."""

    model: nn.Module
    optimizer: Optimizer
    sparsifier: Any

    def step(self, batch: Batch, loss: Callable[[Any, Batch], Tensor] = loss_of) -> float:
        """One ordinary step of training."""
        self.optimizer.zero_grad()
        value = loss(self.model, batch)
        value.backward()
        self.optimizer.step()
        return float(value.detach())

    def masks(self) -> Masks:
        """Copies of the supports."""
        return {name: support.mask.clone() for name, support in self.sparsifier.supports.items()}

    def values(self) -> dict[str, Tensor]:
        """Copies of all parameters and of all optimizer slots."""
        found = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            for slot, value in self.optimizer.state.get(p, {}).items():
                found[f"{name} ({slot})"] = torch.as_tensor(value).clone()
        return found

    def save(self) -> bytes:
        """Model, optimizer and sparsifier as a file that holds data only."""
        file = io.BytesIO()
        torch.save({part: getattr(self, part).state_dict() for part in ("model", "optimizer", "sparsifier")}, file)
        return file.getvalue()

    def load(self, file: bytes, order: tuple[str, ...] = ("model", "optimizer", "sparsifier")) -> None:
        """Take over what `save` returned."""
        state = torch.load(io.BytesIO(file), weights_only=True)
        for part in order:
            getattr(self, part).load_state_dict(state[part])


@dataclass
class Run(Training):
    """A model in training by a `Method`. rewirings: (step, masks before, masks after) so far."""

    sparsifier: Sparsifier
    rewirings: list[tuple[int, Mapping[str, Tensor], Mapping[str, Tensor]]] = field(default_factory=list)

    @property
    def method(self) -> Method:
        """The method, times in steps."""
        return self.sparsifier.method

    def values(self) -> dict[str, Tensor]:
        """And copies of the trainable weights of a live method."""
        sites = self.sparsifier.sites.items()
        trainable = {
            f"{name} (trainable)": site.trainable.clone() for name, site in sites if site.trainable is not None
        }
        return super().values() | trainable


def start(
    method: Method,
    model: nn.Module | None = None,
    optimizer: str = "SGD with momentum",
    steps: int = STEPS,
    seed: int = 3,
) -> Run:
    """Attach `method` to a model (default `mlp`) that is to be trained for `steps` steps."""
    model = make_model() if model is None else model
    made = OPTIMIZERS[optimizer](list(model.parameters()))
    run = Run(model, made, Sparsifier(model, method, made, total_steps=steps, seed=seed))
    run.sparsifier.watch(lambda step, before, after: run.rewirings.append((step, dict(before), dict(after))))
    return run


# -- what must hold of a method --------------------------------------------------------------------------------


def refused(attempt: Callable[[], object]) -> bool:
    """Whether the library raises one of its own errors."""
    try:
        attempt()
    except GossamerError:
        return True
    return False


def check_densities_refused(make: Callable[[float], object]) -> None:
    """Densities outside (0, 1] are refused at once."""
    for density in (0.0, -0.1, 1.5, math.nan, math.inf):
        law(refused(functools.partial(make, density)), f"make({density}) was not refused")


def check_value(method: Any, again: Any, kind: type, picklable: bool) -> None:
    """Frozen, equal to itself made again (and then of the same hash), and the same after pickling."""
    law(isinstance(method, kind), f"make() returned a {type(method).__name__}, expected a {kind.__name__}")
    law(method == again, "made twice it is not equal: hold numbers in frozen dataclasses, not in closures")
    try:
        same_hash = hash(method) == hash(again)
    except TypeError:  # a part is a mapping
        same_hash = True
    law(same_hash, "equal methods have different hashes")
    try:
        method.name = "another"
    except dataclasses.FrozenInstanceError:
        pass
    else:
        law(False, "a field can be assigned to: it is not frozen")
    law(method.name and method.name in repr(method), "its repr does not show its name")
    law(all(method.choices.cells()), f"a choice is not described: {method.choices}")
    law(copy.deepcopy(method) == method, "a deep copy is not equal")
    if picklable:
        law(pickle.loads(pickle.dumps(method)) == method, "unpickled it is not equal")


# -- what must hold of a run -----------------------------------------------------------------------------------


def check_zeros(run: Run, where: str) -> None:
    """Exactly +0 off the support."""
    for name, site in run.sparsifier.sites.items():
        off = site.parameter.detach()[~run.sparsifier.supports[name].mask]
        law(not off.count_nonzero(), f"{where}: {name} is not zero off its support")
        law(not torch.signbit(off).any(), f"{where}: {name} holds -0.0 off its support, expected +0.0")


def check_budget(run: Run, where: str) -> None:
    """As many entries are active as `Method.budget` and the density schedule say."""
    method, sites = run.method, run.sparsifier.sites
    step = run.rewirings[-1][0] if run.rewirings else 0
    expected = method.counts({name: site.shape for name, site in sites.items()}, step)
    held = {name: support.count for name, support in run.sparsifier.supports.items()}
    told = f"{where}: counts are {held}, at step {step} the method states {expected}"
    law(all(type(count) is int for count in expected.values()), f"{where}: counts are no whole numbers: {expected}")
    law(all(count >= 1 for count in held.values()), f"{told}: a weight is empty")
    if method.budget == "at most":
        law(all(held[name] <= expected[name] for name in held), f"{told} at most")
        return
    law(sum(held.values()) == sum(expected.values()), f"{told}: the totals differ")
    if method.budget == "each":
        slack = 0 if isinstance(method.density, Constant) else 1  # a falling density may be rounded elsewhere
        law(all(abs(held[name] - expected[name]) <= slack for name in held), told)


def check_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], where: str) -> None:
    """Bit for bit."""
    law(a.keys() == b.keys(), f"{where}: one has {sorted(a.keys() ^ b.keys())}, the other has not")
    for name in a:
        law(torch.equal(a[name], b[name]), f"{where}: {name} differs")
