"""Lottery tickets: equal to their transcription; nested, exact, rewound bit for bit; resumable between trainings."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import methods
from gossamer.checkpoint import load_model, save_model
from gossamer.errors import AttachError, ConfigError, DivergedError, TargetError
from gossamer.lottery import find_ticket
from gossamer.rewinding import prune, rewind, snapshot
from gossamer.testing.oracles import lottery_oracle
from gossamer.tickets import Tickets
from gossamer.topology import Support

STEPS = 16
MODES = ["weights", "learning_rate", "none"]


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4),
    )  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(32, 20, generator=generator), torch.randint(4, (32,), generator=generator)


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def rate(step: int) -> float:
    """Rises, then falls: the schedule shows where training was set back to."""
    return 0.02 * (1 + min(step, 5)) / (1 + 0.1 * step)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)


class Loop:
    """A user's training loop that writes down what it was asked for and what it met. fail: raise in that training."""

    def __init__(self, make: Callable[[nn.Module], Any] = sgd, fail: int | None = None) -> None:
        self.make, self.fail = make, fail
        self.asked: list[tuple[int, int]] = []
        self.begin: list[dict[str, Tensor]] = []
        self.end: list[dict[str, Tensor]] = []
        self.sparsifiers: list[gossamer.Sparsifier | None] = []

    def __call__(self, model: nn.Module, attach: Callable[[Any], Any], start: int, stop: int) -> None:
        optimizer = self.make(model)
        self.asked.append((start, stop))
        self.sparsifiers.append(attach(optimizer))
        self.begin.append(snapshot(model))
        for step in range(start, stop):
            self.step(model, optimizer, step)
            if self.fail == len(self.asked) - 1 and step == start + 2:
                raise KeyboardInterrupt
        self.end.append(snapshot(model))

    def step(self, model: nn.Module, optimizer: Any, step: int) -> None:
        every = optimizer if isinstance(optimizer, list) else [optimizer]
        for each in every:
            for group in each.param_groups:
                group["lr"] = rate(step)
            each.zero_grad()
        loss_of(model, batch(step)).backward()
        for each in every:
            each.step()


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def masks(supports: Any) -> dict[str, Tensor]:
    return {name: support.mask for name, support in supports.items()}


def every_count(method: Tickets, supports: Any) -> tuple[dict[str, int], ...]:
    return method.counts({name: support.shape for name, support in supports.items()})


# -- equivalences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pruning", [{}, {"levels": 3}, {"keep": 0.6}])
def test_a_search_equals_its_transcription(pruning: Any, mode: Any, scope: Any, make: Any) -> None:
    method = methods.lottery(0.2, rewind=0.25, mode=mode, scope=scope, **pruning)
    loop, model = Loop(make), network()
    ticket = find_ticket(model, loop, method, total_steps=STEPS)
    ticket.train(model, loop)
    counts = every_count(method, ticket.supports)
    if scope == "global":  # only the sum binds
        first, *others = ticket.supports
        counts = tuple({first: each[""]} | dict.fromkeys(others, 0) for each in counts)
    trainings = lottery_oracle(
        network(), counts, make, batch, loss_of, rate, epsilon=4, total_steps=STEPS, mode=mode, scope=scope
    )  # fmt: skip
    assert len(trainings) == method.depth + 1 == len(loop.asked)
    for level, expected in enumerate(trainings[1:]):
        assert same(masks(ticket.levels[level]), expected.masks)
    for number, expected in enumerate(trainings):
        assert same(loop.begin[number], expected.begin), number
        assert same(loop.end[number], expected.end), number


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_level_is_one_shot(scope: Any) -> None:
    found = []
    for pruning in ({}, {"levels": 1}, {"keep": 0.15}):
        loop = Loop()
        ticket = find_ticket(network(), loop, methods.lottery(0.15, scope=scope, **pruning), total_steps=STEPS)
        assert loop.asked == [(0, STEPS)]
        found.append(ticket)
    trained = network()
    rewind(trained, loop.end[0], {})
    full = {name: Support.full(s.shape) for name, s in found[0].supports.items()}
    (counts,) = every_count(methods.lottery(0.15, scope=scope), full)
    expected = prune(trained, full, counts)
    for ticket in found:
        assert ticket.supports == expected
        assert same(ticket.state, found[0].state)


