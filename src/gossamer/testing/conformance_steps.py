"""Laws of a method that hold after every step: zeros, counts, newborn entries, what reaches a weight."""

from __future__ import annotations

from collections.abc import Callable
from unittest import SkipTest

import torch
from torch import Tensor, nn

from .. import optimizer_state
from ..errors import ConfigError
from ..method import Live, Method, Zero
from ..sites import DenseSite
from ..topology import Constant, Select, Unstructured
from .conformance_lab import (
    OPTIMIZERS,
    STEPS,
    Batch,
    Run,
    batches,
    check_budget,
    check_same,
    check_zeros,
    convnet,
    law,
    loss_of,
    make_model,
    one_layer,
    start,
    tiny_layers,
)

MANY = 200  # steps of the run with ties and exact zeros


class StepLaws:
    """Laws of every single step. See `MethodLaws`, which adds those of whole runs."""

    density: float = 0.25
    moves: bool = True

    def make(self, density: float) -> Method:
        """Return the method at a density, with a clock that acts several times within 12 steps."""
        raise NotImplementedError("a class of laws needs make(density), which returns the method")

    def test_zeros_off_the_support_and_slots_as_stated(self) -> None:
        """After every step weights are +0 off the support, and slots at rest where the method says "zero"."""
        for optimizer in OPTIMIZERS:
            run = start(self.make(self.density), optimizer=optimizer)
            check_zeros(run, f"{optimizer}, at the start")
            for step, batch in enumerate(batches(), 1):
                run.step(batch)
                check_zeros(run, f"{optimizer}, after step {step}")
                _check_resting_slots(run, f"{optimizer}, after step {step}")

    def test_supports_change(self) -> None:
        """Supports change within a short run, if ``moves``; only then do the other laws show anything."""
        run = start(self.make(self.density))
        for batch in batches():
            run.step(batch)
        changed = any(not torch.equal(before[n], after[n]) for _, before, after in run.rewirings for n in after)
        if self.moves:
            law(changed, f"no support changed in {STEPS} steps: make() needs a shorter clock, or set moves = False")
        else:
            law(not changed, "a support changed although moves = False")

    def test_the_budget_is_exact_after_every_step(self) -> None:
        """Counts follow `Method.budget` and the density schedule, and end at the density that was asked for."""
        run = start(self.make(self.density))
        check_budget(run, "at the start")
        for step, batch in enumerate(batches(), 1):
            run.step(batch)
            check_budget(run, f"after step {step}")
        sizes = {name: site.parameter.numel() for name, site in run.sparsifier.sites.items()}
        if isinstance(run.method.structure, Unstructured):
            held, asked = sum(s.count for s in run.sparsifier.supports.values()), self.density * sum(sizes.values())
            law(held == round(asked), f"{held} entries are active at the end, density {self.density} is {asked:g}")

    def test_the_budget_is_exact_over_many_rewirings_with_ties_and_zeros(self) -> None:
        """The same where most scores tie and many active weights are exactly zero."""
        model = make_model()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p * 4).round() / 4)
        run = start(self.make(self.density), model, steps=MANY)
        for group in run.optimizer.param_groups:  # dyadic numbers, so that ties stay ties
            group.update(lr=1.0, momentum=0.5, weight_decay=0.0)
        g = torch.Generator().manual_seed(2)
        for step in range(1, MANY + 1):
            run.step(batches(1)[0], _linear_loss(g))
            check_zeros(run, f"after step {step} of {MANY}")
            check_budget(run, f"after step {step} of {MANY}")

    def test_dropped_entries_were_active_and_grown_ones_were_not(self) -> None:
        """A rewiring trades active for inactive entries: one for one, unless the density falls."""
        run = start(self.make(self.density))
        for batch in batches():
            held, n = run.masks(), len(run.rewirings)
            run.step(batch)
            now = run.masks()
            if len(run.rewirings) == n:
                check_same(held, now, "supports changed outside of a rewiring")
                continue
            check_same(held, dict(run.rewirings[-1][1]), "what a rewiring tells its observers to have been active")
            check_same(now, dict(run.rewirings[-1][2]), "what a rewiring tells its observers to be active")
            _check_trade(run.method, held, now)

    def test_newborns_get_the_stated_value_and_slots(self) -> None:
        """Newborn weights are zero (or drawn, as stated) with the stated slots; those of live methods keep theirs."""
        run = start(self.make(self.density), optimizer="AdamW")
        for batch in batches():
            held, n = run.masks(), len(run.rewirings)
            run.step(batch)
            for name, site in run.sparsifier.sites.items():
                now = run.sparsifier.supports[name].mask
                born = now & ~held[name]
                weight = site.parameter.detach()
                if site.trainable is not None:
                    law(torch.equal(weight[now], site.trainable[now]), f"{name}: active values are not trained ones")
                elif len(run.rewirings) > n and born.any():
                    _check_newborn(run, name, born, held[name] & now)

    def test_density_one_is_dense_training(self) -> None:
        """With density 1 every weight equals that of ordinary training, bit for bit, after every step."""
        if self.make(1.0).action is not None:
            raise SkipTest("the method's action moves active weights beside the update")
        for optimizer in OPTIMIZERS:
            run, model = start(self.make(1.0), optimizer=optimizer), make_model()
            dense = OPTIMIZERS[optimizer](list(model.parameters()))
            for step, batch in enumerate(batches()):
                run.step(batch)
                _dense_step(run, model, dense, step, batch)
                ours, theirs = dict(run.model.named_parameters()), dict(model.named_parameters())
                check_same(ours, theirs, f"{optimizer}, density 1 against dense training, after step {step + 1}")

    def test_nan_in_a_masked_gradient_does_not_leak(self) -> None:
        """A NaN in the gradient of a weight that is not trained reaches no weight."""
        inactive = self.make(self.density).inactive
        if isinstance(inactive, Live) and inactive.reach is None:
            raise SkipTest("all inactive weights are trained, their gradient matters")
        if isinstance(inactive, Zero) and inactive.slots == "keep":
            raise SkipTest("the gradient of inactive weights goes into the optimizer's slots")
        for optimizer in OPTIMIZERS:
            run = start(self.make(self.density), optimizer=optimizer)
            for step, batch in enumerate(batches()):
                poisoned = not _looks_at_gradients(run, step)
                run.step(batch, _poisoned_loss(run) if poisoned else loss_of)
                for name, p in run.model.named_parameters():
                    law(torch.isfinite(p).all(), f"{optimizer}: a masked NaN of step {step + 1} reached {name}")

    def test_it_trains_convolutions_small_and_single_layers(self) -> None:
        """The laws hold on plain, grouped and depthwise convolutions, on weights of one entry and on a lone layer."""
        refused = []
        for build, shape in ((one_layer, (16,)), (tiny_layers, (16,)), (convnet, (4, 4, 4))):
            model = make_model(build)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            try:
                run = start(self.make(self.density), model)
            except ConfigError as error:
                check_same(before, dict(model.named_parameters()), f"{build.__name__}, refused")
                refused.append(f"{build.__name__}: {error}")
                continue
            for step, batch in enumerate(batches(shape=shape), 1):
                run.step(batch)
                check_zeros(run, f"{build.__name__}, after step {step}")
                check_budget(run, f"{build.__name__}, after step {step}")
        law(len(refused) < 3, f"the method refuses every model: {refused}")
        if refused:
            raise SkipTest(f"in part; refused: {'; '.join(refused)}")

    def test_it_trains_bfloat16_weights(self) -> None:
        """The laws hold where weights and gradients are bfloat16."""
        run = start(self.make(self.density), make_model().bfloat16())
        for step, batch in enumerate(batches(dtype=torch.bfloat16), 1):
            run.step(batch)
            check_zeros(run, f"bfloat16, after step {step}")
            check_budget(run, f"bfloat16, after step {step}")
            law(all(p.dtype == torch.bfloat16 for p in run.model.parameters()), "a weight changed its dtype")


