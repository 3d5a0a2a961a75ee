"""Topology metrics equal what the whole history of masks says, survive a save at any time and change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import Support, methods
from gossamer.analysis import UNWATCHED, Exploration
from gossamer.checkpoint import load, save
from gossamer.errors import CheckpointError, ConfigError
from gossamer.topology import Constant

SHAPES = {"a": (2, 4), "b": (4,)}


class Net(nn.Module):
    """Two parameters, which the tests fill as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.ones(shape)) for shape in SHAPES.values())


class Handle:
    def __init__(self, release: Callable[[], None]) -> None:
        self.remove = release


class Scripted:
    """A controller whose supports are told."""

    def __init__(self, **active: Sequence[int]) -> None:
        self.masks = self._masks(active)
        self.observers: list[Any] = []

    def _masks(self, active: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        return {name: Support.from_index(torch.tensor(on).long(), SHAPES[name]).mask for name, on in active.items()}

    @property
    def supports(self) -> dict[str, Support]:
        return {name: Support.from_mask(mask) for name, mask in self.masks.items()}

    def watch(self, observer: Any, /) -> Handle:
        self.observers.append(observer)
        return Handle(lambda: self.observers.remove(observer))

    def rewire(self, **active: Sequence[int]) -> None:
        """Weights that are not named keep their mask."""
        before, self.masks = self.masks, self.masks | self._masks(active)
        for observer in self.observers:
            observer(0, before, self.masks)


# -- hand-worked ---------------------------------------------------------------------------------------------------


def test_a_sequence_worked_by_hand() -> None:
    net, scripted = Net(), Scripted(a=[0, 1, 2], b=[0, 3])
    exploration = Exploration(scripted, net)
    start = exploration.row()
    assert start == {
        "rewirings": 0,
        "flips": None,
        "flip_rate": None,
        "survival": None,
        "explored": 5 / 12,
        "distance_first": 0,
        "distance_last": 0,
        "active_zeros": 0,
        "counts": {"a": 3, "b": 2},
    }
    assert list(start) == list(UNWATCHED)

    scripted.rewire(a=[0, 1, 3])  # 2 -> 3
    scripted.rewire(a=[0, 3, 4])  # 1 -> 4; 3 survives
    with torch.no_grad():
        net.a[0, 3] = net.a[0, 2] = 0.0  # an active and an inactive one
        net.b[3] = -0.0
    assert exploration.row() == {
        "rewirings": 2,
        "flips": 2,
        "flip_rate": 2 / 12,
        "survival": 1,
        "explored": (5 + 2) / 12,
        "distance_first": 4 / 12,
        "distance_last": 4 / 12,
        "active_zeros": 2,
        "counts": {"a": 3, "b": 2},
    }

    scripted.rewire(a=[0, 1, 5], b=[0])  # 3, 4 -> 1, 5, so 4 does not survive; b loses 3
    row = exploration.row()
    assert (row["rewirings"], row["flips"], row["survival"]) == (1, 5, 0)
    assert (row["explored"], row["distance_first"], row["distance_last"]) == (8 / 12, 3 / 12, 5 / 12)
    assert row["counts"] == {"a": 3, "b": 1}

    scripted.rewire(a=[0, 1, 5])  # an equal mask: both newborns of the last time survive
    row = exploration.row()
    assert (row["rewirings"], row["flips"], row["survival"], row["distance_last"]) == (1, 0, 1, 0)

    a, b = exploration.by_weight()
    assert (a.name, a.numel, a.count, a.flips, a.survival, a.explored) == ("a", 8, 3, 8, 3 / 4, 6 / 8)
    assert (b.name, b.numel, b.count, b.flips, b.survival, b.explored) == ("b", 4, 1, 1, None, 2 / 4)
    assert (a.distance_first, b.distance_first, a.active_zeros, b.active_zeros) == (2 / 8, 1 / 4, 0, 0)


def test_a_falling_density_has_flips_and_no_newborns() -> None:
    scripted = Scripted(a=range(8), b=range(4))
    exploration = Exploration(scripted, Net())
    scripted.rewire(a=range(4))
    scripted.rewire(a=range(2))
    row = exploration.row()
    assert (row["flips"], row["survival"], row["explored"], row["counts"]["a"]) == (3, None, 1, 2)


def test_supports_that_move_without_a_rewiring_are_seen_at_the_rows() -> None:
    """As those of soft gates do, until the cut takes them from all weights to a support."""
    scripted = Scripted(a=[0, 1], b=[2])
    exploration = Exploration(scripted, Net())
    assert exploration.row()["explored"] == 3 / 12
    for active, explored, first, last in (([1, 2], 4, 2, 2), ([2, 3], 5, 4, 2), ([0, 1], 5, 0, 4)):
        scripted.masks |= scripted._masks({"a": active})
        row = exploration.row()
        figures = (row["explored"], row["distance_first"], row["distance_last"])
        assert figures == (explored / 12, first / 12, last / 12)
        assert (row["rewirings"], row["flips"], row["survival"]) == (0, None, None)
    scripted.masks |= scripted._masks({"a": range(8)})
    scripted.rewire(a=[4])
    row = exploration.row()
    assert (row["rewirings"], row["flips"], row["explored"], row["distance_first"]) == (1, 7, 6 / 12, 3 / 12)


def test_removed_observers_see_nothing() -> None:
    scripted = Scripted(a=[0], b=[0])
    exploration = Exploration(scripted, Net())
    exploration.remove()
    scripted.rewire(a=[1])
    assert exploration.row()["rewirings"] == 0


# -- against the whole history -------------------------------------------------------------------------------------

POSITIONS = st.frozensets(st.integers(0, 7), max_size=8)


def literal(history: list[frozenset[int]], numel: int) -> dict[str, Any]:
    """All figures of the rewirings between history[0] and its end, from sets of positions."""
    pairs = list(pairwise(history))
    newborns = [now - before for before, now in pairs]
    judged = list(zip(newborns, history[2:], strict=False))
    born, survived = sum(len(new) for new, _ in judged), sum(len(new & now) for new, now in judged)
    return {
        "flips": sum(len(before ^ now) for before, now in pairs) / len(pairs),
        "survival": survived / born if born else None,
        "explored": len(frozenset().union(*history)) / numel,
        "distance_first": len(history[-1] ^ history[0]) / numel,
    }


@given(st.lists(POSITIONS, min_size=2, max_size=12))
def test_figures_equal_those_of_the_whole_history(history: list[frozenset[int]]) -> None:
    scripted, rest = Scripted(a=[*history[0]], b=[]), 4
    exploration = Exploration(scripted, Net())
    for active in history[1:]:
        scripted.rewire(a=[*active])
    row = exploration.row()
    expected = literal(history, 8 + rest)
    assert {key: row[key] for key in expected} == pytest.approx(expected)


@given(st.lists(POSITIONS, min_size=2, max_size=12))
def test_exploration_never_decreases_and_lies_between_density_and_one(history: list[frozenset[int]]) -> None:
    scripted, last = Scripted(a=[*history[0]], b=[1]), 0.0
    exploration = Exploration(scripted, Net())
    for active in history[1:]:
        scripted.rewire(a=[*active])
        explored = exploration.row()["explored"]
        assert max(last, (len(active) + 1) / 12) <= explored <= 1
        last = explored


@given(st.lists(st.tuples(POSITIONS, st.booleans()), min_size=1, max_size=10), st.integers(0, 9))
def test_a_state_saved_at_any_time_gives_the_same_rows(events: list[Any], at: int) -> None:
    def follow(exploration: Exploration, scripted: Scripted, some: list[Any]) -> list[Any]:
        rows = []
        for active, reports in some:
            scripted.rewire(a=[*active])
            rows += [exploration.row()] if reports else []
        return rows

    scripted = Scripted(a=[0, 1], b=[2])
    whole = Exploration(scripted, Net())
    follow(whole, scripted, events[:at])
    resumed_from, state = Scripted(a=[], b=[]), copy.deepcopy(whole.state_dict())
    resumed_from.masks = dict(scripted.masks)
    resumed = Exploration(resumed_from, Net())
    resumed.load_state_dict(state)
    assert follow(resumed, resumed_from, events[at:]) == follow(whole, scripted, events[at:])
    assert (resumed.row(), resumed.by_weight()) == (whole.row(), whole.by_weight())


# -- real training -------------------------------------------------------------------------------------------------


def _linear(n: int, lr: float = 0.0) -> tuple[nn.Linear, torch.optim.SGD]:
    torch.manual_seed(0)
    model = nn.Linear(n, n, bias=False)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, width: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, width, generator=generator)).square().mean().backward()
        optimizer.step()
        yield step


