"""Learned methods: laws and equivalences, literal transcriptions, resuming, what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import gossamer
from gossamer import Learned, LearnedSparsifier, methods
from gossamer.checkpoint import load_model, load_training, save_model, save_training
from gossamer.cutting import cut
from gossamer.errors import AttachError, CheckpointError, ConfigError, DivergedError, GossamerError
from gossamer.lottery_cs import GateTicket, find_ticket_cs
from gossamer.reparametrise import SoftGate, SoftThreshold
from gossamer.testing import oracles

T = 24
GATES: dict[str, Callable[..., Learned]] = {
    "cs": lambda density, **more: methods.cs(density, **{"finalize": 16, "penalty": 1e-3, **more}),
    "str": lambda density, **more: methods.str_(density, **{"finalize": 16, "s_init": -2.5, **more}),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.BatchNorm1d(12), nn.Linear(12, 4)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(16, 10, generator=g).to(dtype), torch.randint(0, 4, (16,), generator=g)


def loss_of(model: Callable[..., Any], data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(start, stop):
        optimizer.zero_grad()
        loss_of(model, batch(step, dtype)).backward()
        optimizer.step()


def run(
    method: Learned | None, optimizer: str = "sgd", stop: int = T, **settings: Any
) -> tuple[nn.Sequential, torch.optim.Optimizer, Any]:
    model = net(**settings)
    made = OPTIMIZERS[optimizer](model.parameters())
    sparsifier = None if method is None else gossamer.sparsify(model, method, made, total_steps=T)
    steps(model, made, 0, stop)
    return model, made, sparsifier


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name]
        assert same, name


# -- laws --


@pytest.mark.parametrize("method", [methods.cs(0.5), methods.str_(0.5), methods.cs(None), methods.str_(None)])
def test_it_starts_as_the_dense_model_bit_for_bit(method: Learned) -> None:
    plain, model, data = net(), net(), batch(0)
    gossamer.sparsify(model, method, OPTIMIZERS["sgd"](model.parameters()), total_steps=T)
    plain_loss, loss = loss_of(plain, data), loss_of(model, data)
    plain_loss.backward()
    loss.backward()
    assert torch.equal(plain_loss, loss)
    for index in (0, 3):
        assert torch.equal(plain[index].weight, model[index].weight)
        assert torch.equal(plain[index].weight.grad, model[index].parametrizations.weight.original.grad)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "method",
    [methods.cs(None, penalty=0.0, gate_lr=0.0, finalize=1.0), methods.str_(None, s_init=-3200.0)],
    ids=["cs", "str"],
)
def test_gates_that_cannot_move_are_dense_training(method: Learned, optimizer: str) -> None:
    dense, _, _ = run(None, optimizer, T - 1)
    model, _, _ = run(method, optimizer, T - 1)
    for index in (0, 3):
        assert torch.equal(dense[index].weight, model[index].weight)
    assert torch.equal(dense[0].bias, model[0].bias)


@pytest.mark.parametrize("s0", [-0.4, 0.3])
def test_with_another_first_gate_it_starts_as_the_dense_model_to_rounding(s0: float) -> None:
    weight = torch.randn(50, 30)
    gate = SoftGate(s0)
    torch.testing.assert_close(gate.apply(weight, gate.initial(weight), 1.0), weight, rtol=1e-6, atol=0.0)


def test_at_a_high_temperature_the_open_gates_are_those_above_zero() -> None:
    s = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = SoftGate().apply(torch.ones_like(s), s, 1e9)
    assert torch.equal(theta > 1, s > 0)
    assert float((theta > 0).double().mean()) == float((s > 0).double().mean())


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("density", [None, 0.2, 0.9])
def test_after_the_cut_it_is_a_static_method(kind: str, optimizer: str, density: float | None) -> None:
    plain = net()
    model = net()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    made = OPTIMIZERS[optimizer](model.parameters())
    sparsifier = gossamer.sparsify(model, GATES[kind](density), made, total_steps=T)
    steps(model, made, 0, 16)
    assert sparsifier.finalized
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not any(is_parametrized(module) for module in model)
    assert type(model[0]) is nn.Linear
    held = [p for group in made.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(held, parameters, strict=True))
    supports = {name: support.mask for name, support in sparsifier.supports.items()}
    for step in range(16, T):
        for name, mask in supports.items():
            weight = model.get_parameter(name)
            assert bool((weight[~mask] == 0).all())
            assert not bool(torch.signbit(weight[~mask]).any()), "exactly +0"
        steps(model, made, step, step + 1)
        for name, mask in supports.items():
            for slot in made.state[model.get_parameter(name)].values():
                assert slot.ndim == 0 or bool((slot[~mask] == 0).all())
            assert torch.equal(sparsifier.supports[name].mask, mask)
    if density is not None:
        assert sparsifier.summary().active == round(density * (120 + 48))
    assert sparsifier.step == T
    assert_same(
        {k: v.shape for k, v in model.state_dict().items()}, {k: v.shape for k, v in plain.state_dict().items()}
    )


@pytest.mark.parametrize("kind", GATES)
def test_without_a_density_the_cut_changes_what_the_gates_say_only(kind: str) -> None:
    model, _, sparsifier = run(GATES[kind](None), stop=15)
    soft = {name: w.gating for name, w in sparsifier._weights.items()}
    steps(model, sparsifier._hooks.optimizers[0], 15, 16)
    for name, gating in soft.items():
        opened = gating.s > 0 if kind == "cs" else model.get_parameter(name) != 0
        assert torch.equal(sparsifier.supports[name].mask, opened)


def test_the_cut_keeps_exact_counts_under_ties_and_one_entry_per_weight() -> None:
    openness = {"a": torch.zeros(10, 10), "b": torch.full((5,), -3.0)}
    masks = cut(openness, 0.1)
    assert int(masks["b"].sum()) == 1
    assert masks["a"].reshape(-1)[:9].all(), "ties go to the lower index"
    assert int(masks["a"].sum()) == 9
    assert [int(mask.sum()) for mask in cut(openness, None).values()] == [1, 1]


@pytest.mark.parametrize("kind", GATES)
def test_observers_see_the_cut_once(kind: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = gossamer.sparsify(model, GATES[kind](0.25), optimizer, total_steps=T)
    seen: list[Any] = []
    sparsifier.watch(lambda step, before, after: seen.append((step, before, after)))
    sparsifier.watch(lambda *args: seen.append(args)).remove()
    steps(model, optimizer, 0, T)
    ((step, before, after),) = seen
    assert step == 16
    assert all(bool(mask.all()) for mask in before.values())
    assert {n: s.mask.tolist() for n, s in sparsifier.supports.items()} == {n: m.tolist() for n, m in after.items()}


# -- values by hand --


def test_golden_gates() -> None:
    s = torch.tensor(-0.05, dtype=torch.float64)
    assert float(torch.sigmoid(1 * s)) == pytest.approx(0.49, abs=0.003)
    assert float(SoftGate().apply(torch.tensor(1.0, dtype=torch.float64), s, 200.0)) == pytest.approx(
        2 / (1 + math.exp(10)), rel=1e-12
    )
    assert 1 / (1 + math.exp(10)) == pytest.approx(5e-5, rel=0.1)
    gate = SoftGate(temperature=200.0)
    assert [gate.beta(t, 85) for t in (0, 42, 84)] == pytest.approx([1.0, 200**0.5, 200.0])
    assert SoftGate(penalty=2.0).penalty_gradient(torch.zeros(1), 3.0).item() == pytest.approx(2 * 3 / 4)


def test_golden_threshold() -> None:
    gate = SoftThreshold(0.0)
    weight = torch.tensor([2.0, -0.75, 0.5, -0.5, 0.0])
    assert gate.apply(weight, gate.initial(weight), 1.0).tolist() == [1.5, -0.25, 0.0, 0.0, 0.0]
    assert float(torch.sigmoid(torch.tensor(-3200.0))) == 0.0
    assert float(torch.sigmoid(torch.tensor(-3200.0, dtype=torch.float64))) == 0.0


@pytest.mark.parametrize("gate", [SoftGate(0.2), SoftThreshold(-1.0)])
def test_gradients_by_finite_differences(gate: SoftGate | SoftThreshold) -> None:
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 5, generator=g, dtype=torch.float64)
    extra = gate.initial(weight) + 0.1 * torch.randn(gate.initial(weight).shape, generator=g, dtype=torch.float64)
    weight.requires_grad_()
    extra.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, s: gate.apply(w, s, 3.0), (weight, extra), eps=1e-7)


def test_the_penalty_is_the_gradient_of_smooth_l0() -> None:
    gate, s = SoftGate(penalty=0.3), torch.randn(20, dtype=torch.float64, requires_grad=True)
    (gate.penalty * torch.sigmoid(7.0 * s).sum()).backward()
    torch.testing.assert_close(s.grad, gate.penalty_gradient(s.detach(), 7.0))


# -- literal transcriptions --


def follow(model: nn.Sequential, sparsifier: LearnedSparsifier, trace: list[oracles.LearnedStep], train: Any) -> None:
    exact = {"rtol": 1e-12, "atol": 1e-12}
    for step, expected in enumerate(trace):
        assert train(step) == pytest.approx(expected.loss, rel=1e-12)
        for name, weight in sparsifier._weights.items():
            torch.testing.assert_close(weight.parameter.detach(), expected.weights[name], **exact)
            if not sparsifier.finalized:
                torch.testing.assert_close(weight.s.detach(), expected.gates[name], **exact)
        for name, value in expected.others.items():
            torch.testing.assert_close(model.get_parameter(name).detach(), value, **exact)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("s0", "density"), [(0.0, None), (0.05, 0.3), (-0.1, 0.1)])
def test_cs_equals_its_transcription(optimizer: str, s0: float, density: float | None) -> None:
    knobs = {"penalty": 3e-3, "temperature": 50.0, "gate_lr": 0.3, "gate_momentum": 0.9}
    factor = lambda t: 1 - t / (T + 1)  # noqa: E731
    trace = oracles.cs_oracle(
        net(dtype=torch.float64),
        ["0.weight", "3.weight"],
        OPTIMIZERS[optimizer],
        [batch(t, torch.float64) for t in range(T)],
        loss_of,
        s0=s0,
        end=18,
        density=density,
        rate=factor,
        **knobs,
    )
    model = net(dtype=torch.float64)
    made = OPTIMIZERS[optimizer](model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(made, factor)
    sparsifier = gossamer.sparsify(model, methods.cs(density, s0, finalize=0.75, **knobs), made, total_steps=T)

    def train(step: int) -> float:
        made.zero_grad()
        loss = loss_of(model, batch(step, torch.float64))
        loss.backward()
        made.step()
        schedule.step()
        return float(loss.detach())

    follow(model, sparsifier, trace, train)
    assert sparsifier.finalized


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("end", "density"), [(T, None), (18, 0.3)])
def test_str_equals_its_transcription(optimizer: str, end: int, density: float | None) -> None:
    trace = oracles.str_oracle(
        net(dtype=torch.float64),
        ["0.weight", "3.weight"],
        OPTIMIZERS[optimizer],
        [batch(t, torch.float64) for t in range(T)],
        loss_of,
        s_init=-2.5,
        end=end,
        density=density,
    )
    model = net(dtype=torch.float64)
    made = OPTIMIZERS[optimizer](model.parameters())
    sparsifier = gossamer.sparsify(model, methods.str_(density, -2.5, finalize=end), made, total_steps=T)

    def train(step: int) -> float:
        made.zero_grad()
        loss = loss_of(model, batch(step, torch.float64))
        loss.backward()
        made.step()
        return float(loss.detach())

    follow(model, sparsifier, trace, train)


# -- resuming --


def rebuilt(kind: str, optimizer: str) -> tuple[nn.Sequential, torch.optim.Optimizer, LearnedSparsifier]:
    model = net(seed=9)
    made = OPTIMIZERS[optimizer](model.parameters())
    return model, made, gossamer.sparsify(model, GATES[kind](0.3), made, total_steps=T)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", GATES)
def test_a_run_resumes_bit_for_bit_at_every_step(kind: str, optimizer: str, tmp_path: Path) -> None:
    whole, _, reference = run(GATES[kind](0.3), optimizer)
    model, made, sparsifier = run(GATES[kind](0.3), optimizer, stop=0)
    for step in range(T):
        save_training(tmp_path / "x", model=model, optimizers=made, sparsifier=sparsifier, extra=step)
        model, made, sparsifier = rebuilt(kind, optimizer)
        assert load_training(tmp_path / "x", model=model, optimizers=made, sparsifier=sparsifier) == step
        assert sparsifier.step == step
        steps(model, made, step, step + 1)
    assert_same(dict(whole.state_dict()), dict(model.state_dict()))
    assert sparsifier.supports.keys() == reference.supports.keys()
    assert all(sparsifier.supports[n] == s for n, s in reference.supports.items())


@pytest.mark.parametrize("kind", GATES)
def test_the_state_dicts_alone_resume_a_run(kind: str) -> None:
    whole, _, _ = run(GATES[kind](0.3))
    for stop in (7, 16, 20):
        model, made, sparsifier = run(GATES[kind](0.3), stop=stop)
        saved = copy.deepcopy((sparsifier.state_dict(), model.state_dict(), made.state_dict()))
        model, made, sparsifier = rebuilt(kind, "sgd")
        for part, state in zip((sparsifier, model, made), saved, strict=True):
            part.load_state_dict(state)
        steps(model, made, stop, T)
        assert_same(dict(whole.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("kind", GATES)
def test_a_finished_run_goes_back_to_an_early_checkpoint(kind: str, tmp_path: Path) -> None:
    whole, _, _ = run(GATES[kind](0.3))
    model, made, sparsifier = run(GATES[kind](0.3), stop=5)
    save_training(tmp_path / "x", model=model, optimizers=made, sparsifier=sparsifier)
    steps(model, made, 5, T)
    load_training(tmp_path / "x", model=model, optimizers=made, sparsifier=sparsifier)
    assert not sparsifier.finalized
    steps(model, made, 5, T)
    assert_same(dict(whole.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("saved", [5, 20])
@pytest.mark.parametrize("now", [3, 18])
def test_a_load_that_fails_changes_nothing(kind: str, saved: int, now: int, tmp_path: Path) -> None:
    model, made, sparsifier = run(GATES[kind](0.3), stop=saved)
    other = nn.Sequential(*model, nn.Linear(4, 4))  # the same sparse weights, and more
    save_training(tmp_path / "x", model=other, optimizers=made, sparsifier=sparsifier)
    whole, _, _ = run(GATES[kind](0.3))
    model, made, sparsifier = run(GATES[kind](0.3), stop=now)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_training(tmp_path / "x", model=model, optimizers=made, sparsifier=sparsifier)
    steps(model, made, now, T)
    assert_same(dict(whole.state_dict()), dict(model.state_dict()))


def test_states_that_do_not_fit_are_refused() -> None:
    _, _, sparsifier = run(GATES["cs"](0.3), stop=4)
    good = sparsifier.state_dict()
    for change, message in [
        ({"version": 7}, "has version 7"),
        ({"method": "str"}, "saved method is 'str'"),
        ({"density": 0.5}, "saved density is 0.5"),
        ({"finalize": 3}, "saved finalize is 3"),
        ({"step": -1}, "damaged: step -1"),
        ({"finalized_at": 3}, "damaged: step 4, cut at 3"),
        ({"seed": "x"}, "damaged: seed is str"),
        ({"base_rates": {}}, "another model or other targets"),
        ({"base_rates": {"0.weight": 0.1, "3.weight": "x"}}, "first learning rate of 3.weight is 'x'"),
        ({"momenta": {"0.weight": torch.zeros(2)}}, "momentum of the gates of 0.weight"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            sparsifier.load_state_dict({**good, **change})
    with pytest.raises(CheckpointError, match="no state of a LearnedSparsifier"):
        sparsifier.load_state_dict({"supports": {}})


def test_the_deployable_model_is_plain_and_soft_gates_are_not_one(tmp_path: Path) -> None:
    model, made, sparsifier = run(GATES["cs"](0.3), stop=4)
    with pytest.raises(CheckpointError, match=r"gates of this model are soft.*finalize\(\)"):
        save_model(tmp_path / "m", model, sparsifier)
    sparsifier.finalize()
    sparsifier.finalize()  # once is enough
    save_model(tmp_path / "m", model, sparsifier)
    fresh = net(seed=5)
    load_model(tmp_path / "m", fresh)
    assert_same(dict(fresh.state_dict()), dict(model.state_dict()))
    steps(model, made, 4, 8)
    assert sparsifier.step == 8
    assert sparsifier.summary().active == round(0.3 * 168)


# -- loops --


def test_several_optimizers_clip_and_accumulation() -> None:
    model = net()
    one = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    two = torch.optim.AdamW([*model[2].parameters(), *model[3].parameters()], lr=0.01)
    sparsifier = gossamer.sparsify(model, GATES["cs"](0.2), [one, two], total_steps=T)
    for step in range(T):
        for micro in range(2):
            (loss_of(model, batch(2 * step + micro)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
    assert sparsifier.summary().active == round(0.2 * 168)


class Scaler(torch.amp.GradScaler):
    """A GradScaler that scales on the CPU and skips a step on demand."""

    def __init__(self) -> None:
        super().__init__("cpu", init_scale=1024.0, growth_interval=10_000)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_a_grad_scaler_scales_the_gates_too_and_a_skipped_step_skips_them(kind: str, fused: bool) -> None:
    def train(scaled: bool) -> dict[str, Tensor]:
        model = net(dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
        sparsifier = gossamer.sparsify(model, GATES[kind](0.3), optimizer, total_steps=T)
        scaler = Scaler()
        for step in range(T + scaled):  # the scaled run loses one step to an overflow
            overflow = scaled and step == 5
            data = batch(step - (scaled and step > 5), torch.float64)
            optimizer.zero_grad()
            if not scaled:
                loss_of(model, data).backward()
                optimizer.step()
                continue
            (scaler.scale(loss_of(model, data)) * (math.inf if overflow else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update(1024.0)
            assert sparsifier.step == step + (step < 5)
        return dict(model.state_dict())

    plain, scaled = train(False), train(True)
    for name in ("0.weight", "0.bias", "3.weight"):
        torch.testing.assert_close(plain[name], scaled[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", GATES)
def test_a_compiled_model_trains_the_same(kind: str) -> None:
    torch._dynamo.reset()
    whole, _, _ = run(GATES[kind](0.3))
    model = net()
    made = OPTIMIZERS["sgd"](model.parameters())
    gossamer.sparsify(model, GATES[kind](0.3), made, total_steps=T)
    compiles = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compiles
        compiles += 1
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    counts = []
    for step in range(T):
        steps(compiled, made, step, step + 1)
        counts.append(compiles)
    assert_same(dict(whole.state_dict()), dict(model.state_dict()))
    assert counts[0] == counts[15] < counts[16] == counts[-1], "compiled again when the gates are cut, and only then"


@pytest.mark.parametrize("kind", GATES)
def test_an_optimizer_made_or_changed_afterwards(kind: str) -> None:
    whole, _, _ = run(GATES[kind](0.3))
    model = net()
    sparsifier = gossamer.sparsify(model, GATES[kind](0.3), total_steps=T)
    made = OPTIMIZERS["sgd"](model.parameters())  # holds the gates as ordinary parameters
    sparsifier.attach(made)
    steps(model, made, 0, T)
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(AttachError, match="attached to that optimizer already"):
        sparsifier.attach(made)
    another = OPTIMIZERS["adamw"](model.parameters())
    sparsifier.attach(another)
    steps(model, another, 0, 3)
    assert sparsifier.summary().active == round(0.3 * 168)
    assert sparsifier.step == T + 3


@pytest.mark.parametrize("stop", [5, 20])
def test_detach_leaves_a_plain_model_that_computes_the_same(stop: int) -> None:
    model, made, sparsifier = run(GATES["cs"](0.3), stop=stop)
    model.eval()
    x = batch(99)[0]
    before = model(x)
    sparsifier.detach()
    assert torch.equal(model(x), before)
    assert [*model.state_dict()] == [*net().state_dict()]
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(model.parameters()))
    with pytest.raises(AttachError, match="was detached"):
        sparsifier.attach(made)


def test_an_exception_inside_a_step_is_forgotten() -> None:
    whole, _, _ = run(GATES["cs"](0.3))
    model, made, sparsifier = run(GATES["cs"](0.3), stop=4)
    made.zero_grad()
    loss_of(model, batch(4)).backward()
    handle = made.register_step_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        made.step()
    handle.remove()
    sparsifier.restore()
    steps(model, made, 4, T)
    assert_same(dict(whole.named_parameters()), dict(model.named_parameters()))


def test_gates_without_an_optimizer_warn() -> None:
    model = net()
    gossamer.sparsify(model, GATES["cs"](0.3), total_steps=T)
    with pytest.warns(UserWarning, match="no optimizer is attached"):
        loss_of(model, batch(0)).backward()


# -- what is refused --


def refused(error: type[GossamerError], match: str, make: Callable[[], Any]) -> None:
    with pytest.raises(error, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_arguments_that_cannot_work() -> None:
    refused(ConfigError, "density is the fraction", lambda: methods.cs(1.5))
    refused(ConfigError, "finalize=1.5", lambda: methods.cs(0.1, finalize=1.5))
    refused(ConfigError, "finalize=0", lambda: methods.str_(0.1, finalize=0))
    refused(ConfigError, "s_init='a'", lambda: methods.cs(0.1, s_init="a"))  # type: ignore[arg-type]
    refused(ConfigError, "s_init=nan", lambda: methods.str_(0.1, s_init=math.nan))
    refused(ConfigError, "penalty=-1", lambda: methods.cs(0.1, penalty=-1))
    refused(ConfigError, "temperature=0.5", lambda: methods.cs(0.1, temperature=0.5))
    refused(ConfigError, "gate_lr=-1", lambda: methods.cs(0.1, gate_lr=-1))
    refused(ConfigError, "gate_momentum=1", lambda: methods.cs(0.1, gate_momentum=1))
    refused(ConfigError, "needs total_steps", lambda: gossamer.sparsify(net(), methods.cs(0.1)))
    refused(ConfigError, "total_steps=0", lambda: gossamer.sparsify(net(), methods.cs(0.1), total_steps=0))
    late = methods.cs(0.1, finalize=50)
    refused(ConfigError, "after the last of 24", lambda: gossamer.sparsify(net(), late, total_steps=T))
    tiny = methods.cs(0.001)
    refused(ConfigError, "keeps 0 of 168 entries", lambda: gossamer.sparsify(net(), tiny, total_steps=T))
    refused(ConfigError, "expected a learned method", lambda: LearnedSparsifier(net(), methods.static(0.1)))  # type: ignore[arg-type]
    bad: Any = "x"
    refused(ConfigError, "seed='x'", lambda: gossamer.sparsify(net(), methods.cs(0.1), total_steps=T, seed=bad))


def test_weights_and_optimizers_that_cannot_be_gated() -> None:
    method, lstm = methods.cs(0.2, finalize=3), nn.LSTM(4, 5)
    refused(AttachError, "flat list", lambda: gossamer.sparsify(lstm, method))
    with torch.device("meta"):
        empty = nn.Linear(4, 4)
    refused(AttachError, "meta device", lambda: gossamer.sparsify(empty, method))
    shared = nn.Linear(4, 4)
    tied = nn.ModuleList([shared, nn.Linear(4, 4)])
    tied[1].weight = shared.weight
    refused(AttachError, "shared by 2 modules", lambda: gossamer.sparsify(tied, method, targets=["0.weight"]))
    model = net()
    gossamer.sparsify(model, methods.static(0.5))
    refused(AttachError, "sparsified already", lambda: gossamer.sparsify(model, method))
    model = net()
    lbfgs = torch.optim.LBFGS(model.parameters())
    refused(AttachError, "LBFGS evaluates", lambda: gossamer.sparsify(model, method, lbfgs))
    bare = nn.Linear(6, 6, bias=False)
    muon = torch.optim.Muon(bare.parameters(), lr=0.1)
    threshold = methods.str_(0.2, finalize=3)
    refused(AttachError, "Muon steps matrices", lambda: gossamer.sparsify(bare, threshold, muon))
    assert not is_parametrized(bare), "nothing has changed"
    sparsifier = gossamer.sparsify(bare, method, muon)
    for step in range(5):
        muon.zero_grad()
        bare(batch(step)[0][:, :6]).square().sum().backward()
        muon.step()
    assert sparsifier.finalized


def test_a_replaced_weight_a_nan_and_copies_are_noticed() -> None:
    model, made, sparsifier = run(GATES["cs"](0.3), stop=3)
    refused(AttachError, "cannot be copied", lambda: copy.deepcopy(sparsifier))
    refused(AttachError, "cannot be pickled", sparsifier.__reduce__)
    assert repr(sparsifier).startswith("LearnedSparsifier(cs, step=3, soft, weights=2")
    with torch.no_grad():
        sparsifier._weights["0.weight"].s[0, 0] = math.nan
    refused(DivergedError, "gates of 0.weight are NaN", sparsifier.finalize)
    assert not sparsifier.finalized
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    refused(AttachError, "replaced by another Parameter", lambda: steps(model, made, 3, 4))


def test_tickets_are_sent_elsewhere() -> None:
    method: Any = methods.lottery(0.1)
    refused(ConfigError, "use gossamer.lottery.find_ticket", lambda: gossamer.sparsify(net(), method))


# -- ticket search --


def searched(rounds: int, rewind: int | float, **more: Any) -> tuple[nn.Sequential, GateTicket, list[Any]]:
    calls: list[Any] = []
    model = net()

    def train(model: nn.Module, attach: Callable[[Any], None], start: int, stop: int) -> None:
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        attach(optimizer)
        calls.append((start, stop))
        steps(model, optimizer, start, more.get("stop", T))

    method, total = methods.cs(more.get("density"), penalty=1e-3), more.get("total", T)
    return model, find_ticket_cs(model, train, method, total_steps=total, rounds=rounds, rewind=rewind), calls


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_ticket_is_the_early_weights_on_the_open_gates(rounds: int) -> None:
    early, _, _ = run(methods.cs(None, penalty=1e-3, finalize=1.0), stop=6)
    model, ticket, calls = searched(rounds, 6)
    assert calls == [(0, T)] * rounds
    assert [*model.state_dict()] == [*net().state_dict()]
    for name, support in ticket.supports.items():
        dense = early.get_parameter(f"{name[0]}.parametrizations.weight.original")
        assert torch.equal(model.get_parameter(name), torch.where(support.mask, dense, torch.zeros_like(dense)))
    for name in ("0.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked"):
        assert torch.equal(model.state_dict()[name], early.state_dict()[name])
    fresh = net(seed=4)
    ticket.apply(fresh)
    assert_same(dict(fresh.state_dict()), dict(model.state_dict()))
    made = OPTIMIZERS["sgd"](fresh.parameters())
    sparsifier = gossamer.sparsify(fresh, ticket.method(), made)
    steps(fresh, made, ticket.step, T)
    assert all(sparsifier.supports[name] == support for name, support in ticket.supports.items())
    assert sparsifier.summary().density == ticket.density


def test_one_round_finds_what_pruning_cuts_and_further_rounds_start_suppressed() -> None:
    _, _, pruned = run(methods.cs(None, penalty=1e-3, finalize=1.0))
    _, once, _ = searched(1, 0)
    assert dict(once.supports) == dict(pruned.supports)
    _, thrice, _ = searched(3, 0.25)
    assert thrice.step == 6
    assert thrice.density <= once.density
    _, exact, _ = searched(2, 0, density=0.25)
    assert sum(s.count for s in exact.supports.values()) == round(0.25 * 168)
    _, skipped, _ = searched(2, 0, density=0.25, stop=T - 3)  # as where a GradScaler skips
    assert skipped.density == exact.density


def test_between_rounds_suppressed_gates_stay_suppressed_and_weights_go_on() -> None:
    from gossamer.lottery_cs import _Search

    model = net()
    search = _Search(model, methods.cs(None, finalize=T), 0, total_steps=T)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    search.attach(optimizer)
    steps(model, optimizer, 0, T - 1)
    gate = search._weights["0.weight"]
    with torch.no_grad():
        gate.s[0, :2] = torch.tensor([-0.05, 0.3])
    optimizer.zero_grad()
    gate.momentum.zero_()
    weights = gate.parameter.detach().clone()
    model.requires_grad_(False)  # a step without gradients: only the penalty moves gates, by next to nothing
    optimizer.step()
    search.end_round(last=False)
    assert search.step == 0
    assert gate.s[0, :2].tolist() == pytest.approx([-10.0, 0.0], abs=1e-3)
    assert float(torch.sigmoid(gate.s[0, 0])) == pytest.approx(5e-5, rel=0.1)
    assert float(gate.gating.beta) == 1.0
    assert torch.equal(gate.parameter, weights)


def test_searches_that_cannot_work() -> None:
    idle = lambda *_: None  # noqa: E731
    find = lambda method, **more: find_ticket_cs(net(), idle, method, total_steps=T, **more)  # noqa: E731
    refused(ConfigError, "needs soft gates", lambda: find(methods.str_(0.1)))
    refused(ConfigError, "rounds=0", lambda: find(methods.cs(0.1), rounds=0))
    refused(ConfigError, "rewind=1.0", lambda: find(methods.cs(0.1), rewind=1.0))
    refused(ConfigError, "rewind is a time.* got nan", lambda: find(methods.cs(0.1), rewind=math.nan))
    refused(ConfigError, "made no step with the optimizer", lambda: find(methods.cs(0.1)))
    refused(ConfigError, "makes more than the 6 steps", lambda: searched(2, 0, total=6))
    refused(ConfigError, "fewer steps than rewind=20", lambda: searched(2, 20, stop=10))
    bad: Any = None
    refused(ConfigError, "total_steps='x'", lambda: find_ticket_cs(net(), idle, methods.cs(0.1), total_steps="x"))  # type: ignore[arg-type]
    refused(ConfigError, "model is None", lambda: find_ticket_cs(bad, idle, methods.cs(0.1), total_steps=T))
    refused(ConfigError, "train is None", lambda: find_ticket_cs(net(), bad, methods.cs(0.1), total_steps=T))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda model: model.append(nn.Linear(4, 4)), r"4\.bias, 4\.weight"),
        (lambda model: model.__setitem__(3, nn.Linear(12, 4)), r"3\.bias, 3\.parametrizations"),
    ],
)
def test_a_search_notices_that_train_changes_the_model(change: Callable[[nn.Module], Any], names: str) -> None:
    def train(model: nn.Module, attach: Callable[[Any], None], start: int, stop: int) -> None:
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        attach(optimizer)
        steps(model, optimizer, start, stop)
        change(model)

    model = net()
    match = rf"train\(\) added, removed or replaced {names}.*; build the whole model before find_ticket_cs"
    refused(AttachError, match, lambda: find_ticket_cs(model, train, methods.cs(0.2), total_steps=6, rounds=1))
    assert not any(is_parametrized(module) for module in model.modules())
