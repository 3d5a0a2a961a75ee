"""Sparse layers under the controller: what moves, what is refused, what is saved, and odd training loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer
from gossamer import Given, Support, candidates, foresight, methods
from gossamer.analysis import Exploration
from gossamer.errors import AttachError, CheckpointError, ConfigError, DivergedError, TargetError
from gossamer.kernels.cpu import library
from gossamer.nn import SparseLinear
from gossamer.sparse_site import SparseSite
from gossamer.targets import choose
from gossamer.topology import DropGrow, Entries, Unstructured, scores

from .laws.executions import Run, close, data, pair, same_supports
from .laws.settings import mlp

RIGL = methods.rigl(0.3, every=3, fraction=0.5)
SET = methods.set_(0.3, every=2)
DSR = methods.dsr(0.3, every=2, target=0.2, threshold=0.02)


def weight_site(run: Run, name: str = "0.weight") -> SparseSite:
    site = run.sparsifier.sites[name]
    assert isinstance(site, SparseSite)
    return site


def sparse(method: gossamer.Method, optimizer: str = "adamw", steps: int = 24, **options: Any) -> Run:
    return Run(mlp().double(), method, optimizer, sparse=True, steps=steps, **options)


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    return data((20,), torch.float64, n)


# -- candidates --


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_rule_chooses_the_same_among_candidates(drawn: st.DataObject) -> None:
    shape = drawn.draw(st.tuples(st.integers(1, 7), st.integers(1, 9)))
    numel = shape[0] * shape[1]
    g = torch.Generator().manual_seed(drawn.draw(st.integers(0, 999)))
    active = torch.rand(shape, generator=g) < drawn.draw(st.floats(0.05, 0.9))
    weight = torch.randint(-3, 4, shape, generator=g).float() * active  # many ties and zeros
    grad = torch.randint(-2, 3, shape, generator=g).float()
    count = int(active.sum())
    if not count:
        return
    rule = DropGrow(scores.signed_magnitude, scores.gradient, drawn.draw(st.floats(0, 1)))
    wanted = min(numel, count + drawn.draw(st.integers(0, 3)))
    (dense,) = rule.rewire([Entries(weight, active, grad)], [wanted], Unstructured(), 1)

    flat = active.reshape(-1)
    places = flat.nonzero().view(-1)
    held = candidates.Active(places, Entries(weight.view(-1)[flat], flat[flat], grad.view(-1)[flat]))
    most = candidates.most_grown(rule, [held.entries], wanted, 1, {})
    rows = lambda begin, end: grad.view(-1)[begin:end].clone()  # noqa: E731
    found, entries = candidates.gather(held, shape, most, rule.grow, rows, None)
    assert torch.equal(found, found.unique()), "ascending"
    (mask,) = candidates.with_known_scores(rule).rewire([entries], [wanted], Unstructured(), 1)
    assert torch.equal(found[mask], dense.reshape(-1).nonzero().view(-1))


@pytest.mark.parametrize("numel", [1, 15, 16, 70, 96, 200])
def test_drawing_by_tiles_is_one_draw(numel: int) -> None:
    ranges = candidates.tiles(numel, 32)
    assert [begin for begin, _ in ranges] == [0, *[end for _, end in ranges[:-1]]]
    assert ranges[-1][1] == numel
    for draw in (torch.rand, torch.randn):
        g = torch.Generator().manual_seed(5)
        parts = torch.cat([draw(end - begin, generator=g) for begin, end in ranges])
        assert torch.equal(parts, draw(numel, generator=torch.Generator().manual_seed(5)))


def test_a_gradient_that_is_not_finite_names_the_weight() -> None:
    run = sparse(RIGL)
    for batch in batches(3):
        run.step(batch)
    x, y = batches(4)[-1]
    run.optimizer.zero_grad()
    loss = nn.functional.cross_entropy(run.model(x), y)
    with pytest.raises(DivergedError, match=r"rewiring 0\.weight at step 3: the score 'gradient' is not finite"):
        (loss * torch.inf).backward(), run.optimizer.step()


@pytest.mark.skipif(library.native() is None, reason="the native library is not built")
@pytest.mark.parametrize("method", [RIGL, methods.rigl_itop(0.3, every=3)], ids=["replace", "after"])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_an_exchange_at_once_chooses_as_the_rule_does(method: gossamer.Method, scale: float) -> None:
    quick, slow = (Run(mlp(), method, "sgd-momentum", sparse=True, steps=24) for _ in range(2))
    done: list[bool] = []
    original = SparseSite.exchange

    def noted(self: SparseSite, *given: Any) -> bool:
        done.append(original(self, *given))
        return done[-1]

    for x, y in data((20,), torch.float32, 12):
        for run, exchange in ((quick, noted), (slow, lambda *_: False)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SparseSite, "exchange", exchange)
                run.optimizer.zero_grad()
                (scale * nn.functional.cross_entropy(run.model(x), y)).backward()
                for p in run.model.parameters():
                    p.grad /= scale
                run.optimizer.step()
        same_supports(quick, slow)
    assert done.count(True) > len(done) / 2
    close(quick.tensors(), slow.tensors(), 1e-5)


# -- moving --


@pytest.mark.parametrize("newborn", ["neutral", "zero"])
def test_values_and_slots_follow_their_weight(newborn: str) -> None:
    run = sparse(methods.set_(0.3, every=2, newborn=newborn))
    site, state = weight_site(run), run.optimizer.state
    run.step(batches(1)[0])
    parameter = site.parameter
    addresses = parameter.data_ptr(), site.layer.index.data_ptr(), state[parameter]["exp_avg"].data_ptr()
    before = {key: run.dense("0.weight", state[parameter][key]) for key in ("exp_avg", "exp_avg_sq")}
    value, old = run.dense("0.weight", parameter.detach()), site.support()
    chosen = Support.from_index(torch.cat([old.index[::2], (~old).index[: old.count // 2]]), site.shape)
    site._move(chosen, 1)
    survived, born = (old & chosen).mask, (chosen - old).mask
    assert addresses == (parameter.data_ptr(), site.layer.index.data_ptr(), state[parameter]["exp_avg"].data_ptr())
    assert torch.equal(run.dense("0.weight", parameter.detach()), torch.where(survived, value, 0.0))
    for key in before:
        now = run.dense("0.weight", state[parameter][key])
        assert torch.equal(now[survived], before[key][survived])
        mean = before[key][survived].mean() if (key, newborn) == ("exp_avg_sq", "neutral") else torch.zeros(())
        assert torch.allclose(now[born], mean.to(now.dtype))


@pytest.mark.parametrize("method", [DSR, methods.gmp(0.3, every=2, stop=0.6)], ids=["dsr", "gmp"])
def test_a_parameter_whose_count_changes_stays_the_same_one(method: gossamer.Method) -> None:
    run = sparse(method)
    parameters, counts, loss = [*run.model.parameters()], set(), None
    for x, y in batches(12):
        run.optimizer.zero_grad()
        loss, last = nn.functional.cross_entropy(run.model(x), y), loss  # a graph of the old sizes is still alive
        loss.backward(), run.optimizer.step()
        counts.add(weight_site(run).count)
        assert all(run.optimizer.state[p]["exp_avg"].shape == p.shape for p in run.model.parameters())
    assert [*map(id, run.model.parameters())] == [*map(id, parameters)]
    assert len(counts) > 1
    assert last is not None


# -- what is asked of models and methods --


def test_sparse_layers_are_targets_by_the_name_of_their_weight() -> None:
    model = nn.Sequential(SparseLinear(8, 16, 0.5), nn.Linear(16, 4))
    rows = {row.name: row for row in choose(model, None, layers=True)}
    assert rows["0.weight"].sparse
    assert rows["0.weight"].reason == "linear weight, of a sparse layer"
    assert rows["0.weight"].shape == (16, 8)
    assert [row.name for row in choose(model, "0.*", layers=True) if row.sparse] == ["0.weight"]
    assert [row.name for row in choose(model, None) if row.sparse] == ["1.weight"]
    with pytest.raises(TargetError, match="held by a sparse layer, which only the step hooks"):
        choose(model, "0.weight")


def test_weights_beside_sparse_layers_take_what_these_leave() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(20, 32, 0.1), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mine = model[0].support()
    sparsifier = gossamer.sparsify(model, methods.set_(0.2, every=2), optimizer, total_steps=8)
    assert sparsifier.supports["0.weight"] == mine
    assert {name: s.count for name, s in sparsifier.supports.items()} == {"0.weight": 64, "2.weight": 128}
    table = sparsifier.summary()
    assert (table.active, table.eligible) == (192, 960)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 20)).square().mean().backward()
        optimizer.step()
    assert {name: s.count for name, s in sparsifier.supports.items()} == {"0.weight": 64, "2.weight": 128}


def test_another_density_than_that_of_the_layers_is_refused() -> None:
    model = SparseLinear(20, 32, 0.1)
    with pytest.raises(ConfigError, match=r"hold 64 of 640 entries, the density makes it 192; pass density=64/640"):
        gossamer.sparsify(model, methods.static(0.3))
    assert gossamer.sparsify(model, methods.static(64 / 640)).supports["weight"].count == 64


def test_given_supports_must_be_those_of_the_layers() -> None:
    model = SparseLinear(20, 32, 0.1)
    own = {"weight": model.support()}
    other = {"weight": ~own["weight"]}
    with pytest.raises(ConfigError, match="the given support of weight is not that of its sparse layer"):
        gossamer.sparsify(model, methods.static(0.1, init=Given(other)))
    gossamer.sparsify(model, methods.static(0.1, init=Given(own)))


def test_scores_of_a_dense_network_cannot_be_had_beside_sparse_layers() -> None:
    model = nn.Sequential(SparseLinear(20, 32, 0.1), nn.Linear(32, 10))
    with pytest.raises(ConfigError, match=r"init .* scores a whole dense network, but 0\.weight is a sparse layer"):
        gossamer.sparsify(model, methods.static(0.1, init=foresight.magnitude()))


REFUSED = {
    "rewire": (methods.rewire(0.3), 'layout="hybrid"'),
    "snfs": (methods.snfs(0.3), "optimizer slots of inactive weights"),
    "deepr": (methods.deepr(0.3), "a sign of every inactive weight"),
    "srigl": (methods.srigl(0.3), "structure fan_in"),
    "rebalance": (methods.rebalance(0.3), "quota 'gain below 1'"),
    "random drop": (
        gossamer.Method(name="odd", density=0.3, init=scores.random, rule=DropGrow(scores.random, scores.random, 0.5)),
        "score 'random' needs 'generator' of inactive weights",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_need_inactive_weights_are_refused(name: str) -> None:
    method, why = REFUSED[name]
    model = SparseLinear(20, 32, 0.3)
    with pytest.raises(ConfigError, match="cannot run on weight, a weight of a sparse layer: .*" + why):
        gossamer.sparsify(model, method, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), total_steps=9)
    gossamer.sparsify(model, methods.static(0.3))  # nothing is left attached


@pytest.mark.parametrize(("method", "why"), [(DSR, "number of values"), (RIGL, "gradient of inactive weights")])
def test_what_compiled_models_cannot_do_is_refused(method: gossamer.Method, why: str) -> None:
    model = torch.compile(SparseLinear(20, 32, 0.3), backend="eager")
    with pytest.raises(ConfigError, match=why):
        gossamer.sparsify(model, method, total_steps=9)


def test_a_growth_step_without_what_it_needs_is_an_error() -> None:
    run = sparse(RIGL)
    for batch in batches(3):
        run.step(batch)
    weight_site(run).layer.capture = None
    with pytest.raises(AttachError, match=r"0\.weight got a gradient, but its layer kept nothing"):
        run.step(batches(4)[-1])


def test_optimizers_that_look_at_matrices_are_named() -> None:
    with pytest.warns(UserWarning, match="Adafactor looks at matrices as such") as told:
        sparse(methods.static(0.3), "adafactor")
    assert len(told) == 1, "not of every weight"
    with pytest.raises(AttachError, match="LBFGS keeps a history"):
        sparse(SET, "lbfgs")
    sparse(methods.static(0.3), "lbfgs")


def test_muon_is_refused_with_the_reason() -> None:
    model = nn.Sequential(SparseLinear(20, 32, 0.3), nn.Linear(32, 32))
    optimizer = torch.optim.Muon([model[1].weight])
    optimizer.add_param_group({"params": [model[0].values]})  # torch looks at shapes when it makes one only
    with pytest.raises(AttachError, match=r"the values of 0\.weight are a vector; train them with AdamW or SGD"):
        gossamer.sparsify(model, methods.static(0.3), optimizer, targets=["0.weight"])


def test_values_of_another_count_from_outside_are_noticed() -> None:
    run = sparse(SET)
    site = weight_site(run)
    site.layer.set_support(Support.from_index(torch.arange(5), site.shape))
    with pytest.raises(AttachError, match=r"support of 0\.weight \(5 values\) is not the one that was last set"):
        run.step(batches(1)[0])


def test_another_support_of_equal_count_from_outside_is_noticed() -> None:
    run = sparse(SET)
    site = weight_site(run)
    run.step(batches(1)[0])
    site.layer.load_state_dict(site.layer.state_dict())  # the same support: nothing happened
    run.step(batches(1)[0])
    site.layer.set_support(Support.from_index(torch.arange(site.count), site.shape))
    with pytest.raises(AttachError, match="optimizer slots would belong to other entries"):
        run.step(batches(1)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [SET, RIGL, DSR])
def test_half_precision_rewires(method: gossamer.Method, dtype: torch.dtype) -> None:
    run = Run(mlp().to(dtype), method, "sgd", sparse=True, steps=24)
    before = weight_site(run).support()
    for x, y in batches(6):
        run.step((x.to(dtype), y))
    assert weight_site(run).support() != before


# -- loops --


def saliency(run: Run, batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0].clone().requires_grad_()
    torch.autograd.grad(run.model(x).sum(), x)


@pytest.mark.parametrize("before", [True, False])
def test_passes_that_deliver_no_gradient_to_weights_do_not_count(before: bool) -> None:
    def step(run: Run, batch: tuple[Tensor, Tensor]) -> None:
        run.optimizer.zero_grad()
        if before:
            saliency(run, batch)
        nn.functional.cross_entropy(run.model(batch[0]), batch[1]).backward()
        if not before:
            saliency(run, batch)
        run.optimizer.step()

    masked, real = pair(RIGL, "sgd", torch.float64, steps=24)
    for batch in batches(9):
        step(masked, batch)
        step(real, batch)
        same_supports(masked, real)


@pytest.mark.parametrize("power", [1, 2])
def test_a_penalty_on_the_values_is_none_of_inactive_entries(power: int) -> None:
    def step(run: Run, batch: tuple[Tensor, Tensor]) -> None:
        run.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(run.model(batch[0]), batch[1])
        (loss + 1e-2 * sum(p.abs().pow(power).sum() for p in run.model.parameters())).backward()
        run.optimizer.step()

    masked, real = pair(RIGL, "sgd", torch.float64, steps=24)
    for batch in batches(9):
        step(masked, batch)
        step(real, batch)
        same_supports(masked, real)


def micro(run: Run, batch: tuple[Tensor, Tensor], *, to_none: bool) -> None:
    run.optimizer.zero_grad(set_to_none=to_none)
    for half in (slice(0, 3), slice(3, 8)):
        (nn.functional.cross_entropy(run.model(batch[0][half]), batch[1][half], reduction="sum") / 8).backward()
    run.optimizer.step()


@pytest.mark.parametrize("to_none", [True, False])
def test_micro_batches_add_up(to_none: bool) -> None:
    masked, other = pair(RIGL, "adamw", torch.float64, steps=24)
    for batch in batches(12):
        masked.step(batch), micro(other, batch, to_none=to_none)
        same_supports(masked, other)
    close(other.tensors(), masked.tensors(), 1e-8)


@pytest.mark.parametrize("to_none", [True, False])
def test_a_gradient_that_was_thrown_away_is_none_of_the_sum(to_none: bool) -> None:
    masked, other = pair(RIGL, "adamw", torch.float64, steps=24)
    noise = data((20,), torch.float64, 12, size=5)
    for batch, wrong in zip(batches(12), noise, strict=True):
        masked.step(batch)
        other.optimizer.zero_grad(set_to_none=to_none)
        (1e3 * nn.functional.cross_entropy(other.model(wrong[0]), wrong[1])).backward()
        micro(other, batch, to_none=to_none)
        same_supports(masked, other)


@pytest.mark.parametrize("method", [RIGL, methods.rigl_itop(0.3, every=3)], ids=["replace", "after"])
def test_scaled_and_clipped_gradients_grow_as_unscaled_ones(method: gossamer.Method) -> None:
    seen = []
    run = sparse(method)
    original = SparseSite._gradient

    def gradient(self: SparseSite, begin: int, end: int) -> Tensor:
        part = original(self, begin, end)
        seen.append((self.name, part.clone(), self._growth.gradient if self._growth else None, self))
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseSite, "_gradient", gradient)
        for x, y in batches(4):
            run.optimizer.zero_grad()
            (1024 * nn.functional.cross_entropy(run.model(x), y)).backward()
            for p in run.model.parameters():
                p.grad /= 2048  # unscaled by 1024, and clipped to a half
            before = {name: site.layer.positions() for name, site in run.sparsifier.sites.items()}
            run.optimizer.step()
            for name, part, mine, _ in seen:
                assert torch.allclose(part[before[name]], mine, rtol=1e-9)
            found, seen = len(seen), []
            if found:
                return
    pytest.fail("nothing grew")


def test_a_gradient_scaler_that_skips_a_step() -> None:
    run = Run(mlp(), RIGL, "sgd-momentum", sparse=True, steps=24)
    masked = Run(mlp(), RIGL, "sgd-momentum", sparse=False, steps=24)
    for each in (run, masked):
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for i, (x, y) in enumerate(data((20,), torch.float32, 12)):
            each.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(each.model(x), y) * (torch.inf if i == 3 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(each.optimizer)
            scaler.update()
    assert run.sparsifier.step == masked.sparsifier.step == 11
    same_supports(masked, run)
    close(run.tensors(), masked.tensors(), 1e-4)


def test_closures_and_several_optimizers() -> None:
    masked = Run(mlp().double(), RIGL, "adamw", sparse=False, steps=24)
    model = gossamer.convert(mlp().double(), RIGL, seed=3, total_steps=24)
    values = [p for n, p in model.named_parameters() if n.endswith("values")]
    biases = [p for n, p in model.named_parameters() if not n.endswith("values")]
    pair_of = [torch.optim.AdamW(part, lr=0.01, weight_decay=0.1) for part in (values, biases)]
    sparsifier = gossamer.sparsify(model, RIGL, pair_of, total_steps=24, seed=3)
    for x, y in batches(12):
        masked.step((x, y))

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            for optimizer in pair_of:
                optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        pair_of[0].step(closure), pair_of[1].step()
        for name, support in masked.sparsifier.supports.items():
            assert support == sparsifier.supports[name]


def test_a_step_that_raises_is_forgotten() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("inside the step")

    masked, other = pair(RIGL, "sgd-momentum", torch.float64, steps=24)
    for i, batch in enumerate(batches(12)):
        masked.step(batch)
        if i in (2, 3):
            handle = other.optimizer.register_step_pre_hook(fail)  # after the sparsifier's
            with pytest.raises(RuntimeError, match="inside the step"):
                other.step(batch)
            handle.remove()
            other.sparsifier.restore()
        other.step(batch)
        same_supports(masked, other)
    close(other.tensors(), masked.tensors(), 1e-8)


def test_watching_and_exploring() -> None:
    run = sparse(SET)
    seen: list[int] = []
    run.sparsifier.watch(lambda step, before, after: seen.append(int((before["0.weight"] ^ after["0.weight"]).sum())))
    exploration = Exploration(run.sparsifier, run.model)
    for batch in batches(4):
        run.step(batch)
    assert len(seen) == 2
    assert exploration.row()["rewirings"] == 2


def test_detaching_stops_capturing() -> None:
    run = sparse(RIGL)
    for batch in batches(3):
        run.step(batch)
    assert run.model[0].capture is not None
    run.sparsifier.detach()
    assert run.model[0].capture is None


# -- saving --

METHODS: dict[str, Callable[[], gossamer.Method]] = {
    "set-grace": lambda: methods.set_(0.3, every=2, grace=5),
    "rigl": lambda: RIGL,
    "dsr": lambda: DSR,
}


@pytest.mark.parametrize("at", [1, 3, 4, 7])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_resumed_equals_the_uninterrupted_one(method: str, at: int) -> None:
    whole, first, second = (sparse(METHODS[method]()) for _ in range(3))
    for batch in batches(12):
        whole.step(batch)
    for batch in batches(12)[:at]:
        first.step(batch)
    saved = copy.deepcopy((first.model.state_dict(), first.optimizer.state_dict(), first.sparsifier.state_dict()))
    for loader, state in zip((second.model, second.optimizer, second.sparsifier), saved, strict=True):
        loader.load_state_dict(state)
    for batch in batches(12)[at:]:
        second.step(batch)
    same_supports(whole, second)
    mine, other = second.tensors(), whole.tensors()
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparse_first", [True, False])
def test_a_state_goes_from_masked_to_sparse_and_back(method: str, sparse_first: bool) -> None:
    masked, other = pair(METHODS[method](), "adamw", torch.float64, steps=24)
    first, second = (other, masked) if sparse_first else (masked, other)
    for batch in batches(5):
        first.step(batch)
    second.sparsifier.load_state_dict(first.sparsifier.state_dict())
    same_supports(masked, other)
    assert second.sparsifier.step == 5
    ages = [each.sparsifier.state_dict()["traits"]["0.weight"].get("born") for each in (masked, other)]
    if ages[0] is not None:
        assert torch.equal(ages[0][masked.sparsifier.supports["0.weight"].mask], ages[1])


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    run = sparse(methods.set_(0.3, every=2, grace=5))
    state = run.sparsifier.state_dict()
    state["traits"]["0.weight"]["born"] = torch.zeros(3, dtype=torch.int32)
    before = run.sparsifier.supports["0.weight"]
    with pytest.raises(CheckpointError, match=r"the saved born of 0\.weight is no torch\.int32 tensor of its shape"):
        run.sparsifier.load_state_dict(state)
    assert run.sparsifier.supports["0.weight"] == before


def test_an_exchange_that_gives_up_leaves_the_gradient_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one output the transposed gradient is the memory that was captured."""

    def supports(name: str) -> Support:
        torch.manual_seed(0)
        model = nn.Sequential(SparseLinear(400, 1, 0.5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = methods.rigl(0.5, every=2, fraction=0.5)
        with monkeypatch.context() as patch:
            patch.setattr(f"gossamer.sparse_site.exchange.{name}", lambda *given: None)
            sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=20)
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.randn(32, 400)).square().sum().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
        return sparsifier.supports["0.weight"]

    assert supports("exchanged") == supports("dropped")