@pytest.mark.parametrize("mode", MODES)
def test_rewinding_to_the_end_is_plain_pruning(mode: Any) -> None:
    """t' = 0: nothing is retrained, in any mode. The same as pruning after the last step of one training."""
    model, loop = network(), Loop()
    ticket = find_ticket(model, loop, methods.lottery(0.2, rewind=1.0, mode=mode), total_steps=STEPS)
    ticket.train(model, loop)
    assert loop.asked == [(0, STEPS)]
    plain = network()
    optimizer = sgd(plain)
    pruning = methods.one_shot(0.2, at=STEPS, scope="layer")
    sparsifier = gossamer.sparsify(plain, pruning, optimizer, total_steps=STEPS)
    for step in range(STEPS):
        loop.step(plain, optimizer, step)
    assert ticket.supports == dict(sparsifier.supports)
    assert same(snapshot(model), snapshot(plain))


def test_the_dense_training_is_not_touched() -> None:
    plain, loop = network(), Loop()
    optimizer = sgd(plain)
    for step in range(STEPS):
        loop.step(plain, optimizer, step)
    find_ticket(network(), loop, methods.lottery(0.2, levels=2), total_steps=STEPS)
    assert same(loop.end[0], snapshot(plain))
    assert loop.sparsifiers[0] is None
    assert isinstance(loop.sparsifiers[1], gossamer.Sparsifier)


def test_a_ticket_trains_with_sparsify_as_with_train() -> None:
    method = methods.lottery(0.2, levels=2)
    model, loop = network(), Loop()
    ticket = find_ticket(model, loop, method, total_steps=STEPS, targets=["0.weight", "4.weight"])
    ticket.train(model, loop)
    by_hand = network(seed=7)
    ticket.apply(by_hand)
    optimizer = sgd(by_hand)
    sparsifier = gossamer.sparsify(by_hand, ticket.method(), optimizer, targets=["0.weight", "4.weight"])
    for step in range(ticket.start, ticket.stop):
        loop.step(by_hand, optimizer, step)
    assert same(snapshot(model), snapshot(by_hand))
    assert dict(sparsifier.supports) == ticket.supports


def test_density_one_prunes_nothing() -> None:
    model = network()
    ticket = find_ticket(model, Loop(), methods.lottery(1.0, keep=0.8), total_steps=STEPS)
    assert ticket.densities == (1.0,)
    assert same(snapshot(model), ticket.state)


# -- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
@pytest.mark.parametrize("pruning", [{"levels": 4}, {"keep": 0.8}, {"keep": 0.5}])
def test_supports_are_nested_and_counts_exact(pruning: Any, allocation: Any, scope: Any) -> None:
    method = methods.lottery(0.1, scope=scope, allocation=allocation, **pruning)
    ticket = find_ticket(network(), Loop(), method, total_steps=4)
    eligible = sum(s.numel for s in ticket.supports.values())
    assert sum(s.count for s in ticket.supports.values()) == round(0.1 * eligible)
    assert len(ticket.levels) == method.depth
    for before, after in itertools.pairwise(ticket.levels):
        assert all(after[name].issubset(before[name]) for name in after)
    for supports, counts in zip(ticket.levels, every_count(method, ticket.supports), strict=True):
        held = {name: s.count for name, s in supports.items()}
        assert all(held.values())
        assert held == counts if scope == "layer" else {"": sum(held.values())} == counts


def test_every_level_keeps_its_share_exactly() -> None:
    """|m_k| = |m_k-1| - round(p |m_k-1|) with p = .2, until the last level, which is the density asked for."""
    method = methods.lottery(0.0115, keep=0.8, scope="global")
    counts = [100_000] + [each[""] for each in method.counts({"w": (1000, 100)})]
    assert method.depth == 21
    for before, after in itertools.pairwise(counts[:-1]):
        assert after == before - round(0.2 * before)
    assert counts[-1] == 1150
    remaining = {1: 80, 2: 64, 3: 51.2, 5: 32.8, 7: 21.0, 10: 10.7, 15: 3.5, 20: 1.2}  # in %, from the reference table
    for level, percent in remaining.items():
        assert counts[level] / 1000 == pytest.approx(percent, abs=0.05)


