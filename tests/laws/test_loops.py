"""The training loop does not change: closures, accumulation, schedulers, scalers, copies, exceptions."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import methods, optimizer_state

from .settings import (
    LIVE_OK,
    OPTIMIZERS,
    assert_same,
    batches,
    cases,
    equal_trees,
    foresight_methods,
    further_methods,
    grows_dense,
    is_live,
    loss_of,
    make_optimizer,
    mlp,
    small_methods,
    some_optimizer,
    sparse_run,
    train_step,
    weights,
)

METHODS = list(small_methods())


def zero_off(sparsifier: gossamer.Sparsifier) -> bool:
    return all(bool((s.parameter[~sparsifier.supports[n].mask] == 0).all()) for n, s in sparsifier.sites.items())


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_closure_equals_plain_loop(method: str, positional: bool) -> None:
    """Lightning always passes a closure; forward and backward inside it must meet the sparse weights."""
    plain, closed = mlp(), mlp()
    with sparse_run(plain, small_methods()[method], "adamw") as (_, optimizers):
        for batch in batches():
            train_step(plain, optimizers, batch)
    with sparse_run(closed, small_methods()[method], "adamw") as (sparsifier, (optimizer,)):
        for batch in batches():

            def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                optimizer.zero_grad()
                assert zero_off(sparsifier), "the closure's forward pass must see the sparse model"
                loss = loss_of(closed, batch)
                loss.backward()
                return loss

            loss = optimizer.step(closure) if positional else optimizer.step(closure=closure)
            assert torch.isfinite(loss)
    assert_same(weights(plain), weights(closed))


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_equals_the_large_batch(method: str) -> None:
    """Two half batches, averaged, are one batch: growth sees the averaged gradient (float64, to rounding)."""
    whole, halves = mlp().double(), mlp().double()
    data = [(x.double(), y) for x, y in batches()]
    with sparse_run(whole, small_methods()[method], "sgd-momentum") as (a, optimizers):
        for batch in data:
            train_step(whole, optimizers, batch)
    with sparse_run(halves, small_methods()[method], "sgd-momentum") as (b, (optimizer,)):
        for x, y in data:
            optimizer.zero_grad()
            for part in (slice(0, 4), slice(4, 8)):
                (loss_of(halves, (x[part], y[part])) / 2).backward()
            optimizer.step()
        for name in a.supports:
            assert a.supports[name] == b.supports[name]
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(halves)[name])


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("method", ["rigl", "set", "rewire"])
def test_scheduler_may_be_built_before_or_after(method: str, before: bool) -> None:
    def run(scheduler_first: bool) -> dict[str, Tensor]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if scheduler_first:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        sparsifier = gossamer.sparsify(model, small_methods()[method], optimizer, total_steps=12)
        if not scheduler_first:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        for batch in batches():
            train_step(model, [optimizer], batch)
            scheduler.step()
        assert sparsifier.step == 12
        assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**4
        return weights(model)

    assert_same(run(before), run(True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["rigl", "set", "rewire", "static"])
def test_a_step_skipped_by_the_grad_scaler_is_no_step(method: str, fused: bool) -> None:
    def run(with_bad_step: bool) -> tuple[dict[str, Tensor], int]:
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        sparsifier = gossamer.sparsify(model, small_methods()[method], optimizer, total_steps=50)
        # A power of two that does not change: scaling and unscaling are exact.
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10**6, backoff_factor=0.5)
        for step, batch in enumerate(batches()):
            if with_bad_step and step in (3, 6):
                optimizer.zero_grad()
                scaler.scale(loss_of(model, batch) * torch.inf).backward()
                before = weights(model)
                scaler.step(optimizer)
                scaler.update(new_scale=8.0)
                assert_same(before, weights(model))
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert zero_off(sparsifier)
        return weights(model), sparsifier.step

    (clean, clean_step), (bumpy, bumpy_step) = run(False), run(True)
    assert clean_step == bumpy_step == 12
    assert_same(clean, bumpy)


def test_growth_sees_unscaled_gradients_of_a_fused_optimizer() -> None:
    seen: list[float] = []
    score = gossamer.topology.Score(
        "spy", lambda e: (seen.append(float(e.grad.abs().sum())), e.grad.abs())[1], frozenset({"grad"})
    )
    for scale in (1.0, 1024.0):
        model = mlp()
        method = methods.rigl(0.3, every=2, stop=10)
        rule = gossamer.topology.DropGrow(gossamer.topology.scores.magnitude, score, 0.3)
        method = gossamer.Method(**{**vars(method), "rule": rule})
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        gossamer.sparsify(model, method, optimizer, total_steps=20)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for batch in batches(n=3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert seen[:3] == pytest.approx(seen[3:])


@pytest.mark.parametrize("method", METHODS)
def test_clipping_sees_the_gated_gradient(method: str) -> None:
    """Off the support there is nothing to clip for methods with zero inactive weights, except on growth steps."""
    model, chosen = mlp(), small_methods()[method]
    with sparse_run(model, chosen, some_optimizer(chosen)) as (sparsifier, (optimizer,)):
        for batch in batches(n=8):
            grown = grows_dense(sparsifier)
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            for site in sparsifier.sites.values():
                dense = bool((site.parameter.grad[~site.mask] != 0).any())
                if not is_live(sparsifier.method):
                    assert dense == (grown and not bool(site.mask.all()))
                elif site.traits.reach is not None:
                    assert not (site.parameter.grad[~site.traits.reach] != 0).any()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()


SAVED = [(m, o) for m in ("set", "rigl", "rewire-reset", "rewire-fix") for o in LIVE_OK]
SAVED += [(m, o) for m, o in cases() if m in further_methods() | foresight_methods() and o in ("sgd-momentum", "adamw")]


@pytest.mark.parametrize(("method", "optimizer"), SAVED)
def test_saved_and_loaded_goes_on_bit_for_bit(method: str, optimizer: str) -> None:
    """Law 5 in one process; the state survives torch.save(weights_only=True)."""
    straight = mlp()
    with sparse_run(straight, small_methods()[method], optimizer) as (_, optimizers):
        for batch in batches():
            train_step(straight, optimizers, batch)
    model = mlp()
    with sparse_run(model, small_methods()[method], optimizer) as (sparsifier, optimizers):
        for batch in batches()[:5]:
            train_step(model, optimizers, batch)
        buffer = io.BytesIO()
        torch.save([model.state_dict(), [o.state_dict() for o in optimizers], sparsifier.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    model = mlp(seed=77)  # other latents, other supports, other signs
    with sparse_run(model, small_methods()[method], optimizer) as (sparsifier, optimizers):
        for batch in batches(seed=5)[:3]:  # and a past of its own
            train_step(model, optimizers, batch)
        model.load_state_dict(saved[0])
        for o, state in zip(optimizers, saved[1], strict=True):
            o.load_state_dict(state)
        sparsifier.load_state_dict(saved[2])
        assert sparsifier.step == 5
        assert equal_trees(sparsifier.state_dict(), saved[2])
        for batch in batches()[5:]:
            train_step(model, optimizers, batch)
    assert_same(weights(straight), weights(model))


class Boom(torch.optim.SGD):
    """Raises in the middle of a step, when told to; otherwise its step runs inside another hooked step."""

    armed = False

    def step(self, closure=None):  # type: ignore[no-untyped-def, override]
        if self.armed:
            raise KeyboardInterrupt
        return super().step(closure)


def test_an_exception_in_the_step_never_leaves_a_dense_model_unnoticed() -> None:
    model = mlp()
    optimizer = Boom(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, methods.rewire(0.3), optimizer)
    train_step(model, [optimizer], batches()[0])
    optimizer.armed = True
    with pytest.raises(KeyboardInterrupt):
        train_step(model, [optimizer], batches()[1])
    optimizer.armed = False
    with pytest.raises(gossamer.GossamerError, match=r"call sparsifier\.restore"):
        sparsifier.state_dict()
    with pytest.raises(gossamer.GossamerError, match=r"call sparsifier\.restore"):
        optimizer.step()
    sparsifier.restore()
    assert zero_off(sparsifier)
    assert sparsifier.step == 1
    train_step(model, [optimizer], batches()[1])
    assert sparsifier.step == 2


@pytest.mark.parametrize("method", METHODS)
def test_deepcopy_gives_an_independent_plain_model(method: str) -> None:
    model, chosen = mlp(), small_methods()[method]
    with sparse_run(model, chosen, some_optimizer(chosen)) as (sparsifier, optimizers):
        train_step(model, optimizers, batches()[0])
        twin = copy.deepcopy(model)
        before = weights(twin)
        assert_same(before, weights(model))
        train_step(model, optimizers, batches()[1])
        assert_same(before, weights(twin))
        assert list(twin.state_dict()) == list(model.state_dict()) == list(mlp().state_dict())
        gossamer.sparsify(twin, methods.static(0.5)).detach()
        assert sparsifier.step == 2


def test_two_optimizers_make_one_step() -> None:
    model = mlp()
    first, last = list(model.parameters())[:4], list(model.parameters())[4:]
    optimizers = [torch.optim.SGD(first, lr=0.1), torch.optim.Adam(last, lr=0.01)]
    for method in ("rewire-reset", "rigl", "set"):
        sparsifier = gossamer.sparsify(model, small_methods()[method], optimizers, total_steps=12)
        for step, batch in enumerate(batches()):
            for o in optimizers:
                o.zero_grad()
            loss_of(model, batch).backward()
            optimizers[0].step()
            assert sparsifier.step == step
            assert zero_off(sparsifier)
            optimizers[1].step()
            assert sparsifier.step == step + 1
            assert zero_off(sparsifier)
        sparsifier.detach()


def test_rigl_growth_step_moves_no_parameter_of_any_optimizer() -> None:
    model = mlp()
    optimizers = make_optimizer("muon", model)
    gossamer.sparsify(model, methods.rigl(0.3, every=2), optimizers, total_steps=20)
    for step, batch in enumerate(batches(n=6)):
        before = weights(model)
        train_step(model, optimizers, batch)
        biases = {n: v for n, v in weights(model).items() if v.ndim == 1}
        still = all(torch.equal(v, before[n]) for n, v in biases.items())
        assert still == (step in (2, 4))


def test_detach_leaves_a_plain_sparse_model() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, methods.rewire(0.3), optimizer)
    train_step(model, [optimizer], batches()[0])
    zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)
    sparsifier.detach()
    assert zeros >= sum(s.numel - s.count for s in sparsifier.supports.values())
    train_step(model, [optimizer], batches()[1])
    assert sparsifier.step == 1
    assert not optimizer._optimizer_step_pre_hooks
    gossamer.sparsify(model, methods.set_(0.2), optimizer, total_steps=10)


@pytest.mark.parametrize("method", METHODS)
def test_packed_attention_and_lstm_weights_are_ordinary_targets(method: str) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.LayerNorm(8)
            self.lstm = nn.LSTM(8, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.attention(x, x, x)
            return self.lstm(self.norm(x + y))[0].square().mean()

    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    sparsifier = gossamer.sparsify(net, small_methods(shape=(5, 8))[method], optimizer, total_steps=12)
    assert set(sparsifier.supports) == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
    }
    for _ in range(8):
        optimizer.zero_grad()
        net(torch.randn(2, 5, 8)).backward()
        optimizer.step()
        assert zero_off(sparsifier)
    assert (net.norm.weight != 0).all()


def test_optimizer_identity_survives_and_foreign_state_loads() -> None:
    model = mlp()
    ids = [id(p) for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters())
    gossamer.sparsify(model, methods.rewire(0.3), optimizer)
    for batch in batches(n=3):
        train_step(model, [optimizer], batch)
    assert ids == [id(p) for p in model.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]]
    assert all(p in optimizer.state for p in model.parameters())
    mlp().load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replaced_parameter_is_noticed(name: str) -> None:
    model = mlp()
    optimizers = make_optimizer(name, model)
    gossamer.sparsify(model, methods.static(0.3), optimizers)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.raises(gossamer.GossamerError, match=r"0\.weight was replaced by another Parameter"):
        train_step(model, optimizers, batches()[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_step_inside_a_step_is_one_step(method: str) -> None:
    """torch runs step hooks again where a subclass calls super().step()."""

    def run(kind: type[torch.optim.SGD], closed: bool) -> tuple[dict[str, Tensor], int]:
        model = mlp()
        optimizer = kind(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = gossamer.sparsify(model, small_methods()[method], optimizer, total_steps=12)
        for batch in batches():
            if closed:

                def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                    optimizer.zero_grad()
                    loss = loss_of(model, batch)
                    loss.backward()
                    return loss

                optimizer.step(closure)
            else:
                train_step(model, [optimizer], batch)
        return weights(model), sparsifier.step

    expected = run(torch.optim.SGD, False)
    for closed in (False, True):
        got = run(Boom, closed)
        assert_same(expected[0], got[0])
        assert expected[1] == got[1] == 12


@pytest.mark.parametrize("method", ["set", "rigl", "static"])
def test_zero_methods_go_on_after_an_exception_in_the_step(method: str) -> None:
    model = mlp()
    optimizer = Boom(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, small_methods()[method], optimizer, total_steps=12)
    for step, batch in enumerate(batches(n=6)):
        optimizer.armed = step == 2
        if optimizer.armed:
            with pytest.raises(KeyboardInterrupt):
                train_step(model, [optimizer], batch)
        else:
            train_step(model, [optimizer], batch)
        assert zero_off(sparsifier)
    assert sparsifier.step == 5


@pytest.mark.parametrize("method", METHODS)
def test_a_copied_optimizer_is_attached_anew(method: str) -> None:
    """deepcopy drops hooks; the old optimizer's steps no longer count, and training goes on bit for bit."""
    straight = mlp()
    with sparse_run(straight, small_methods()[method], "adamw") as (_, optimizers):
        for batch in batches():
            train_step(straight, optimizers, batch)
    model = mlp()
    with sparse_run(model, small_methods()[method], "adamw") as (sparsifier, (first,)):
        for batch in batches()[:5]:
            train_step(model, [first], batch)
        rebuilt = make_optimizer("adamw", model)
        rebuilt[0].load_state_dict(copy.deepcopy(first.state_dict()))
        sparsifier.attach(rebuilt)
        assert not first._optimizer_step_pre_hooks
        for batch in batches()[5:]:
            train_step(model, rebuilt, batch)
        assert sparsifier.step == len(batches())
    assert_same(weights(straight), weights(model))


