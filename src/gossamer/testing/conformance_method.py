"""Laws of a method: those of every step (`StepLaws`), and those of whole runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..method import Method
from ..seeding import generator_for
from .conformance_lab import (
    OPTIMIZERS,
    STEPS,
    Batch,
    batches,
    check_densities_refused,
    check_same,
    check_value,
    check_zeros,
    global_seed,
    global_state,
    law,
    loss_of,
    make_model,
    refused,
    start,
)
from .conformance_steps import StepLaws
from .oracles import Trace

ORACLE_STEPS = 24


@dataclass(frozen=True)
class Task:
    """What an oracle is given.

    model: not sparse yet. masks: the first supports by weight name. make_optimizer: parameters -> optimizer.
    batches, loss_fn(model, batch): the training. total_steps: T. draw(name, step, shape): the uniform random numbers
    that the library draws for a weight at the rewiring after `step` completed steps.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer]
    batches: list[Batch]
    loss_fn: Callable[[Callable[..., object], Batch], Tensor]
    total_steps: int
    draw: Callable[[str, int, torch.Size], Tensor]

    @property
    def common(self) -> tuple[Any, ...]:
        """What every drop-and-grow oracle takes first: model, masks, make_optimizer, batches, loss_fn."""
        return self.model, self.masks, self.make_optimizer, self.batches, self.loss_fn


class MethodLaws(StepLaws):
    """What every method must hold to. Inherit it in a test class and return the method from `make`.

    density: what most laws use; choose one that the method can have. moves: False for a method whose supports never
    change. picklable: False where its parts cannot be pickled, e.g. lambdas. `oracle` compares with a transcription of
    the published procedure. A law that cannot apply is overridden with `not_applicable`.

    >>> from gossamer import methods
    >>> class TestSet(MethodLaws):
    ...     def make(self, density):
    ...         return methods.set_(density, every=2)
    >>> TestSet().test_newborns_get_the_stated_value_and_slots()
    """

    picklable: bool = True

    def oracle(self, task: Task) -> Trace | None:
        """Return the trace of the published procedure on `task`; None: there is no transcription."""
        return None

    def test_same_seed_same_run_whatever_the_global_seed(self) -> None:
        """Two runs with the same seed are equal bit for bit on ranks whose global generators differ."""
        runs = []
        for rank in range(2):
            with global_seed(rank):
                run, model_values = start(self.make(self.density)), []
                for batch in batches():
                    run.step(batch)
                    model_values.append({**run.values(), **run.masks()})
                runs.append(model_values)
        for step, (one, other) in enumerate(zip(*runs, strict=True), 1):
            check_same(one, other, f"two runs with the same seed, after step {step}")

    def test_the_global_generators_are_left_alone(self) -> None:
        """Neither composing, nor attaching, nor training draws from torch's, numpy's or Python's own generator."""
        with global_seed(0):
            before = global_state()
            run = start(self.make(self.density), make_model())
            for batch in batches():
                run.step(batch)
            law(global_state() == before, "a global random generator was used: draw from `entries.generator`")

    def test_resumed_at_any_step_it_goes_on_bit_for_bit(self) -> None:
        """Saved, loaded into a differently initialised model and continued: equal at the end, from every step."""
        for optimizer, every in (("AdamW", 1), ("SGD with momentum", 5)):
            whole, saved = start(self.make(self.density), optimizer=optimizer), []
            for batch in batches():
                saved.append(whole.save())
                whole.step(batch)
            expected = {**whole.values(), **whole.masks()}
            for step in range(0, STEPS, every):
                run = start(self.make(self.density), make_model(seed=9), optimizer, seed=8)
                run.load(saved[step])
                for batch in batches()[step:]:
                    run.step(batch)
                check_same(expected, {**run.values(), **run.masks()}, f"{optimizer}, resumed after step {step}")

    def test_a_copied_model_is_plain_sparse_and_independent(self) -> None:
        """`copy.deepcopy` of the model is sparse; training either leaves the other as it is."""
        run = start(self.make(self.density))
        for batch in batches(4):
            run.step(batch)
        twin = copy.deepcopy(run.model)
        frozen = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        check_same(frozen, dict(twin.named_parameters()), "a copy of the model")
        plain = torch.optim.SGD(twin.parameters(), lr=0.1)
        for batch in batches(2):
            plain.zero_grad()
            loss_of(twin, batch).backward()
            plain.step()
        check_same(frozen, dict(run.model.named_parameters()), "the model whose copy was trained")
        trained = {name: p.detach().clone() for name, p in twin.named_parameters()}
        run.step(batches(1)[0])
        check_zeros(run, "after its copy was trained")
        check_same(trained, dict(twin.named_parameters()), "the copy of a model that was trained")

    def test_it_is_a_value(self) -> None:
        """Frozen, equal to itself made again (and then of the same hash), and the same after pickling."""
        check_value(self.make(self.density), self.make(self.density), Method, self.picklable)

    def test_what_is_infeasible_is_refused_before_anything_changes(self) -> None:
        """Densities outside (0, 1], or too small for one entry per weight, and a missing length of training."""
        check_densities_refused(self.make)
        model = make_model()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        tiny = 1 / sum(p.numel() for p in model.parameters())
        law(
            refused(lambda: start(self.make(tiny), model)),
            f"density {tiny:.2g}, under one entry per weight, was taken",
        )
        check_same(before, dict(model.named_parameters()), "the model after a refused density")
        if "total_steps" in self.make(self.density).needs:
            made = self.make(self.density)
            law(refused(lambda: start(made, model, steps=None)), "it needs total_steps and ran without")  # type: ignore[arg-type]
            check_same(before, dict(model.named_parameters()), "the model after total_steps was missing")
        run = start(self.make(self.density), model)
        check_zeros(run, "attached after refusals")

    def test_it_equals_its_oracle(self) -> None:
        """Every support, weight and trainable weight is that of `oracle` after every step, bit for bit."""
        for optimizer, make_optimizer in OPTIMIZERS.items():
            run = start(self.make(self.density), optimizer=optimizer, steps=ORACLE_STEPS)
            seed, data = run.sparsifier.seed, batches(ORACLE_STEPS)

            def draw(name: str, step: int, shape: torch.Size) -> Tensor:
                return torch.rand(shape, generator=generator_for(seed, name, f"rewire {step}"))  # noqa: B023

            task = Task(make_model(), run.masks(), make_optimizer, data, loss_of, ORACLE_STEPS, draw)
            trace = self.oracle(task)
            if trace is None:
                raise SkipTest("there is no oracle")
            law(len(trace.steps) == ORACLE_STEPS, f"the oracle took {len(trace.steps)} steps of {ORACLE_STEPS}")
            for step, (batch, expected) in enumerate(zip(data, trace.steps, strict=True), 1):
                run.step(batch)
                where = f"{optimizer}, step {step}"
                check_same(run.masks(), expected.masks, f"{where}, supports against the oracle")
                sites = run.sparsifier.sites.items()
                check_same({n: s.parameter for n, s in sites}, expected.weights, f"{where}, weights against the oracle")
                trainable = {n: s.parameter if s.trainable is None else s.trainable for n, s in sites}
                check_same(trainable, expected.trainable, f"{where}, trainable weights against the oracle")
