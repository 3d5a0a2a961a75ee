"""Sparse layers as modules: saving, copying, moving, optimizers, compilation, and changes of support."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.nn import SparseConv1d, SparseConv2d, SparseLinear
from gossamer.topology import Support

from .near import assert_equals_dense, assert_near


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def net() -> nn.Sequential:
    return nn.Sequential(
        SparseConv2d(3, 8, 3, 0.3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(8 * 36, 20, 0.1),
        nn.Unflatten(1, (4, 5)),
        SparseConv1d(4, 4, 3, 0.5, groups=2, bias=False),
    )


X = torch.linspace(-1, 1, 5 * 3 * 36).view(5, 3, 6, 6)


# -- saving --


def test_the_state_dict_holds_values_index_and_bias() -> None:
    state = net().state_dict()
    assert [key for key in state if key.startswith("3.")] == ["3.values", "3.bias", "3.index"]
    assert state["3.values"].ndim == 1
    assert state["3.index"].dtype == torch.uint8


@pytest.mark.parametrize("assign", [False, True])
def test_a_fresh_layer_of_another_seed_takes_over_the_support(assign: bool) -> None:
    one, other = net(), net()
    assert one[3].support() != other[3].support()
    before = list(other.parameters())
    other.load_state_dict(one.state_dict(), assign=assign)
    assert torch.equal(one(X), other(X))
    assert assign or all(a is b for a, b in zip(before, other.parameters(), strict=True))


def test_it_survives_a_file_read_without_pickle() -> None:
    one, other, file = net(), net(), io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(X), other(X))


def test_another_count_is_taken_over_by_the_same_parameter() -> None:
    one, other = SparseLinear(30, 20, 0.1), SparseLinear(30, 20, 0.4)
    values = other.values
    other(torch.randn(2, 30)).sum().backward()
    other.load_state_dict(one.state_dict())
    assert other.values is values
    assert values.grad is None
    assert other.count == 60
    assert_equals_dense(other, torch.randn(3, 30))


def spoilt(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    state = {key: value.clone() for key, value in state.items()}
    if what == "another shape":
        state |= SparseLinear(20, 30, 0.1).state_dict()
    elif what == "one more value":
        state["values"] = torch.cat([state["values"], torch.ones(1)])
    elif what == "other bytes":
        state["index"][200:] ^= 0x55
    elif what == "cut off":
        state["index"] = state["index"][:-8]
    elif what == "matrix":
        state["values"] = state["values"][None]
    elif what == "float index":
        state["index"] = state["index"].float()
    else:
        del state["index"]
    return state


@pytest.mark.parametrize(
    "what", ["another shape", "one more value", "other bytes", "cut off", "matrix", "float index", "without an index"]
)
def test_what_is_no_state_is_refused_and_nothing_changes(what: str) -> None:
    layer = SparseLinear(30, 20, 0.1)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match="sparse layer at the root: "):
        layer.load_state_dict(spoilt(SparseLinear(30, 20, 0.1).state_dict(), what), strict=what != "without an index")
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_spoilt_index_is_noticed_before_a_kernel_reads_it() -> None:
    layer = SparseLinear(30, 20, 0.1)
    layer(torch.randn(2, 30))
    layer.index.fill_(255)
    with pytest.raises(ConfigError, match="no index of 60 values"):
        layer(torch.randn(2, 30))
    with pytest.raises(ConfigError, match="no index of 60 values"):
        layer.to_dense()


# -- copies and moves --


def test_copies_and_pickles_compute_the_same_by_themselves() -> None:
    model = net()
    expected = model(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), expected)
        with torch.no_grad():
            twin[3].values.zero_()
        assert torch.equal(model(X), expected)


@pytest.mark.parametrize("how", ["load", "assign", "reset"])
def test_made_on_the_meta_device(how: str) -> None:
    with torch.device("meta"):
        model = net()
    assert all(p.is_meta for p in [*model.parameters(), *model.buffers()])
    assert model(X.to("meta")).shape == (5, 4, 3)
    real = net()
    if how == "assign":
        model.load_state_dict(real.state_dict(), assign=True)
    else:
        model = model.to_empty(device="cpu")
    if how == "load":
        model.load_state_dict(real.state_dict())
    if how == "reset":
        for module in model:
            getattr(module, "reset_parameters", lambda: None)()
        assert model[3].support().count == round(0.1 * 20 * 288)
        assert_equals_dense(model[3], torch.randn(2, 288))
    else:
        assert torch.equal(model(X), real(X))


def test_reset_parameters_keeps_the_support() -> None:
    layer = SparseLinear(30, 20, 0.1)
    support, values = layer.support(), layer.values.detach().clone()
    layer.reset_parameters()
    assert layer.support() == support
    assert not torch.equal(layer.values, values)


def test_double_and_back() -> None:
    model = net()
    expected = model(X)
    assert_near(model.double()(X.double()), expected)
    assert torch.equal(model.float()(X), expected)


def test_other_devices_are_refused() -> None:
    class Elsewhere:  # stands for a layer on a GPU, which this machine need not have
        device, dtype = torch.device("cuda:0"), torch.float32

    from gossamer.nn._checks import check_device

    with pytest.raises(ConfigError, match="cannot be on cuda:0"):
        check_device(Elsewhere())  # type: ignore[arg-type]


# -- training --

OPTIMIZERS: dict[str, Any] = {
    name: getattr(torch.optim, name)
    for name in torch.optim.__all__
    if name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon", "lr_scheduler", "swa_utils")
    and isinstance(getattr(torch.optim, name, None), type)
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_steps(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters(), lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert float(norm) > 0
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_lbfgs_takes_a_step() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(X).square().sum()
        loss.backward()
        return loss

    first = closure().detach()
    optimizer.step(closure)
    assert closure().detach() < first


def test_gradients_accumulate() -> None:
    model = net()
    model(X).sum().backward()
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model(X).sum().backward()
    for p, grad in zip(model.parameters(), once, strict=True):
        assert_near(p.grad, 2 * grad)


def test_frozen_parts_get_no_gradient() -> None:
    layer = SparseLinear(30, 20, 0.2)
    layer.values.requires_grad_(False)
    x = torch.randn(4, 30, requires_grad=True)
    layer(x).sum().backward()
    assert layer.values.grad is None
    assert layer.bias is not None
    assert_near(x.grad, layer.to_dense().sum(0).expand(4, 30))


def test_distributed_data_parallel(tmp_path: Any) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = net()
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        for each in (model, wrapped):
            each(X).square().sum().backward()
        for a, b in zip(model.parameters(), wrapped.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
    finally:
        torch.distributed.destroy_process_group()


# -- compilation --


@pytest.mark.slow
def test_compiles_whole() -> None:
    model, x = net(), X.clone().requires_grad_()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    y = compiled(x)
    assert torch.equal(y, model(X))
    y.square().sum().backward()
    model(X).square().sum().backward()
    for a, b in zip(compiled.parameters(), model.parameters(), strict=True):
        assert_near(a.grad, b.grad)


@pytest.mark.slow
def test_rewiring_at_equal_counts_does_not_recompile() -> None:
    layer = SparseLinear(40, 30, 0.2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 40)
    compiled(x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            layer.set_support(SparseLinear(40, 30, 0.2).support())
            with torch.no_grad():
                layer.values.uniform_()
            assert torch.equal(compiled(x), layer(x)), seed


@pytest.mark.slow
def test_exports() -> None:
    model = net().eval()
    assert torch.equal(torch.export.export(model, (X,)).module()(X), model(X))
    batch = torch.export.Dim("batch", min=17, max=512)  # two tiles or more: torch tells sizes of 1 apart
    program = torch.export.export(model, (torch.randn(40, 3, 6, 6),), dynamic_shapes=({0: batch},))
    for rows in (17, 48, 100):
        x = torch.randn(rows, 3, 6, 6)
        assert torch.equal(program.module()(x), model(x))


# -- another support --


def random_support(layer: Any, count: int) -> Support:
    flat = torch.randperm(layer.weight_shape.numel())[:count]
    return Support.from_index(flat, layer.weight_shape)


@pytest.mark.parametrize("make", [lambda: SparseLinear(70, 50, 0.2), lambda: SparseConv2d(8, 6, 3, 0.4, groups=2)])
@pytest.mark.parametrize("factor", [1.0, 0.5, 1.7, 0.0])
def test_set_support_moves_values_with_their_entries(make: Any, factor: float) -> None:
    layer = make()
    parameter, old_values, old_dense = layer.values, layer.values.detach().clone(), layer.to_dense().detach()
    old_positions, old_support, memory = layer.positions(), layer.support(), layer.values.data_ptr()
    index = layer.index
    new = random_support(layer, round(factor * layer.count))
    moves = layer.set_support(new)
    assert layer.values is parameter
    assert layer.support() == new
    assert torch.equal(layer.to_dense(), torch.where(new.mask, old_dense, 0.0))
    assert torch.equal(layer.values[moves.new], old_values[moves.old])
    assert torch.equal(layer.positions()[moves.new], old_positions[moves.old])
    assert int(layer.values[moves.born].count_nonzero()) == 0
    places = torch.cat([moves.new, moves.born]).sort().values
    assert torch.equal(places, torch.arange(new.count))
    assert len(moves.born) == (new - old_support).count
    if factor == 1.0:
        assert layer.values.data_ptr() == memory
        assert layer.index is index
    x = torch.randn(3, 70) if isinstance(layer, SparseLinear) else torch.randn(3, 8, 5, 5)
    assert_equals_dense(layer, x)


def test_the_same_support_changes_nothing() -> None:
    layer = SparseLinear(70, 50, 0.2)
    before = copy.deepcopy(layer.state_dict())
    moves = layer.set_support(layer.support())
    assert torch.equal(moves.old, moves.new)
    assert len(moves.born) == 0
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_momentum_follows_its_weight() -> None:
    layer = SparseLinear(40, 30, 0.2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(4, 40)).sum().backward()
    optimizer.step()
    momentum = optimizer.state[layer.values]["momentum_buffer"]
    dense = torch.zeros(1200).scatter(0, layer.positions(), momentum)
    moves = layer.set_support(random_support(layer, layer.count))
    moved = torch.zeros_like(momentum)
    moved[moves.new] = momentum[moves.old]
    survivors = layer.positions()[moves.new]
    assert torch.equal(moved[moves.new], dense[survivors])


def test_supports_that_do_not_fit() -> None:
    layer = SparseLinear(40, 30, 0.2)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ConfigError, match=r"shape \(40, 30\), the weight has \(30, 40\)"):
        layer.set_support(Support.full((40, 30)))
    with pytest.raises(ConfigError, match=r"use mask\.bool"):
        layer.set_support(layer.support().mask.float())
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_mask_says_the_same_as_a_support() -> None:
    layer = SparseLinear(40, 30, 0.2)
    twin, new = copy.deepcopy(layer), random_support(layer, layer.count)
    assert torch.equal(layer.set_support(new).source, twin.set_support(new.mask).source)
    assert torch.equal(layer.to_dense(), twin.to_dense())


def test_every_backward_pass_is_captured_while_asked_for() -> None:
    layer, x = SparseLinear(40, 30, 0.2), torch.randn(4, 40)
    layer(x).sum().backward()
    assert layer.capture is None
    layer.capture = []
    layer(x)  # no backward pass, nothing to keep
    (layer(x) + layer(2 * x)).sum().backward()
    assert len(layer.capture) == 2
    assert_near(layer.dense_gradient(slice(0, 30), layer.capture), (3 * x.sum(0)).expand(30, 40))
    layer.capture = None
    layer(x).sum().backward()
    assert layer.capture is None
