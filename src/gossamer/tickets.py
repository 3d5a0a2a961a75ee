"""A lottery-ticket method is a value: how much each level prunes, and where training goes back to after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .choices import Choices
from .errors import ConfigError, check_choice
from .topology import Allocation, check_density, resolve_allocation
from .topology.schedules import check_time, to_step

_FRACTION_ERROR = 1e-9  # keep ** levels may miss the density it stands for by rounding
_MOST_LEVELS = 100  # each is a whole training, and its support is kept; the papers prune up to some 30 times


@dataclass(frozen=True, kw_only=True)
class Tickets:
    """A frozen ticket method; `gossamer.lottery.find_ticket` runs it.

    density: of the ticket. levels: prunings in equal geometric steps, 100 at most; None: as many as `keep` needs, or
        one.
    keep: share of the active weights that each level keeps, in (0, 1); None: what `levels` makes it.
    rewind: epsilon, where training starts again after a pruning: a step, or a fraction of training.
    mode: what goes back to epsilon: "weights" (and with them the schedule), "learning_rate" (the schedule) or "none".
    scope: "layer" prunes each weight to its own count, "global" all of them by one threshold.
    allocation: the counts of the ticket with scope "layer"; "uniform" prunes every weight by the same share.

    >>> Tickets(name="imp", density=0.05, keep=0.8).depth
    14
    """

    name: str
    density: float
    levels: int | None = None
    keep: float | None = None
    rewind: int | float = 0.05
    mode: Literal["weights", "learning_rate", "none"] = "weights"
    scope: Literal["layer", "global"] = "layer"
    allocation: Allocation | str | Mapping[str, Any] = "uniform"

    def __post_init__(self) -> None:
        check_density(self.density)
        object.__setattr__(self, "allocation", resolve_allocation(self.allocation))
        check_time("rewind", self.rewind)
        check_choice("mode", self.mode, ("weights", "learning_rate", "none"))
        check_choice("scope", self.scope, ("layer", "global"))
        if self.levels is not None and self.keep is not None:
            raise ConfigError(
                f"levels={self.levels!r} and keep={self.keep!r} both say how much a level prunes; leave one of them out"
            )
        if self.levels is not None and (type(self.levels) is not int or self.levels < 1):
            raise ConfigError(f"levels={self.levels!r}: this is the number of prunings, a whole number >= 1")
        if self.keep is not None and not (type(self.keep) is float and 0 < self.keep < 1):
            raise ConfigError(f"keep={self.keep!r}: this is the share each level keeps, a fraction in (0, 1), e.g. 0.8")
        self._check_depth()

    def _check_depth(self) -> None:
        if self.depth <= _MOST_LEVELS:
            return
        most = f"each level is a whole training, and a search makes {_MOST_LEVELS} at most"
        if self.keep is None:
            raise ConfigError(f"levels={self.levels}: {most}; use fewer levels")
        raise ConfigError(
            f"keep={self.keep} takes {self.depth} levels to density={self.density}, but {most}; use a smaller keep, "
            "e.g. 0.8"
        )

    @property
    def depth(self) -> int:
        """L, the number of levels; one more training follows."""
        if self.keep is None:
            return self.levels or 1
        return max(1, math.ceil(math.log(self.density) / math.log(self.keep) - _FRACTION_ERROR))

    @property
    def choices(self) -> Choices:
        """What it chooses, in words."""
        times = "training" if self.depth == 1 else f"each of {self.depth} trainings"
        back = {"weights": "weights and schedule", "learning_rate": "schedule", "none": "nothing"}[self.mode]
        return Choices(
            init="dense",
            drop="magnitude",
            grow="-",
            where=self.scope,
            when=f"after {times}; {back} rewound",
            inactive="zero",
            gradient="none",
            newborn="-",
            budget="falling per layer" if self.scope == "layer" else "falling in all",
            structure="unstructured",
            omits=("rewire", "dense gradients"),
        )

    def again(self, total_steps: int) -> tuple[int, int]:
        """Return the steps (start, stop) that every training after the first one makes, of `total_steps` = T.

        From epsilon to T, so that learning rate and data are those of epsilon; in mode "none", which sets nothing
        back, as many steps from T on.

        Raises:
            ConfigError: `rewind` lies behind the end of training.
        """
        epsilon = to_step("rewind", self.rewind, total_steps)
        if epsilon > total_steps:
            raise ConfigError(f"rewind={self.rewind!r} is a step after the last one, {total_steps}; use a smaller one")
        return (total_steps, 2 * total_steps - epsilon) if self.mode == "none" else (epsilon, total_steps)

    def counts(self, shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, int], ...]:
        """Return the active entries after each level: of each weight, or with scope "global" ``{"": of all}``.

        The last level keeps ``round(density * N)`` in all, and of each weight what the allocation says, at least one.
        Before it, n becomes ``round(keep * n)``, or ``round(N * (n_L / N) ** (level / L))`` where `levels` is given,
        but no less than in the end.

        Raises:
            ConfigError: the density is too small for one entry per weight, or the allocation does not fit.
        """
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        last = resolve_allocation(self.allocation)(shapes, self.density)
        if self.scope == "global":
            sizes, last = {"": sum(sizes.values())}, {"": sum(last.values())}
        levels = [sizes]
        for level in range(1, self.depth):
            share = level / self.depth
            wanted = {
                name: self.keep * n if self.keep else sizes[name] * (last[name] / sizes[name]) ** share
                for name, n in levels[-1].items()
            }
            levels.append({name: max(round(n), last[name]) for name, n in wanted.items()})
        return (*levels[1:], last)
