"""Every named method inherits the kit, also one that is added tomorrow.

Their oracles are compared in `test_oracles`; here, three show that the kit does.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from gossamer import Learned, Method, foresight, methods
from gossamer.testing import LearnedLaws, MethodLaws, Task, TicketLaws, not_applicable
from gossamer.testing.conformance_lab import batches
from gossamer.testing.oracles import Trace, rigl_oracle, set_oracle, static_oracle
from gossamer.tickets import Tickets
from gossamer.topology import Cosine, Linear, scores

LAWS: dict[type, type] = {Method: MethodLaws, Learned: LearnedLaws, Tickets: TicketLaws}


def static(laws: MethodLaws, task: Task) -> Trace:
    return static_oracle(*task.common)


def set_(laws: MethodLaws, task: Task) -> Trace:
    end = task.total_steps
    return set_oracle(*task.common, every=2, stop=end, fraction=Linear(0.3, end=end), draw=task.draw)


def rigl(laws: MethodLaws, task: Task) -> Trace:
    end = task.total_steps
    return rigl_oracle(*task.common, every=3, stop=end, fraction=Cosine(0.5, end=end))


EXAMPLES = batches()  # one list, so that methods made twice are equal; pickled, data are copied and no longer the same
ELSEWHERE = not_applicable("its examples are of one shape; TestRiglFromForce and test_zeros have convolutions")
SCORED = {
    "moves": False,
    "picklable": False,
    "test_it_trains_convolutions_small_and_single_layers": ELSEWHERE,
}

# What differs from the ordinary setting: name -> (arguments, what the class says beside `make`)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "snip": ({"data": EXAMPLES}, SCORED),
    "iter-snip": ({"data": EXAMPLES, "rounds": 5}, SCORED),
    "force": ({"data": EXAMPLES, "rounds": 5}, SCORED),
    "grasp": ({"data": EXAMPLES}, SCORED),
    "synflow": ({"inputs": (16,), "rounds": 10}, {"moves": False}),
    "magnitude": ({"inputs": (16,)}, {"moves": False, "density": 0.5}),
    "deepr": ({"l1": 1e-2, "temperature": 1e-4}, {}),
    "dsr": ({"threshold": 0.02}, {}),
    "rigl": ({"every": 3, "fraction": 0.5, "stop": 1.0}, {"oracle": rigl}),
    "set": ({}, {"oracle": set_}),
    "srigl": ({"every": 3, "fraction": 0.5, "stop": 1.0}, {}),
    "static": ({}, {"moves": False, "oracle": static}),
    "cs": ({"penalty": 1e-3}, {}),
    "lottery": ({"levels": 2, "rewind": 0.25}, {}),
    "str": ({"s_init": -2.5}, {"starts_dense": False}),
}


def laws_of(name: str) -> type:
    """A method that has a period rewires every second step."""
    build = methods.REGISTRY[name].build
    special, attributes = SETTINGS.get(name, ({}, {}))
    period = {"every": 2} if "every" in inspect.signature(build).parameters else {}
    arguments = period | special

    def make(self: Any, density: float) -> Any:
        return build(density, **arguments)

    (laws,) = (laws for kind, laws in LAWS.items() if isinstance(build(0.25), kind))
    return type(f"Test{name.title().replace('-', '')}", (laws,), {"make": make, **attributes})


for _name in methods.REGISTRY:
    _laws = laws_of(_name)
    globals()[_laws.__name__] = _laws


class TestGlobalRigl(MethodLaws):
    def make(self, density: float) -> Method:
        return methods.rigl(density, every=3, fraction=0.5, stop=1.0, scope="global")


class TestProtectedSetWithDrawnNewborns(MethodLaws):
    def make(self, density: float) -> Method:
        return methods.set_(density, every=2, grace=3, newborn_std=0.1)


def fitting(model: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of the 16 inputs make images of 4 x 4 x 4 for the convolutional model of the laws."""
    inputs, target = batch
    images = next(model.parameters()).ndim == 4
    return model(inputs.repeat(1, 4).view(-1, 4, 4, 4) if images else inputs), target


class TestRiglFromForce(MethodLaws):
    picklable = False

    def make(self, density: float) -> Method:
        first = foresight.force(EXAMPLES, rounds=5, forward=fitting)
        return methods.rigl(density, every=3, fraction=0.5, stop=1.0, init=first)


class TestSetFromSynflowWithinLayers(MethodLaws):
    def make(self, density: float) -> Method:
        first = foresight.synflow((16,), rounds=5, scope="layer")
        return methods.set_(density, every=2, allocation="uniform", init=first)


class TestGlobalStatic(MethodLaws):
    moves = False

    def make(self, density: float) -> Method:
        return Method(name="global static", density=density, init=scores.magnitude, scope="global")


class TestGlobalLotteryWithoutRewinding(TicketLaws):
    def make(self, density: float) -> Tickets:
        return methods.lottery(density, keep=0.6, rewind=3, mode="none", scope="global")


def test_settings_are_of_methods() -> None:
    assert set(SETTINGS) <= set(methods.REGISTRY)
    assert {"gmp", "granet", "rewire", "rigl-itop", "snfs", "sr-ste", "ste", "topkast"} <= set(methods.REGISTRY)