def test_geometric_levels_and_depth() -> None:
    shapes = {"a": (100, 100), "b": (10, 10)}
    assert methods.lottery(0.01, levels=2).counts(shapes) == ({"a": 1000, "b": 10}, {"a": 100, "b": 1})
    assert [methods.lottery(d, keep=0.8).depth for d in (0.8, 0.79, 0.64, 0.05, 1.0)] == [1, 2, 2, 14, 1]
    assert methods.lottery(0.5).depth == 1


@pytest.mark.parametrize("epsilon", [0, 1, 5, 0.25])
def test_weights_go_back_bit_for_bit(epsilon: Any) -> None:
    """Biases, BatchNorm and its statistics, too; what is pruned is zero; learning rate and data go back as well."""
    model, loop = network(), Loop()
    step = epsilon if isinstance(epsilon, int) else round(epsilon * STEPS)
    method = methods.lottery(0.2, levels=3, rewind=epsilon)
    ticket = find_ticket(model, loop, method, total_steps=STEPS)
    assert same(snapshot(model), rewound(loop.begin[0], ticket.state, ticket.supports))
    ticket.train(model, loop)
    early, plain = network(), Loop()
    optimizer = sgd(early)
    for number in range(step):
        plain.step(early, optimizer, number)
    assert same(ticket.state, snapshot(early))
    assert loop.asked == [(0, STEPS)] + 3 * [(step, STEPS)]
    for begin, end, supports in zip(loop.begin[1:], loop.end[1:], ticket.levels, strict=True):
        assert same(begin, rewound(begin, snapshot(early), supports))
        for name, support in supports.items():
            assert not end[name][~support.mask].any()
    assert int(early[1].num_batches_tracked) == step


def rewound(like: Any, state: Any, supports: Any) -> dict[str, Tensor]:
    return {
        name: torch.where(supports[name].mask, state[name], 0.0) if name in supports else state[name] for name in like
    }


def test_inactive_weights_are_zero_in_the_saved_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    class Saving(Loop):
        def step(self, model: nn.Module, optimizer: Any, step: int) -> None:
            super().step(model, optimizer, step)
            if self.sparsifiers[-1] is not None and step == STEPS - 1:
                save_model(path, model, self.sparsifiers[-1])

    loop, model = Saving(adamw), network()
    ticket = find_ticket(model, loop, methods.lottery(0.2), total_steps=STEPS)
    assert not path.exists()
    ticket.train(model, loop)
    state = load_model(path)
    for name, support in ticket.supports.items():
        assert not state[name][~support.mask].any()
        assert state[name][support.mask].any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_reruns_are_identical_and_leave_the_random_state(dropout: float) -> None:
    tickets, ends, model = [], [], network()
    for _ in range(2):
        model, loop = network(dropout=dropout), Loop()
        before = torch.get_rng_state()
        ticket = find_ticket(model, loop, methods.lottery(0.2, levels=2), total_steps=STEPS, seed=3)
        ticket.train(model, loop)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)  # another state for the next search
        tickets.append(ticket)
        ends.append(snapshot(model))
    assert tickets[0].levels == tickets[1].levels
    assert same(ends[0], ends[1])
    other = find_ticket(network(dropout=dropout), Loop(), methods.lottery(0.2, levels=2), total_steps=STEPS, seed=4)
    assert (other.levels == tickets[0].levels) == (dropout == 0)


def test_several_optimizers() -> None:
    def both(model: nn.Module) -> list[torch.optim.Optimizer]:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim != 2]
        return [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=0.01)]

    model, loop = network(), Loop(both)
    ticket = find_ticket(model, loop, methods.lottery(0.2, levels=2, rewind=3), total_steps=STEPS)
    early = network()
    optimizers = both(early)
    for step in range(3):
        loop.step(early, optimizers, step)
    assert same(ticket.state, snapshot(early))