def _check_resting_slots(run: Run, where: str) -> None:
    inactive = run.method.inactive
    if not (isinstance(inactive, Zero) and inactive.slots == "zero"):
        return
    for name, site in run.sparsifier.sites.items():
        off = ~run.sparsifier.supports[name].mask
        for slot, value in optimizer_state.slots(run.optimizer, site.parameter).items():
            rest = optimizer_state.resting_value(slot, run.optimizer, site.parameter)
            law((value[off] == rest).all(), f"{where}: {slot} of {name} is not {rest:g} off the support")


def _check_trade(method: Method, held: dict[str, Tensor], now: dict[str, Tensor]) -> None:
    dropped = sum(int((held[name] & ~now[name]).sum()) for name in held)
    grown = sum(int((now[name] & ~held[name]).sum()) for name in held)
    if method.budget != "at most":
        constant = isinstance(method.density, Constant)
        law(dropped == grown if constant else dropped >= grown, f"{dropped} entries were dropped, {grown} grown")
    if isinstance(method.rule, Select) and isinstance(method.inactive, Zero):
        law(not grown, f"a rule that only selects among zeros grew {grown} entries")


def _check_newborn(run: Run, name: str, born: Tensor, survived: Tensor) -> None:
    inactive, site = run.method.inactive, run.sparsifier.sites[name]
    assert isinstance(inactive, Zero)
    values = site.parameter.detach()[born]
    limit = 8 * inactive.newborn_std
    law((values.abs() <= limit).all(), f"{name}: newborn values reach {values.abs().max():g}, stated is {limit:g}")
    law(not limit or values.count_nonzero(), f"{name}: newborn values were to be drawn, all are zero")
    if inactive.slots == "keep":
        return
    for slot, held in optimizer_state.slots(run.optimizer, site.parameter).items():
        mean = optimizer_state.is_second_moment(slot) and inactive.newborn == "neutral" and bool(survived.any())
        stated = held[survived].mean() if mean else held.new_zeros(())
        what = "the mean of the surviving" if mean else "0"
        law(torch.allclose(held[born], stated), f"{name}: {slot} of newborn entries is not {what}")