def slots_at_rest(sparsifier: gossamer.Sparsifier) -> bool:
    return all(
        bool((slot[~site.mask] == optimizer_state.resting_value(name, site.optimizer, site.parameter)).all())
        for site in sparsifier.sites.values()
        for name, slot in optimizer_state.slots(site.optimizer, site.parameter).items()
    )


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_slots_from_dense_training_come_to_rest(method: str, loaded: bool) -> None:
    """Momentum from dense training, inherited or loaded, must not revive what is inactive."""
    dense, model = mlp(), mlp()
    trained = torch.optim.Adam(dense.parameters(), lr=0.01)
    for batch in batches(n=3):
        train_step(dense, [trained], batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if not loaded:
        optimizer.load_state_dict(trained.state_dict())
    sparsifier = gossamer.sparsify(model, small_methods()[method], optimizer, total_steps=12)
    if loaded:
        optimizer.load_state_dict(trained.state_dict())
    for batch in batches()[3:]:
        train_step(model, [optimizer], batch)
        assert zero_off(sparsifier)
        assert slots_at_rest(sparsifier)


@pytest.mark.parametrize("method", ["static", "set", "rigl", "grow-after"])
def test_gradients_set_or_changed_by_hand_are_gated(method: str) -> None:
    model = mlp()
    with sparse_run(model, small_methods()[method], "adam") as (sparsifier, (optimizer,)):
        for batch in batches():
            gradients = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient + 0.01 * torch.randn_like(gradient)
            optimizer.step()
            assert zero_off(sparsifier)
            assert slots_at_rest(sparsifier)
            optimizer.step()  # a second time on what is left, by another support perhaps
            assert zero_off(sparsifier)
            assert slots_at_rest(sparsifier)


def two_optimizers(model: torch.nn.Module, kind: str, fused: bool) -> list[torch.optim.Optimizer]:
    first, last = list(model.parameters())[:4], list(model.parameters())[4:]
    build = getattr(torch.optim, kind)
    return [build(first, lr=0.01, fused=fused), build(last, lr=0.01, fused=fused)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [None, 0, 1])
@pytest.mark.parametrize("method", ["set", "rigl", "rigl-global", "grow-after", "rewire-reset"])
def test_grad_scaler_with_two_optimizers(method: str, bad: int | None, fused: bool) -> None:
    """A step that is skipped for one of two optimizers is no complete step, and the rounds stay in phase."""
    model = mlp()
    optimizers = two_optimizers(model, "Adam", fused)
    sparsifier = gossamer.sparsify(model, small_methods()[method], optimizers, total_steps=40)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10**6)
    expected = 0
    for step, batch in enumerate(batches(n=14)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        poisoned = bad is not None and step in (0, 5, 8)
        if poisoned:
            optimizers[bad].param_groups[0]["params"][1].grad.fill_(torch.inf)
        expected += not poisoned
        for optimizer in optimizers:
            scaler.step(optimizer)
            assert zero_off(sparsifier)
        scaler.update(new_scale=64.0)
        assert sparsifier.step == expected
        assert is_live(sparsifier.method) or slots_at_rest(sparsifier)
    assert expected >= 11


@pytest.mark.parametrize("method", ["set", "rigl", "rewire-reset"])
def test_optimizers_may_step_in_another_order_or_on_losses_of_their_own(method: str) -> None:
    for order in ((0, 1), (1, 0)):
        model = mlp()
        optimizers = two_optimizers(model, "Adam", False)
        sparsifier = gossamer.sparsify(model, small_methods()[method], optimizers, total_steps=40)
        for step, batch in enumerate(batches()):
            loss_of(model, batch).backward()
            for index in order:
                if order == (0, 1):  # as GANs do: a backward pass before each optimizer
                    loss_of(model, batch).backward()
                optimizers[index].step()
                assert zero_off(sparsifier)
            assert sparsifier.step == step + 1
            for optimizer in optimizers:
                optimizer.zero_grad()


def test_training_without_an_attached_optimizer_warns() -> None:
    model = mlp()
    gossamer.sparsify(model, methods.rewire(0.3))
    with pytest.warns(UserWarning, match="no optimizer is attached"):
        loss_of(model, batches()[0]).backward()


def test_a_sparsifier_is_not_copied_or_pickled() -> None:
    sparsifier = gossamer.sparsify(mlp(), methods.static(0.3))
    with pytest.raises(gossamer.GossamerError, match="cannot be copied"):
        copy.deepcopy(sparsifier)
    with pytest.raises(gossamer.GossamerError, match="cannot be pickled"):
        pickle.dumps(sparsifier)


@pytest.mark.parametrize("method", ["static", "rigl", "rewire"])
def test_weights_loaded_after_sparsify_never_make_a_dense_model(method: str) -> None:
    model = mlp()
    with sparse_run(model, small_methods()[method], "adamw") as (sparsifier, optimizers):
        train_step(model, optimizers, batches()[0])
        model.load_state_dict(copy.deepcopy(model.state_dict()))  # the same values are no change
        train_step(model, optimizers, batches()[1])
        model.load_state_dict(mlp(seed=5).state_dict())
        if is_live(sparsifier.method):  # its own trainable weights would win silently
            with pytest.raises(gossamer.GossamerError, match=r"0\.weight were changed outside"):
                train_step(model, optimizers, batches()[2])
            sparsifier.restore()
            assert zero_off(sparsifier)
        train_step(model, optimizers, batches()[2])
        assert zero_off(sparsifier)


@pytest.mark.parametrize("method", ["rewire", "static"])
def test_a_cast_model_is_noticed(method: str) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, small_methods()[method], optimizer)
    model.double()
    data = [(x.double(), y) for x, y in batches(n=2)]
    if is_live(sparsifier.method):
        with pytest.raises(
            gossamer.GossamerError, match=r"0\.weight is torch\.float64 on cpu now and was torch\.float32"
        ):
            train_step(model, [optimizer], data[0])
    else:  # a mask has no type
        train_step(model, [optimizer], data[0])
        assert zero_off(sparsifier)
