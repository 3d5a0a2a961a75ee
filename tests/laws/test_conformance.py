"""Every named method inherits the kit, also one that is added tomorrow.

Their oracles are compared in `test_oracles`; here, three show that the kit does.
"""

from __future__ import annotations

import inspect
from typing import Any

from gossamer import Method, methods
from gossamer.testing import MethodLaws, Task, Trace
from gossamer.testing.oracles import rigl_oracle, set_oracle, static_oracle
from gossamer.topology import Cosine, Linear, scores

METHODS = {name: info for name, info in methods.REGISTRY.items() if isinstance(info.build(0.25), Method)}


def static(laws: MethodLaws, task: Task) -> Trace:
    return static_oracle(*task.common)


def set_(laws: MethodLaws, task: Task) -> Trace:
    end = task.total_steps
    return set_oracle(*task.common, every=2, stop=end, fraction=Linear(0.3, end=end), draw=task.draw)


def rigl(laws: MethodLaws, task: Task) -> Trace:
    end = task.total_steps
    return rigl_oracle(*task.common, every=3, stop=end, fraction=Cosine(0.5, end=end))


# What differs from the ordinary setting: name -> (arguments, what the class says beside `make`)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "deepr": ({"l1": 1e-2, "temperature": 1e-4}, {}),
    "dsr": ({"threshold": 0.02}, {}),
    "rigl": ({"every": 3, "fraction": 0.5, "stop": 1.0}, {"oracle": rigl}),
    "set": ({}, {"oracle": set_}),
    "srigl": ({"every": 3, "fraction": 0.5, "stop": 1.0}, {}),
    "static": ({}, {"moves": False, "oracle": static}),
}


def laws_of(name: str) -> type[MethodLaws]:
    """A method that has a period rewires every second step."""
    build = METHODS[name].build
    special, attributes = SETTINGS.get(name, ({}, {}))
    period = {"every": 2} if "every" in inspect.signature(build).parameters else {}
    arguments = period | special

    def make(self: MethodLaws, density: float) -> Method:
        return build(density, **arguments)  # type: ignore[no-any-return]

    return type(f"Test{name.title().replace('-', '')}", (MethodLaws,), {"make": make, **attributes})


for _name in METHODS:
    _laws = laws_of(_name)
    globals()[_laws.__name__] = _laws


class TestGlobalRigl(MethodLaws):
    def make(self, density: float) -> Method:
        return methods.rigl(density, every=3, fraction=0.5, stop=1.0, scope="global")


class TestProtectedSetWithDrawnNewborns(MethodLaws):
    def make(self, density: float) -> Method:
        return methods.set_(density, every=2, grace=3, newborn_std=0.1)


class TestGlobalStatic(MethodLaws):
    moves = False

    def make(self, density: float) -> Method:
        return Method(name="global static", density=density, init=scores.magnitude, scope="global")


def test_settings_are_of_methods() -> None:
    assert set(SETTINGS) <= set(METHODS)
    assert {"gmp", "granet", "rewire", "rigl-itop", "snfs", "sr-ste", "ste", "topkast"} <= set(METHODS)
