"""The rows of the cost table: which method with which parts, and what the slides of DCTpS say of it in symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .. import methods
from ..errors import ConfigError, did_you_mean
from ..method import Method
from ..offsets import DCT, Offset
from ..tickets import Tickets

Build = Callable[[float, int, int], Method | Tickets | None]  # density, classes, batch


@dataclass(frozen=True)
class Order:
    """Orders of growth: compute of one m x n layer at first, in training and final, then bytes of the network.

    p: density of the layer, q = max(m, n), P: of the network, N: its weights, k: scorings, dT: steps between rewirings.
    """

    compute: tuple[str, str, str]
    size: tuple[str, str, str]


_FROM_DENSE = ("O(N)", "O(PN)", "O(PN)")
_SPARSE = ("O(PN)", "O(PN)", "O(PN)")
_FALLING = "O(mn) to O(pmn)"


@dataclass(frozen=True)
class CostRow:
    """One row.

    title: what is counted. build: (density, classes, batch) -> the method, None for dense training. order: as the
    slides have it, or ours in their notation. slides: whether it is theirs. offset: beside every weight.
    """

    name: str
    title: str
    build: Build
    order: Order
    slides: bool = False
    offset: Offset | None = None


def _order(start: str, training: str, final: str, size: tuple[str, str, str]) -> Order:
    return Order((start, training, final), size)


def _snip(density: float, classes: int, batch: int) -> Method:
    return methods.snip(density, allocation="uniform")


def _grasp(density: float, classes: int, batch: int) -> Method:
    """On ten examples of each class, as the authors."""
    return methods.grasp(density, batches=math.ceil(10 * classes / batch), allocation="uniform")


def _force(density: float, classes: int, batch: int) -> Method:
    """One batch a round for 10 classes, ten for 100, as the authors."""
    return methods.force(density, batches=max(1, classes // 10), allocation="uniform")


ROWS: dict[str, CostRow] = {
    row.name: row
    for row in (
        CostRow("dense", "dense training", lambda *_: None, _order("0", "O(mn)", "O(mn)", ("O(N)", "O(N)", "O(N)"))),
        CostRow(
            "random",
            "static, as many weights in every layer (EPL)",
            lambda density, *_: methods.static(density, allocation="equal_per_layer"),
            _order("0", "O(pmn)", "O(pmn)", _SPARSE),
            slides=True,
        ),
        CostRow(
            "imp",
            "lottery tickets: each level is a whole training and keeps 80 %",
            lambda density, *_: methods.lottery(density, keep=0.8, rewind=0),
            _order("0", _FALLING, "O(pmn)", ("O(N)", "O(N) to O(PN)", "O(PN)")),
            slides=True,
        ),
        CostRow("snip", "SNIP, one batch", _snip, _order("O(mn)", "O(pmn)", "O(pmn)", _FROM_DENSE)),
        CostRow("grasp", "GraSP, 10 examples per class", _grasp, _order("O(mn)", "O(pmn)", "O(pmn)", _FROM_DENSE)),
        CostRow(
            "force",
            "FORCE, 60 rounds of a batch for every 10 classes",
            _force,
            _order("O(mnk)", "O(pmn)", "O(pmn)", _FROM_DENSE),
            slides=True,
        ),
        CostRow(
            "synflow",
            "SynFlow, 100 rounds of one input of ones",
            lambda density, *_: methods.synflow(density, allocation="uniform"),
            _order("O(mnk)", "O(pmn)", "O(pmn)", _FROM_DENSE),
            slides=True,
        ),
        CostRow(
            "set",
            "SET, ERK",
            lambda density, *_: methods.set_(density, every=100),
            _order("0", "O(pmn)", "O(pmn)", _SPARSE),
        ),
        CostRow(
            "rigl",
            "RigL, ERK, dT = 100 until 3/4 of the training",
            lambda density, *_: methods.rigl(density),
            _order("0", "O(pmn + mn/dT)", "O(pmn)", _SPARSE),
            slides=True,
        ),
        CostRow(
            "rewire",
            "rewire: a dense gradient of the weights in every step, ERK",
            lambda density, *_: methods.rewire(density, allocation="erk"),
            _order("0", "O(mn)", "O(pmn)", ("O(N)", "O(N)", "O(PN)")),
        ),
        CostRow(
            "gmp",
            "gradual magnitude pruning until 3/4 of the training",
            lambda density, *_: methods.gmp(density),
            _order("0", _FALLING, "O(pmn)", ("O(N)", "O(N) to O(PN)", "O(PN)")),
        ),
        CostRow(
            "dctps",
            "DCTpS: static EPL beside the offset",
            lambda density, *_: methods.static(density, allocation="equal_per_layer"),
            _order("0", "O(q log q + pmn)", "O(q log q + pmn)", _SPARSE),
            slides=True,
            offset=DCT(),
        ),
        CostRow(
            "dctps-rigl",
            "DCTpS and RigL: RigL from EPL beside the offset",
            lambda density, *_: methods.rigl(density, allocation="equal_per_layer"),
            _order("0", "O(q log q + pmn + mn/dT)", "O(q log q + pmn)", _SPARSE),
            offset=DCT(),
        ),
    )
}


def rows_named(names: Iterable[str]) -> list[CostRow]:
    """Rows by name.

    Raises:
        ConfigError: there is none of that name.
    """
    found = []
    for name in names:
        if name not in ROWS:
            raise ConfigError(f"unknown row {name!r} of the cost table{did_you_mean(name, ROWS)}")
        found.append(ROWS[name])
    return found