def _linear_loss(g: torch.Generator) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss whose gradient is -1/4, 0 or 1/4 at every position."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        terms = [(p * (torch.randint(-1, 2, p.shape, generator=g) / 4)).sum() for p in model.parameters()]
        return torch.stack(terms).sum()

    return loss


def _poisoned_loss(run: Run) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss whose gradient is NaN wherever a weight is not trained."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = loss_of(model, batch)
        for name, site in run.sparsifier.sites.items():
            assert isinstance(site, DenseSite)
            live = isinstance(site.inactive, Live)  # a live method without a reach trains everything
            everything = torch.ones_like(site.mask) if live else site.mask
            trained = everything if site.traits.reach is None else site.traits.reach
            value = value + (model.get_parameter(name) * torch.where(trained, 0.0, torch.nan)).nansum()
        return value

    return loss


def _looks_at_gradients(run: Run, step: int) -> bool:
    """Whether the dense gradient of `step` (from 0) decides where to grow."""
    rewired_at = step if run.method.at == "replace" else step + 1
    return "grad" in run.method.rule.needs and run.method.clock.due(rewired_at)


def _dense_step(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, batch: Batch) -> None:
    """A step of dense training, but what `run` consumes or decays is consumed and decayed here."""
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    if run.method.at == "replace" and _looks_at_gradients(run, step):
        return
    inactive = run.method.inactive
    if isinstance(inactive, Live) and inactive.active_decay:
        for name in run.sparsifier.sites:
            p = model.get_parameter(name)
            assert p.grad is not None
            p.grad.add_(inactive.active_decay * p.detach())
    optimizer.step()
