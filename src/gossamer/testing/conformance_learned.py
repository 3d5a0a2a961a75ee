"""Laws of a learned method: soft gates, the cut, and the static training after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from ..errors import DivergedError
from ..learned import LearnedSparsifier
from ..reparametrise import Learned
from .conformance_lab import (
    OPTIMIZERS,
    STEPS,
    Batch,
    Training,
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


@dataclass
class _Run(Training):
    """A model in training by a `Learned`. plain: its parameters by name, as they were before."""

    sparsifier: LearnedSparsifier
    plain: Mapping[str, nn.Parameter]

    @property
    def extra(self) -> dict[str, Tensor]:
        """What the gates added to the model's parameters."""
        ours = {id(p) for p in self.plain.values()}
        return {name: p.detach() for name, p in self.model.named_parameters() if id(p) not in ours}

    def values(self) -> dict[str, Tensor]:
        """And copies of the supports and the gates' momenta."""
        momenta = self.sparsifier.state_dict()["momenta"]
        found = {f"{name} (momentum)": value.clone() for name, value in momenta.items()}
        return super().values() | found | {f"{name} (support)": mask for name, mask in self.masks().items()}


def _start(
    method: Learned, model: nn.Module | None = None, optimizer: str = "SGD with momentum", seed: int = 3
) -> _Run:
    model = make_model() if model is None else model
    plain = dict(model.named_parameters())
    made = OPTIMIZERS[optimizer](list(plain.values()))
    return _Run(model, made, LearnedSparsifier(model, method, made, total_steps=STEPS, seed=seed), plain)


class LearnedLaws:
    """What every learned method must hold to. Inherit it in a test class and return the method from `make`.

    density: what most laws use. starts_dense: whether the first gates leave every weight as it is, bit for bit.
    picklable: as in `MethodLaws`. A law that cannot apply is overridden with `not_applicable`.

    >>> from gossamer import methods
    >>> class TestCs(LearnedLaws):
    ...     def make(self, density):
    ...         return methods.cs(density, penalty=1e-3)
    >>> TestCs().test_it_is_soft_then_plain_and_sparse()
    """

    density: float = 0.25
    starts_dense: bool = True
    picklable: bool = True

    def make(self, density: float) -> Learned:
        """Return the method at a density; its gates are to move, and to be cut before the last of 12 steps."""
        raise NotImplementedError("a class of laws needs make(density), which returns the method")

    def test_it_starts_as_the_dense_model(self) -> None:
        """The first loss and the first gradients are those of the dense model bit for bit, if ``starts_dense``."""
        if not self.starts_dense:
            raise SkipTest("starts_dense = False")
        dense, run = make_model(), _start(self.make(self.density))
        losses = [loss_of(model, batches(1)[0]) for model in (dense, run.model)]
        for loss in losses:
            loss.backward()
        law(torch.equal(*losses), f"the first loss is {losses[1]}, that of the dense model {losses[0]}")
        theirs = {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}
        ours = {name: p.grad for name, p in run.plain.items() if p.grad is not None}
        check_same(ours, theirs, "the first gradients against those of the dense model")

    def test_gates_move(self) -> None:
        """What the gates hold changes before they are cut; only then do the other laws show anything."""
        run = _start(self.make(self.density))
        first, moved = {name: value.clone() for name, value in run.extra.items()}, False
        for batch in batches():
            run.step(batch)
            moved |= any(not torch.equal(first[name], value) for name, value in run.extra.items())
        law(moved, "no gate moved before the cut: make() needs other first values or a later finalize")

    def test_it_is_soft_then_plain_and_sparse(self) -> None:
        """Cut after step `finalize`; then names, keys and Parameters are the old ones, zeros and counts exact."""
        for optimizer in OPTIMIZERS:
            model = make_model()
            keys = list(model.state_dict())
            run = _start(self.make(self.density), model, optimizer)
            cut = int(run.sparsifier.method.finalize)
            law(cut < STEPS, f"the gates are cut after step {cut}: make() needs a finalize below {STEPS}")
            cut_masks = None
            for step, batch in enumerate(batches(), 1):
                run.step(batch)
                where = f"{optimizer}, after step {step}"
                law(run.sparsifier.finalized == (step >= cut), f"{where}: the cut is due after step {cut}")
                if step < cut:
                    continue
                law(list(model.state_dict()) == keys, f"{where}: the keys are {list(model.state_dict())}, not {keys}")
                _check_parameters(run, where)
                _check_sparse(run, self.density, where)
                if step > cut:  # the first step on the support clears what the gates left
                    _check_slots(run, where)
                cut_masks = run.masks() if cut_masks is None else cut_masks
                check_same(run.masks(), cut_masks, f"{where}, supports against those of the cut")

    def test_the_cut_is_exact_with_ties_and_zeros(self) -> None:
        """Equal weights, half of them zero, and no gradient: counts are exact at several densities."""
        for density in (self.density, 0.1, 0.5, 0.9):
            model = make_model()
            for p in model.parameters():
                p.data.copy_(torch.arange(p.numel()).remainder(2).view(p.shape))
            run = _start(self.make(density), model)
            for batch in batches():
                run.step(batch, lambda model, batch: 0.0 * loss_of(model, batch))
            _check_sparse(run, density, f"density {density}, with ties")

    def test_nan_in_a_masked_gradient_does_not_leak(self) -> None:
        """After the cut, a NaN in the gradient of an inactive weight reaches no weight."""
        for optimizer in OPTIMIZERS:
            run = _start(self.make(self.density), optimizer=optimizer)
            for step, batch in enumerate(batches(), 1):
                run.step(batch, _poisoned_loss(run) if run.sparsifier.finalized else loss_of)
                for name, p in run.model.named_parameters():
                    law(torch.isfinite(p).all(), f"{optimizer}: a masked NaN of step {step} reached {name}")

    def test_a_gate_that_is_nan_is_not_cut(self) -> None:
        """`finalize` raises DivergedError then, and leaves model and gates as they are."""
        run = _start(self.make(self.density))
        run.step(batches(1)[0])
        list(run.extra.values())[-1].fill_(torch.nan)
        before = {name: p.detach().nan_to_num().clone() for name, p in run.model.named_parameters()}
        try:
            run.sparsifier.finalize()
        except DivergedError:
            pass
        else:
            law(False, "a gate that is NaN was cut")
        law(not run.sparsifier.finalized, "finalize() raised, but the gates are gone")
        after = {name: p.detach().nan_to_num() for name, p in run.model.named_parameters()}
        check_same(before, after, "the model after finalize() raised")

    def test_same_seed_same_run_whatever_the_global_seed(self) -> None:
        """Two runs with the same seed are equal bit for bit on ranks whose global generators differ."""
        runs = []
        for rank in range(2):
            with global_seed(rank):
                run, values = _start(self.make(self.density)), []
                for batch in batches():
                    run.step(batch)
                    values.append(run.values())
                runs.append(values)
        for step, (one, other) in enumerate(zip(*runs, strict=True), 1):
            check_same(one, other, f"two runs with the same seed, after step {step}")

    def test_the_global_generators_are_left_alone(self) -> None:
        """Neither composing, nor attaching, nor training draws from torch's, numpy's or Python's own generator."""
        with global_seed(0):
            before = global_state()
            run = _start(self.make(self.density), make_model())
            for batch in batches():
                run.step(batch)
            law(global_state() == before, "a global random generator was used")

    def test_resumed_at_any_step_it_goes_on_bit_for_bit(self) -> None:
        """Saved, loaded into a differently initialised model and continued: equal at the end; also across the cut."""
        for optimizer in OPTIMIZERS:
            whole, saved = _start(self.make(self.density), optimizer=optimizer), []
            for batch in batches():
                saved.append(whole.save())
                whole.step(batch)
            for step in range(STEPS):
                run = _start(self.make(self.density), make_model(seed=9), optimizer, seed=8)
                run.load(saved[step], ("sparsifier", "model", "optimizer"))
                for batch in batches()[step:]:
                    run.step(batch)
                check_same(whole.values(), run.values(), f"{optimizer}, resumed after step {step}")

    def test_it_is_a_value(self) -> None:
        """Frozen, equal to itself made again (and then of the same hash), and the same after pickling."""
        check_value(self.make(self.density), self.make(self.density), Learned, self.picklable)

    def test_what_is_infeasible_is_refused_before_anything_changes(self) -> None:
        """Densities outside (0, 1], or too small for one entry per weight."""
        check_densities_refused(self.make)
        model = make_model()
        parameters = dict(model.named_parameters())
        before = {name: p.detach().clone() for name, p in parameters.items()}
        tiny = 1 / sum(p.numel() for p in parameters.values())
        law(
            refused(lambda: _start(self.make(tiny), model)),
            f"density {tiny:.2g}, under one entry per weight, was taken",
        )
        check_same(before, dict(model.named_parameters()), "the model after a refused density")


