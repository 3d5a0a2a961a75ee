"""How supports move while a network trains: flips, survival of newborns, exploration, distances, active zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CheckpointError, ConfigError
from ..sparse_layer import is_sparse_layer
from ..targets import canonical
from ..topology import Support
from ._weight import Tally, Weight, distance

Masks = Mapping[str, Tensor]

# The row of a model without sparsifier: nothing is rewired and nothing else can be said.
UNWATCHED: Mapping[str, Any] = {
    "rewirings": 0,
    "flips": None,
    "flip_rate": None,
    "survival": None,
    "explored": None,
    "distance_first": None,
    "distance_last": None,
    "active_zeros": None,
    "counts": {},
}


class Watched(Protocol):
    """What `Exploration` needs of a controller such as `Sparsifier`."""

    @property
    def supports(self) -> Mapping[str, Support]:
        """Weight name -> its support now."""

    def watch(self, observer: Callable[[int, Masks, Masks], None], /) -> Any:
        """Call `observer(step, before, after)` after every rewiring; returns a handle with `remove()`."""


@dataclass(frozen=True)
class WeightTopology:
    """What happened to one weight since watching began; shares as in `Exploration.row`.

    count of numel entries are active. flips: entries that entered or left, summed over all rewirings.
    """

    name: str
    numel: int
    count: int
    flips: int
    survival: float | None
    explored: float
    distance_first: float
    active_zeros: int


class Exploration:
    """Measures how the supports of a training network move; it changes nothing.

    Watching begins with the call; rewirings before it are unknown. It costs a few passes over the masks that change per
    rewiring; in memory, at most 2 bits per eligible entry, and 2 bytes more where the support of a weight has changed.

    Soft gates (a learned method, before they are cut) change supports without a rewiring: rows see these supports as
    they are at the rows, and the cut counts as one rewiring, from all weights to the support.

    sparsifier: what `sparsify` returned, or another object with its `supports` and `watch`.
    model: the model that was made sparse, wrapped or not.

    Source: R_s of Liu et al. 2021 (2102.02887), survival of newborns of Numenta's nupic.research, distance as the
    sparse architecture divergence of Zhou et al. 2021 (2102.04010), over all eligible entries.

    With sharded weights (FSDP2), creating it, `row`, `by_weight` and `load_state_dict` are collectives.

    Raises:
        ConfigError: the model has no such weights.

    >>> import torch, gossamer
    >>> model = torch.nn.Linear(10, 10)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> sparsifier = gossamer.sparsify(model, gossamer.methods.static(0.2), optimizer)
    >>> Exploration(sparsifier, model).row()["explored"]
    0.2
    """

    def __init__(self, sparsifier: Watched, model: nn.Module) -> None:
        """As the class says."""
        modules = {canonical(f"{path}." if path else ""): m for path, m in model.named_modules(remove_duplicate=False)}
        self._sparsifier = sparsifier
        self._weights: dict[str, Weight] = {}
        for name in sparsifier.supports:
            prefix, dot, attribute = name.rpartition(".")
            module = modules.get(prefix + dot)
            if module is None or not (hasattr(module, attribute) or is_sparse_layer(module)):
                raise ConfigError(
                    f"the model has no weight {name}, which the sparsifier trains; pass the model given to sparsify()"
                )
            self._weights[name] = Weight(module, attribute)
        self._rewirings, self._reported = 0, Tally()  # rewirings and sums: since the last row, up to the last row
        self._handle: RemovableHandle = sparsifier.watch(self._rewired)

    def remove(self) -> None:
        """Stop watching; what was measured stays."""
        self._handle.remove()

    @torch.no_grad()
    def _rewired(self, step: int, before: Masks, after: Masks) -> None:
        self._rewirings += 1
        for name, weight in self._weights.items():
            weight.rewired(before[name], after[name])

    @property
    def _total(self) -> Tally:
        return sum((weight.tally for weight in self._weights.values()), start=Tally())

    def _look(self) -> Mapping[str, Support]:
        now = self._sparsifier.supports
        for name, weight in self._weights.items():
            weight.look(now[name])
        return now

    @torch.no_grad()
    def row(self) -> dict[str, Any]:
        """Figures over all watched weights together, since the last call where they are sums; flat, ready for JSON.

        Returns:
            rewirings: how many happened since the last row.
            flips: entries that entered or left the supports, mean per rewiring; None without a rewiring.
            flip_rate: the same as a fraction of all eligible entries.
            survival: of the entries grown at a rewiring, the share still active after the next one; pooled over the
                next ones since the last row, None if nothing was judged.
            explored: R_s, the fraction of eligible entries that were active at some time; never decreases.
            distance_first, distance_last: fraction of eligible entries in which the supports differ from the first
                ones, and from those of the last row (or the first).
            active_zeros: active entries whose value is exactly 0, now.
            counts: weight name -> active entries, now.
        """
        now, weights = self._look(), self._weights
        eligible = sum(support.numel for support in now.values())
        since, rewirings = self._total - self._reported, self._rewirings
        flips = since.flips / rewirings if rewirings else None
        row = {
            "rewirings": rewirings,
            "flips": flips,
            "flip_rate": None if flips is None else flips / eligible,
            "survival": since.survival,
            "explored": sum(w.explored(now[name]) for name, w in weights.items()) / eligible,
            "distance_first": sum(distance(now[name], w.first) for name, w in weights.items()) / eligible,
            "distance_last": sum(distance(now[name], w.reported) for name, w in weights.items()) / eligible,
            "active_zeros": sum(w.zeros(now[name]) for name, w in weights.items()),
            "counts": {name: now[name].count for name in weights},
        }
        self._rewirings, self._reported = 0, self._total
        for name, weight in weights.items():
            weight.reported = now[name].compact()
        return row

    @torch.no_grad()
    def by_weight(self) -> list[WeightTopology]:
        """One line per watched weight, over the whole time of watching; does not start a new row."""
        now = self._look()
        return [
            WeightTopology(
                name=name,
                numel=now[name].numel,
                count=now[name].count,
                flips=weight.tally.flips,
                survival=weight.tally.survival,
                explored=weight.explored(now[name]) / now[name].numel,
                distance_first=distance(now[name], weight.first) / now[name].numel,
                active_zeros=weight.zeros(now[name]),
            )
            for name, weight in self._weights.items()
        ]

    # -- saving --

    def state_dict(self) -> dict[str, Any]:
        """Everything that later rows depend on, in tensors, numbers, strings and dicts."""
        return {
            "rewirings": self._rewirings,
            "reported": asdict(self._reported),
            "weights": {name: weight.state() for name, weight in self._weights.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; later rows go on from there. Load the sparsifier's own state first.

        Raises:
            CheckpointError: the state is damaged or of another model; nothing is changed then.
        """
        try:
            rewirings, reported = int(state["rewirings"]), Tally.from_state(state["reported"])
            if type(state["rewirings"]) is not int or rewirings < 0:
                raise ValueError(f"rewirings is {state['rewirings']!r}")
            saved, now = state["weights"], self._sparsifier.supports
            if saved.keys() != self._weights.keys():
                odd = ", ".join(sorted(saved.keys() ^ self._weights.keys())[:3])
                raise CheckpointError(f"the watched weights differ: {odd}")
            read = {name: self._read(name, saved[name], now[name]) for name in self._weights}
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the saved topology metrics do not fit ({type(error).__name__}: {error}); pass what state_dict() of "
                "an Exploration of the same model returned"
            ) from error
        self._rewirings, self._reported, self._weights = rewirings, reported, read

    def _read(self, name: str, saved: Mapping[str, Any], now: Support) -> Weight:
        try:
            return self._weights[name].read(saved, now)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