def test_random_growth_explores_as_predicted() -> None:
    """R_s = 1 - (1-d) (1-q)^50 with q = phi d / (1 - (1-phi) d): .825 at d = .1, phi = .3."""
    model, optimizer = _linear(200)
    method = methods.set_(0.1, fraction=Constant(0.3), every=1, split_signs=False)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=51)
    exploration = Exploration(sparsifier, model)
    rows = [exploration.row()]
    for _ in _train(model, optimizer, 50, 200):
        rows.append(exploration.row())
    hit = 0.3 * 0.1 / (1 - 0.7 * 0.1)
    for done, row in enumerate(rows):
        assert row["rewirings"] == bool(done)
        assert row["explored"] == pytest.approx(1 - 0.9 * (1 - hit) ** done, rel=0.01)
    assert rows[-1]["explored"] == pytest.approx(0.825, rel=0.01)
    assert [row["explored"] for row in rows] == sorted(row["explored"] for row in rows)


@pytest.mark.parametrize("grace", [0, 2])
def test_without_learning_the_newborns_are_what_is_dropped_next(grace: int) -> None:
    """They are zeros, and the smallest go first; a grace longer than the period forbids just that."""
    model, optimizer = _linear(40)
    method = methods.set_(0.25, fraction=Constant(0.3), every=1, split_signs=False)
    method = replace(method, rule=replace(method.rule, revive=False, grace=grace))
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=9)
    masks = [sparsifier.supports["weight"].mask]
    sparsifier.watch(lambda step, before, after: masks.append(after["weight"]))
    exploration = Exploration(sparsifier, model)
    rows = [exploration.row() for _ in _train(model, optimizer, 8, 40)]
    assert [row["flips"] for row in rows] == [240] * 8  # 0.3 of 400 active entries go, as many come
    assert [row["survival"] for row in rows] == [None] + [float(grace > 1)] * 7
    for before, now, after in zip(masks, masks[1:], masks[2:], strict=False):
        newborn, dropped = now & ~before, now & ~after
        assert not (dropped & newborn).any() if grace else torch.equal(dropped, newborn)
    if not grace:
        assert [row["active_zeros"] for row in rows] == [120] * 8


