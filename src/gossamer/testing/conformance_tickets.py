"""Laws of a lottery-ticket method, tried on a search of a few steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lottery import Ticket, find_ticket
from ..rewinding import snapshot
from ..tickets import Tickets
from .conformance_lab import (
    OPTIMIZERS,
    STEPS,
    batches,
    check_densities_refused,
    check_same,
    check_value,
    global_seed,
    global_state,
    law,
    loss_of,
    make_model,
    refused,
)


class _KilledError(Exception):
    """Raised in the middle of a training."""


class _Loop:
    """A training loop that keeps the model's state before the first and after every step of every training.

    kill: the training, from 0, in the middle of which it raises.
    """

    def __init__(self, optimizer: str = "SGD with momentum", kill: int | None = None) -> None:
        self.optimizer, self.kill = optimizer, kill
        self.asked: list[tuple[int, int]] = []
        self.states: list[list[dict[str, Tensor]]] = []

    def __call__(self, model: nn.Module, attach: Callable[[Any], Any], start: int, stop: int) -> None:
        optimizer = OPTIMIZERS[self.optimizer](list(model.parameters()))
        attach(optimizer)
        self.asked.append((start, stop))
        self.states.append([snapshot(model)])
        for step in range(start, stop):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 / (1 + step)
            optimizer.zero_grad()
            loss_of(model, batches(2 * STEPS)[step]).backward()
            optimizer.step()
            self.states[-1].append(snapshot(model))
            if self.kill == len(self.asked) - 1 and step > start:
                raise _KilledError


def _network() -> nn.Module:
    """16-12-4; it draws random numbers in training."""
    return nn.Sequential(nn.Linear(16, 12), nn.LayerNorm(12), nn.Dropout(0.2), nn.Tanh(), nn.Linear(12, 4))


def _search(method: Tickets, loop: _Loop, **settings: Any) -> tuple[nn.Module, Ticket]:
    """Search a ticket in a new model; return both."""
    model = make_model(_network)
    return model, find_ticket(model, loop, method, total_steps=STEPS, **settings)


class TicketLaws:
    """What every ticket method must hold to. Inherit it in a test class and return the method from `make`.

    density: what most laws use. picklable: as in `MethodLaws`. A law that cannot apply is overridden with
    `not_applicable`.

    >>> from gossamer import methods
    >>> class TestImp(TicketLaws):
    ...     def make(self, density):
    ...         return methods.lottery(density, levels=2, rewind=0.25)
    >>> TestImp().test_supports_are_nested_and_counts_exact()
    """

    density: float = 0.25
    picklable: bool = True

    def make(self, density: float) -> Tickets:
        """Return the method at a density; it is given trainings of 12 steps."""
        raise NotImplementedError("a class of laws needs make(density), which returns the method")

    def test_supports_are_nested_and_counts_exact(self) -> None:
        """Each level keeps what `counts` says, all of it active before; the last one ``round(density * N)`` in all."""
        method = self.make(self.density)
        _, ticket = _search(method, _Loop())
        shapes = {name: support.shape for name, support in ticket.supports.items()}
        stated, sizes = method.counts(shapes), {name: support.numel for name, support in ticket.supports.items()}
        law(len(ticket.levels) == len(stated), f"{len(ticket.levels)} levels, `counts` states {len(stated)}")
        before = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        for level, (supports, expected) in enumerate(zip(ticket.levels, stated, strict=True), 1):
            masks = {name: support.mask for name, support in supports.items()}
            held = {name: int(mask.sum()) for name, mask in masks.items()}
            law(all(held.values()), f"level {level}: a weight is empty: {held}")
            found = {"": sum(held.values())} if "" in expected else held
            law(found == expected, f"level {level}: counts are {found}, the method states {expected}")
            law(not any((masks[n] & ~before[n]).any() for n in masks), f"level {level}: a pruned entry came back")
            before = masks
        wanted = round(self.density * sum(sizes.values()))
        law(sum(held.values()) == wanted, f"the ticket has {sum(held.values())} entries, its density means {wanted}")

    def test_trainings_begin_where_the_method_says(self) -> None:
        """Bit for bit at step epsilon of the dense training, or where the last training ended; zero off the support."""
        for optimizer in OPTIMIZERS:
            method, loop = self.make(self.density), _Loop(optimizer)
            model, ticket = _search(method, loop)
            final = snapshot(model)
            ticket.train(model, loop)
            start, stop = method.again(STEPS)
            expected = [(0, STEPS), *[(start, stop)] * (method.depth if start < stop else 0)]
            law(loop.asked == expected, f"{optimizer}: asked for trainings {loop.asked}, expected {expected}")
            begins = [states[0] for states in loop.states[1:]] or [final]
            for level, (begin, supports) in enumerate(zip(begins, ticket.levels, strict=False), 1):
                back = loop.states[0][start] if method.mode == "weights" else loop.states[level - 1][-1]
                where = f"{optimizer}: training {level} against the weights it goes back to"
                check_same(begin, _masked(back, supports), where)
            back = _masked(ticket.state, ticket.supports)
            check_same(final, back, f"{optimizer}: the model after the search against the ticket")

    def test_pruned_weights_are_zero_in_every_step(self) -> None:
        """+0 off the supports after every step of every training but the first, the ticket's own included."""
        for optimizer in OPTIMIZERS:
            loop = _Loop(optimizer)
            model, ticket = _search(self.make(self.density), loop)
            ticket.train(model, loop)
            for level, (states, supports) in enumerate(zip(loop.states[1:], ticket.levels, strict=False), 1):
                for step, state in enumerate(states):
                    where = f"{optimizer}: training {level}, {step} steps on: a weight is not +0 off its support"
                    check_same(state, _masked(state, supports), where)
                    signed = [torch.signbit(state[n][~s.mask]).any() for n, s in supports.items()]
                    law(not any(signed), where)

    def test_same_seed_same_ticket_whatever_the_global_seed(self) -> None:
        """Two searches are equal bit for bit on ranks whose global generators differ, and leave these alone."""
        found = []
        for rank in range(2):
            with global_seed(rank):
                before = global_state()
                found.append(_all_of(_search(self.make(self.density), _Loop(), seed=3)[1]))
                law(global_state() == before, "a global random generator was not put back")
        check_same(found[0], found[1], "two searches with the same seed")

    def test_a_killed_search_goes_on_bit_for_bit(self) -> None:
        """Killed in any training, it goes on from its folder; finished trainings are not made again."""
        method, loop = self.make(self.density), _Loop()
        expected = _all_of(_search(method, loop)[1])
        for kill in range(len(loop.asked)):
            with tempfile.TemporaryDirectory() as folder:
                with suppress(_KilledError):
                    _search(method, _Loop(kill=kill), folder=folder)
                again = _Loop()
                _, ticket = _search(method, again, folder=folder)
                law(again.asked == loop.asked[kill:], f"killed in training {kill}, it made {again.asked} afterwards")
                check_same(expected, _all_of(ticket), f"killed in training {kill}, against a whole search")

    def test_it_is_a_value(self) -> None:
        """Frozen, equal to itself made again (and then of the same hash), and the same after pickling."""
        check_value(self.make(self.density), self.make(self.density), Tickets, self.picklable)

    def test_what_is_infeasible_is_refused_before_anything_changes(self) -> None:
        """Densities outside (0, 1], or too small for one entry per weight: before a step or a folder is made."""
        check_densities_refused(self.make)
        model, loop = make_model(_network), _Loop()
        before, tiny = snapshot(model), 1 / sum(p.numel() for p in model.parameters())
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "search"
            taken = not refused(lambda: find_ticket(model, loop, self.make(tiny), total_steps=STEPS, folder=folder))
            law(not taken, f"density {tiny:.2g}, under one entry per weight, was taken")
            law(not folder.exists(), "a folder was made for a search that was refused")
        law(not loop.asked, "a search that was refused had trained")
        check_same(before, snapshot(model), "the model after a refused density")


def _masked(state: Any, supports: Any) -> dict[str, Tensor]:
    """The state with zeros off the supports."""
    zeroed = {name: torch.where(support.mask, state[name], 0.0) for name, support in supports.items()}
    return {**state, **zeroed}


def _all_of(ticket: Ticket) -> dict[str, Tensor]:
    """Every support and the state of a ticket."""
    levels = {f"{n}, level {i}": s.mask for i, each in enumerate(ticket.levels, 1) for n, s in each.items()}
    return {**ticket.state, **levels}