def test_a_wrapped_model_has_plain_names() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    method = methods.lottery(0.2, levels=2)
    plain, wrapped = network(), Wrapper(network())
    expected = find_ticket(plain, Loop(), method, total_steps=STEPS)
    ticket = find_ticket(wrapped, Loop(), method, total_steps=STEPS)
    assert ticket.levels == expected.levels
    assert same(snapshot(wrapped), snapshot(plain))


# -- pruning by hand ---------------------------------------------------------------------------------------------


def pair() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[5.0, -4.0, 3.0], [0.5, -9.0, 2.0]]))
        model[1].weight.copy_(torch.tensor([[0.1, -0.1], [0.1, 0.0]]))
    return model


def test_pruning_by_hand() -> None:
    model = pair()
    active = {
        "0.weight": Support.from_mask(torch.tensor([[True, True, True], [True, False, False]])),
        "1.weight": Support.full((2, 2)),
    }
    kept = prune(model, active, {"0.weight": 2, "1.weight": 2})
    assert kept["0.weight"].mask.tolist() == [[True, True, False], [False, False, False]]  # -9 is not active
    assert kept["1.weight"].mask.tolist() == [[True, True], [False, False]]  # equal magnitudes: the lower index
    kept = prune(model, active, {"": 4})  # one threshold would leave nothing of the second weight
    assert kept["0.weight"].mask.tolist() == [[True, True, True], [False, False, False]]
    assert kept["1.weight"].mask.tolist() == [[True, False], [False, False]]


def test_active_zeros_come_before_inactive_weights() -> None:
    model = pair()
    active = {"1.weight": Support.from_mask(torch.tensor([[False, False], [True, True]]))}
    assert prune(model, active, {"1.weight": 2})["1.weight"] == active["1.weight"]


def test_a_diverged_weight_is_named() -> None:
    model = pair()
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"pruning 0\.weight: the score 'magnitude' is not finite"):
        prune(model, {"0.weight": Support.full((2, 3))}, {"0.weight": 2})


# -- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fail", [0, 1, 2])
def test_a_killed_search_goes_on_after_the_last_training(tmp_path: Path, mode: Any, fail: int) -> None:
    method = methods.lottery(0.1, levels=3, mode=mode, scope="global")
    model, whole = network(dropout=0.3), Loop(adamw)
    expected = find_ticket(model, whole, method, total_steps=STEPS)
    expected.train(model, whole)
    with pytest.raises(KeyboardInterrupt):
        find_ticket(network(dropout=0.3), Loop(adamw, fail), method, total_steps=STEPS, folder=tmp_path / "a/b")
    torch.rand(3)
    again, loop = network(dropout=0.3), Loop(adamw)
    ticket = find_ticket(again, loop, method, total_steps=STEPS, folder=tmp_path / "a/b")
    ticket.train(again, loop)
    assert len(loop.asked) == 4 - fail
    assert ticket.levels == expected.levels
    assert same(ticket.state, expected.state)
    assert same(snapshot(again), snapshot(model))
    finished = Loop(adamw)
    reread = find_ticket(network(dropout=0.3), finished, method, total_steps=STEPS, folder=tmp_path / "a/b")
    assert finished.asked == []
    assert reread.levels == expected.levels
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == [f"level-{n}.safetensors" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": {"density": 0.3}}, r"density 0\.2 -> 0\.3"),
        ({"method": {"rewind": 1.0}}, r"rewind 1 -> 16"),
        ({"method": {"mode": "none"}}, "mode 'weights' -> 'none'"),
        ({"method": {"allocation": "erk"}}, "counts "),
        ({"targets": ["4.weight"]}, "counts "),
        ({"total_steps": 20}, "total_steps 16 -> 20"),
        ({"seed": 1}, "seed 0 -> 1"),
        ({"model": 1}, "initial weights "),
    ],
)
def test_another_search_in_the_folder_is_refused(tmp_path: Path, change: Any, match: str) -> None:
    base: dict[str, Any] = {"total_steps": STEPS, "folder": tmp_path}
    method = methods.lottery(0.2, rewind=1)
    find_ticket(network(), Loop(), method, **base)
    method = dataclasses.replace(method, **change.pop("method", {}))
    loop, model = Loop(), network(change.pop("model", 0))
    before = snapshot(model)
    with pytest.raises(ConfigError, match=rf"level-1.safetensors is of another search \(.*{match}"):
        find_ticket(model, loop, method, **base | change)
    assert loop.asked == []
    assert same(snapshot(model), before)


