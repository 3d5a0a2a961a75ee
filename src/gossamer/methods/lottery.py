"""Lottery tickets: train dense, keep the largest weights, train these from an early step on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..tickets import Tickets
from ..topology import Allocation
from ._registry import named


@named(
    "lottery",
    needs="a dense training for the first level, and another training for each further one",
    source="Frankle and Carbin 2019 (1803.03635); rewinding: Frankle et al. 2020 (1912.05671), Renda et al. 2020 "
    "(2003.02389)",
)
def lottery(
    density: float,
    levels: int | None = None,
    keep: float | None = None,
    rewind: int | float = 0.05,
    mode: Literal["weights", "learning_rate", "none"] = "weights",
    scope: Literal["layer", "global"] = "layer",
    allocation: Allocation | str | Mapping[str, Any] = "uniform",
) -> Tickets:
    """Lottery tickets: train, keep the largest weights, go back to an early step, and again.

    In symbols: train dense from step 0 to T, remember w at step epsilon; L times: keep the largest |w_T| of the active
    weights, set w to m * w_epsilon, train from epsilon to T with the learning rate and data of epsilon.

    levels: L, prunings in equal geometric steps. keep: 1 - p, the share a level keeps, instead of `levels`: 0.8 is
        iterative magnitude pruning. Neither: one-shot, the seed paper's LOTTERY.
    rewind: epsilon, a step or a fraction of training; the seed paper takes 0.01 to 0.1, 0 is the original hypothesis.
    mode: "weights" sets weights, buffers and schedule back to epsilon, "learning_rate" only the schedule, "none"
        nothing: T - epsilon more steps with the last learning rate.
    scope: "layer" prunes each weight on its own, "global" all by one threshold, each keeps at least one entry.
    allocation: with "layer", what each weight keeps in the end; "uniform" is the same share of each.

    `gossamer.lottery.find_ticket` runs it in your training loop, the command line in its own; `sparsify` cannot, since
    it takes several trainings: T + L (T - epsilon) steps in all, the ticket's own included.
    """
    return Tickets(
        name="lottery",
        density=density,
        levels=levels,
        keep=keep,
        rewind=rewind,
        mode=mode,
        scope=scope,
        allocation=allocation,
    )