@pytest.mark.parametrize(("name", "every"), [("set", 3), ("rigl", 3), ("rewire", 1)])
def test_watching_changes_nothing_and_rows_add_up(name: str, every: int) -> None:
    def run(watch: bool) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        model, optimizer = _linear(30, lr=0.1)
        build = {"set": methods.set_, "rigl": methods.rigl, "rewire": methods.rewire}[name]
        sparsifier = gossamer.sparsify(model, build(0.2, every=every), optimizer, total_steps=20)
        exploration = Exploration(sparsifier, model) if watch else None
        rows = [exploration.row() for step in _train(model, optimizer, 20, 30) if exploration and step % 5 == 4]
        return model.state_dict(), rows

    (watched, rows), (alone, _) = run(True), run(False)
    assert all(torch.equal(watched[key], alone[key]) for key in alone)
    assert sum(row["rewirings"] for row in rows) >= 4
    assert all(row["counts"] == {"weight": 180} for row in rows)
    for row in rows:
        assert row["flip_rate"] == (None if row["flips"] is None else row["flips"] / 900)
        assert row["distance_last"] <= (row["flip_rate"] or 0) * row["rewirings"] + 1e-12
        assert row["explored"] >= 0.2 + row["distance_first"] / 2 - 1e-12


def test_static_supports_are_remembered_for_free() -> None:
    model, optimizer = _linear(30, lr=0.1)
    exploration = Exploration(gossamer.sparsify(model, methods.static(0.2), optimizer), model)
    for _ in _train(model, optimizer, 5, 30):
        pass
    row = exploration.row()
    assert (row["rewirings"], row["explored"], row["distance_first"]) == (0, 0.2, 0)
    past = exploration.state_dict()["weights"]["weight"]
    assert past["union"] is past["newborn"] is None
    assert past["first"].keys() == {"shape", "count", "bits"}  # one bit per entry