def _check_parameters(run: _Run, where: str) -> None:
    """Model and optimizer hold the Parameters they held before, in the same order, and nothing else."""
    old, new = list(run.plain.values()), list(run.model.parameters())
    held = [p for group in run.optimizer.param_groups for p in group["params"]]
    for owner, parameters in (("the model", new), ("the optimizer", held)):
        same = len(parameters) == len(old) and all(a is b for a, b in zip(parameters, old, strict=True))
        law(same, f"{where}: {owner} holds other Parameters than before the gates")


def _check_sparse(run: _Run, density: float, where: str) -> None:
    """Weights are +0 off their supports; round(density * N) entries in all, one per weight at least."""
    masks = run.masks()
    for name, mask in masks.items():
        p = run.model.get_parameter(name)
        off = p.detach()[~mask]
        law(not off.count_nonzero() and not torch.signbit(off).any(), f"{where}: {name} is not +0 off its support")
        law(mask.any(), f"{where}: {name} is empty")
    active, wanted = sum(int(m.sum()) for m in masks.values()), round(density * sum(m.numel() for m in masks.values()))
    law(active == wanted, f"{where}: {active} entries are active, density {density} means {wanted}")


def _check_slots(run: _Run, where: str) -> None:
    """The optimizer's slots are zero off the supports."""
    for name, mask in run.masks().items():
        for slot, value in run.optimizer.state.get(run.model.get_parameter(name), {}).items():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                law(not value[~mask].count_nonzero(), f"{where}: slot {slot} of {name} is not zero off the support")


def _poisoned_loss(run: _Run) -> Callable[[Any, Batch], Tensor]:
    """A loss whose gradient is NaN off the supports."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = loss_of(model, batch)
        for name, mask in run.masks().items():
            value = value + (model.get_parameter(name) * torch.where(mask, 0.0, torch.nan)).nansum()
        return value

    return loss