def test_a_search_of_other_weights_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    def twins() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20))

    base: dict[str, Any] = {"total_steps": STEPS, "folder": tmp_path}
    find_ticket(twins(), Loop(), methods.lottery(0.2, levels=2), targets=["0.*"], **base)
    loop = Loop()
    match = r"\(target 2\.weight None -> \(20, 20\), target 0\.weight \(20, 20\) -> None\); leave these as they were"
    with pytest.raises(ConfigError, match=match):
        find_ticket(twins(), loop, methods.lottery(0.2, levels=2), targets=["2.*"], **base)
    (tmp_path / "level-1.safetensors").replace(tmp_path / "level-2.safetensors")
    with pytest.raises(ConfigError, match=r"level-2.safetensors is of another search \(level 1 -> 2\)"):
        find_ticket(twins(), loop, methods.lottery(0.2, levels=2), targets=["0.*"], **base)
    assert len(loop.asked) == 1  # level 1 again


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"levels": 0}, "levels=0: this is the number of prunings"),
        ({"levels": True}, "levels=True: this is the number of prunings"),
        ({"keep": 1.0}, "keep=1.0: this is the share each level keeps"),
        ({"keep": 1}, "keep=1: this is the share each level keeps"),
        ({"levels": 3, "keep": 0.8}, "levels=3 and keep=0.8 both say"),
        ({"levels": 10**9}, "levels=1000000000: each level is a whole training, and a search makes 100 at most; use f"),
        ({"keep": 0.999999}, r"keep=0\.999999 takes 1609438 levels to density=0\.2, but .* use a smaller keep"),
        ({"rewind": -1}, "rewind is a time"),
        ({"rewind": 1.5}, "rewind is a time"),
        ({"mode": "lr"}, "mode is 'lr'; expected one of 'weights', 'learning_rate', 'none'"),
        ({"scope": "net"}, "scope is 'net'; expected one of 'layer', 'global'"),
        ({"allocation": "erkk"}, "did you mean 'erk'"),
    ],
)
def test_values_that_cannot_be(values: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        methods.lottery(0.2, **values)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"method": methods.static(0.2)}, ConfigError, "a search needs one such as gossamer.methods.lottery"),
        ({"method": methods.lottery(0.2, rewind=17)}, ConfigError, "rewind=17 is a step after the last one, 16"),
        ({"method": methods.lottery(0.001)}, ConfigError, "fewer than one for each of 3 layers"),
        ({"total_steps": 0}, ConfigError, "total_steps=0"),
        ({"seed": 0.5}, ConfigError, r"seed=0\.5"),
        ({"model": None}, ConfigError, r"model is None; a search needs a torch\.nn\.Module"),
        ({"train": None}, ConfigError, r"train is None; a search needs a function train\(model, attach, start, stop\)"),
        ({"folder": 5}, ConfigError, "folder=5: expected the path of a folder"),
        ({"folder": "a\0b"}, ConfigError, r"folder='a\\x00b': expected the path of a folder"),
        ({"targets": "conv*"}, TargetError, r"target 'conv\*' matches no parameter"),
    ],
)
def test_searches_that_cannot_be(tmp_path: Path, arguments: Any, error: Any, match: str) -> None:
    loop, model, folder = Loop(), network(), tmp_path / "ticket"
    base: dict[str, Any] = {"method": methods.lottery(0.2), "total_steps": STEPS, "folder": folder}
    with pytest.raises(error, match=match):
        find_ticket(**{"model": model, "train": loop} | base | arguments)
    assert loop.asked == []
    assert not folder.exists()
    assert same(snapshot(model), snapshot(network()))