def test_states_survive_a_file(tmp_path: Path) -> None:
    model, optimizer = _linear(30, lr=0.1)
    sparsifier = gossamer.sparsify(model, methods.set_(0.2, every=2), optimizer, total_steps=20)
    exploration = Exploration(sparsifier, model)
    for _ in _train(model, optimizer, 9, 30):
        pass
    save(tmp_path / "file", exploration.state_dict())
    other = Exploration(sparsifier, model)
    other.load_state_dict(load(tmp_path / "file").state)
    assert (other.by_weight(), other.row()) == (exploration.by_weight(), exploration.row())


# -- wrapped models ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2", "compile"])
def test_wrapped_models_give_the_rows_of_the_plain_one(wrapper: str, one_process: None) -> None:
    def run(wrapper: str) -> list[dict[str, Any]]:
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))
        model: nn.Module = inner
        if wrapper == "ddp":
            model = DistributedDataParallel(inner)
        elif wrapper == "fsdp2":
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        elif wrapper == "compile":
            model = torch.compile(inner, backend="eager")  # type: ignore[assignment]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = gossamer.sparsify(model, methods.rigl(0.3, every=2), optimizer, total_steps=10)
        exploration, rows = Exploration(sparsifier, model), []
        for _ in _train(model, optimizer, 8, 20):
            rows.append(exploration.row())
        return rows

    assert run(wrapper) == run("plain")


def test_a_computed_weight_is_looked_at_as_the_forward_sees_it() -> None:
    class Halved(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return torch.where(torch.arange(4) < 2, w, 0 * w)

    net = Net()
    nn.utils.parametrize.register_parametrization(net, "b", Halved())
    assert Exploration(Scripted(a=[0], b=[1, 2, 3]), net).row()["active_zeros"] == 2


# -- errors --------------------------------------------------------------------------------------------------------


def test_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the model has no weight a, which .* pass the model given to sparsify\(\)"):
        Exploration(Scripted(a=[0], b=[0]), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: None, "NoneType"),
        (lambda state: state | {"weights": {}}, "the watched weights differ: a, b"),
        (lambda state: state | {"reported": {"flips": 1}}, "KeyError: 'judged'"),
        (lambda state: state | {"rewirings": "many"}, "many"),
        (
            lambda state: state | {"weights": dict.fromkeys("ab", state["weights"]["a"])},
            r"b: a support has shape \(2, 4\), the weight has \(4,\)",
        ),
    ],
)
def test_damaged_states_are_named_and_change_nothing(damage: Any, message: str) -> None:
    scripted = Scripted(a=[0, 1], b=[2])
    exploration = Exploration(scripted, Net())
    scripted.rewire(a=[1, 2])
    before = exploration.by_weight()
    with pytest.raises(CheckpointError, match=f"the saved topology metrics do not fit .*{message}") as caught:
        exploration.load_state_dict(damage(copy.deepcopy(exploration.state_dict())))
    assert "\n" not in str(caught.value)
    assert exploration.by_weight() == before
    assert exploration.row()["rewirings"] == 1