def test_the_folder_may_be_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"cannot use .*file as the folder of a search"):
        find_ticket(network(), Loop(), methods.lottery(0.2), total_steps=STEPS, folder=tmp_path / "file")


def test_a_ticket_fits_its_own_model_only() -> None:
    ticket = find_ticket(network(), Loop(), methods.lottery(0.2), total_steps=STEPS)
    for other in (nn.Linear(3, 3), nn.Sequential(*list(network())[:-1], nn.Linear(12, 5))):
        before = snapshot(other)
        with pytest.raises(ConfigError, match="the weights to go back to are of another model: "):
            ticket.apply(other)
        assert same(snapshot(other), before)


@pytest.mark.parametrize(
    ("train", "error", "match"),
    [
        (lambda loop, model, attach, start, stop: None, AttachError, r"train\(\) did not call attach"),
        (
            lambda loop, model, attach, start, stop: [attach(sgd(model)) for _ in range(2)],
            AttachError,
            r"attach\(\) was called twice",
        ),
        (
            lambda loop, model, attach, start, stop: loop(model, attach, start, stop + 1),
            ConfigError,
            r"train\(model, attach, 0, 16\) made 17 optimizer steps; it has to make 16",
        ),
        (
            lambda loop, model, attach, start, stop: loop(model, attach, start, start + 3),
            ConfigError,
            r"made 3 optimizer steps; it has to make 16 and pass step 4, to which the weights are set back",
        ),
        (
            lambda loop, model, attach, start, stop: loop(model, attach, start, start if start else stop),
            ConfigError,
            r"train\(model, attach, 4, 16\) made 0 optimizer steps; it has to make 12",
        ),
    ],
)
def test_loops_that_do_something_else(train: Any, error: Any, match: str) -> None:
    loop, model = Loop(), network()
    with pytest.raises(error, match=match):
        find_ticket(
            model,
            lambda *arguments: train(loop, *arguments),
            methods.lottery(0.2, rewind=4, levels=2),
            total_steps=STEPS,
        )
    gossamer.sparsify(model, methods.static(0.2), sgd(model)).detach()  # nothing is left attached


@pytest.mark.parametrize(
    "make", [lambda model: sgd(copy.deepcopy(model)), lambda model: torch.optim.SGD(model[0].parameters(), lr=0.1)]
)
def test_every_targeted_weight_is_in_an_optimizer_from_the_dense_training_on(make: Any) -> None:
    loop, model = Loop(make), network()
    with pytest.raises(
        AttachError, match=r"\d\.weight is in no optimizer .*build the optimizer from model\.parameters"
    ):
        find_ticket(model, loop, methods.lottery(0.2), total_steps=STEPS)
    assert same(snapshot(model), snapshot(network()))


@pytest.mark.parametrize("make", [sgd, adamw, lambda model: torch.optim.Adagrad(model.parameters(), lr=0.1)])
def test_every_training_has_new_optimizers(make: Any) -> None:
    model = network()
    optimizer = make(model)
    with pytest.raises(AttachError, match=rf"a used {type(optimizer).__name__}, .* build a new optimizer inside train"):
        find_ticket(model, loop := Loop(lambda model: optimizer), methods.lottery(0.2, levels=2), total_steps=STEPS)
    assert len(loop.end) == 1
    find_ticket(network(), Loop(make), methods.lottery(0.2, levels=2), total_steps=STEPS)


def test_sparsify_says_what_to_use() -> None:
    model = network()
    with pytest.raises(ConfigError, match=r"use gossamer\.lottery\.find_ticket"):
        gossamer.sparsify(model, methods.lottery(0.2), sgd(model))  # type: ignore[call-overload]


def test_choices_tell_what_it_does() -> None:
    choices = methods.lottery(0.2, keep=0.8, mode="learning_rate", scope="global").choices
    assert (choices.init, choices.drop, choices.where) == ("dense", "magnitude", "global")
    assert choices.when == "after each of 8 trainings; schedule rewound"
