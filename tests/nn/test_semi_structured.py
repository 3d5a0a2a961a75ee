"""Semi-structured layers are their dense torch layers, computed from packed weights while these are 2:4."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gossamer
from gossamer import methods
from gossamer.checkpoint import load_model, save_model
from gossamer.errors import ConfigError
from gossamer.kernels.semi_structured import operator, pack
from gossamer.nn import SemiStructuredConv2d, SemiStructuredLinear, to_torch_semi_structured
from gossamer.nn.semi_structured import SemiStructured
from gossamer.topology import NM


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Grows by the shape of every matrix that is packed."""
    seen: list[tuple[int, ...]] = []

    def spy(matrix: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(tuple(matrix.shape))
        return pack(matrix)

    monkeypatch.setattr(operator, "pack", spy)
    return seen


def make_two_four(layer: Any, *, transposable: bool = False) -> Any:
    """Zero what the structure leaves out of the weight, in place."""
    with torch.no_grad():
        (mask,) = NM(2, 4, transposable=transposable).select([layer.weight.abs()], layer.weight.numel() // 2)
        layer.weight.mul_(mask)
    return layer


def forced(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, SemiStructured):
            module.execution = "packed"
    return model


def linear(*, transposable: bool = False, dtype: torch.dtype = torch.float32) -> SemiStructuredLinear:
    torch.manual_seed(0)
    layer = make_two_four(SemiStructuredLinear(32, 16, dtype=dtype), transposable=transposable)
    layer.execution = "packed"
    return layer


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    own = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    return [y.detach(), x.grad, *own]  # type: ignore[list-item]


# -- the same function --


@pytest.mark.parametrize("shape", [(32,), (1, 32), (7, 32), (2, 5, 32), (0, 32)])
@pytest.mark.parametrize("transposable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_are_those_of_the_dense_layer(
    packed: list[tuple[int, ...]], shape: tuple[int, ...], transposable: bool, dtype: torch.dtype
) -> None:
    layer, x = linear(transposable=transposable, dtype=dtype), torch.randn(shape, dtype=dtype)
    for ours, torchs in zip(gradients(layer, x), gradients(layer.dense_module(), x), strict=True):
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs)
    assert packed == [(16, 32), (32, 16)][: 1 + transposable]


def test_results_are_no_views_of_which_hooks_of_fsdp_would_get_lost() -> None:
    image = torch.randn(2, 32, 5, 4).to(memory_format=torch.channels_last)
    convolution = forced(make_two_four(SemiStructuredConv2d(32, 16, 1)))
    assert not linear()(torch.randn(2, 3, 32))._is_view()
    assert not convolution(image)._is_view()


def test_gradients_reach_zeros_of_the_weight_too() -> None:
    layer = linear()
    layer(torch.randn(9, 32)).sum().backward()
    assert layer.weight.grad is not None
    assert bool((layer.weight.grad[layer.weight == 0] != 0).all())


@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
def test_pointwise_convolutions_are_linear_layers(packed: list[tuple[int, ...]], stride: Any) -> None:
    layer = forced(make_two_four(SemiStructuredConv2d(32, 16, 1, stride=stride), transposable=True))
    x = torch.randn(2, 32, 5, 4).to(memory_format=torch.channels_last)
    for ours, torchs in zip(gradients(layer, x), gradients(layer.dense_module(), x), strict=True):
        torch.testing.assert_close(ours, torchs)
    assert packed == [(16, 32), (32, 16)]
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        SemiStructuredConv2d(16, 16, 3),
        SemiStructuredConv2d(16, 16, 1, padding=1),
        SemiStructuredConv2d(32, 32, 1, groups=2),
    ],
    ids=["3x3", "padded", "groups"],
)
def test_other_convolutions_are_dense(packed: list[tuple[int, ...]], layer: Any) -> None:
    x = torch.randn(2, layer.in_channels, 5, 5).to(memory_format=torch.channels_last)
    forced(make_two_four(layer))
    torch.testing.assert_close(layer(x), layer.dense_module()(x), rtol=0, atol=0)
    assert (packed, layer.is_semi_structured) == ([], False)


def test_autocast_computes_in_its_type_from_the_float32_weight(packed: list[tuple[int, ...]]) -> None:
    layer, x = linear(transposable=True), torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradients(module, x) for module in (layer, layer.dense_module())]
    for ours, torchs in zip(*found, strict=True):
        assert ours.dtype == torchs.dtype
        torch.testing.assert_close(ours, torchs)
    assert found[0][0].dtype == torch.bfloat16
    assert len(packed) == 2


def test_where_packing_cannot_be_it_is_dense(packed: list[tuple[int, ...]]) -> None:
    layer = linear()
    x = torch.randn(3, 32)
    expected = layer.dense_module()(x)
    torch.testing.assert_close(torch.func.vmap(layer)(x), expected)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[1], x @ layer.weight.t())
    torch.testing.assert_close(torch.jit.trace(layer, x, check_trace=False)(x), expected)
    small = make_two_four(SemiStructuredLinear(8, 12))
    small.execution = "packed"
    small(torch.zeros(2, 8))
    layer.execution = "dense"
    assert torch.equal(layer(x), expected)
    layer.execution = "auto"
    assert torch.equal(layer(x), expected), "on the CPU"
    assert packed == []


def test_inputs_of_other_kinds_are_left_to_the_dense_layer(packed: list[tuple[int, ...]]) -> None:
    layer = linear()
    parts = [torch.randn(2, 32), torch.randn(3, 32)]
    nested = layer(torch.nested.nested_tensor(parts, layout=torch.jagged))
    torch.testing.assert_close(torch.cat(list(nested.unbind())), layer.dense_module()(torch.cat(parts)))
    x = torch.randn(3, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(x), layer.dense_module()(x))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert copy.deepcopy(layer)(torch.randn(2, 32)).shape == (2, 16)
    waves = SemiStructuredLinear(32, 16, dtype=torch.complex64)
    waves.execution = "packed"
    with torch.no_grad():
        waves.weight.mul_(torch.tensor([1, 0, 0, 1]).repeat(8))
    for ours, torchs in zip(*(complex_gradients(m) for m in (waves, waves.dense_module())), strict=True):
        assert torch.equal(ours, torchs)
    assert packed == []


def complex_gradients(module: nn.Module) -> list[Tensor]:
    x = torch.full((2, 32), 1 + 1j, requires_grad=True)
    return list(torch.autograd.grad(module(x).abs().sum(), (x, module.get_parameter("weight"))))


def test_a_parametrized_layer_computes_with_what_it_makes_and_does_not_go_back() -> None:
    layer, x = linear(), torch.randn(3, 32)
    nn.utils.parametrizations.weight_norm(layer)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias))
    model = nn.Sequential(layer)
    with pytest.raises(ConfigError, match=r"computes its parameters from others.*remove_parametrizations"):
        gossamer.convert(model, layout="dense")
    assert model[0] is layer


def test_exported_programs_compute_from_the_packed_weight() -> None:
    layer, x = linear(), torch.randn(3, 32)
    layer.refresh()
    program = torch.export.export(layer, (x,))
    assert any(node.target is operator.product for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer.dense_module()(x))


def test_wrong_inputs_get_the_errors_of_torch() -> None:
    layer = linear()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.zeros(2, 16))
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.zeros(2, 32, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"execution is 'fast'; expected one of 'auto', 'dense', 'packed'"):
        layer.execution = "fast"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"takes the place of a torch.nn.Linear, .* got a Conv2d"):
        SemiStructuredLinear.from_dense(nn.Conv2d(1, 1, 1))


# -- nothing is lost --


def test_a_weight_that_is_not_two_four_is_computed_as_it_is(packed: list[tuple[int, ...]]) -> None:
    layer, x = linear(), torch.randn(3, 32)
    layer(x)
    with torch.no_grad():
        layer.weight[2, :4] = 1.0
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias), rtol=0, atol=0)
    assert (layer.is_semi_structured, len(packed)) == (False, 1)
    with pytest.raises(ConfigError, match=r"in_features=32.* is not 2:4: in a group of four more than two"):
        layer.check()
    make_two_four(layer)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias))
    assert (layer.is_semi_structured, len(packed)) == (True, 2)
    layer.check()


def test_a_controller_that_is_wrong_about_a_weight_is_told() -> None:
    layer = linear()
    layer.declare(torch.ones(16, 32, dtype=torch.bool))
    assert not layer.is_semi_structured
    layer.declare(layer.weight != 0)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    with pytest.raises(ConfigError, match="128 of 128 groups of four have more than two entries"):
        layer(torch.ones(1, 32))
    layer.declare(None)
    assert torch.equal(layer(torch.ones(1, 32)), layer.dense_module()(torch.ones(1, 32)))


def test_loading_looks_at_the_weight_and_files_are_those_of_linear_layers(tmp_path: Path) -> None:
    layer, dense = linear(), nn.Linear(32, 16)
    full = copy.deepcopy(dense)
    dense.load_state_dict(layer.state_dict())
    assert torch.equal(dense.weight, layer.weight)
    layer.load_state_dict(full.state_dict())
    assert not layer.is_semi_structured
    layer.load_state_dict(dense.state_dict(), assign=True)
    assert layer.is_semi_structured
    save_model(tmp_path / "model.safetensors", nn.Sequential(layer))
    fresh = nn.Sequential(SemiStructuredLinear(32, 16))
    load_model(tmp_path / "model.safetensors", fresh)
    load_model(tmp_path / "model.safetensors", nn.Sequential(nn.Linear(32, 16)))
    assert torch.equal(fresh[0].weight, layer.weight)


def test_copies_and_swaps_are_modules_like_any_other(packed: list[tuple[int, ...]]) -> None:
    layer, x = linear(), torch.randn(3, 32)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
    assert len(packed) == 3
    calls: list[str] = []
    dense = nn.Linear(32, 16).eval()
    dense.register_forward_hook(lambda *_: calls.append("hook"))
    made = SemiStructuredLinear.from_dense(dense)
    assert made.weight is dense.weight
    assert not made.training
    back = made.dense_module()
    assert type(back) is nn.Linear
    assert vars(back).keys() == vars(dense).keys()
    made(x)
    back(x)
    assert calls == ["hook", "hook"]
    meta = SemiStructuredLinear(32, 16, device="meta")
    assert not meta.is_semi_structured


def test_only_the_parameter_that_a_controller_keeps_is_trusted() -> None:
    layer, x = linear(), torch.ones(1, 32)
    layer.declare(layer.weight != 0)
    expected = layer.dense_module()(x)
    full = {"weight": torch.ones(16, 32), "bias": torch.zeros(16)}
    assert torch.equal(torch.func.functional_call(layer, full, (x,)), torch.full((1, 16), 32.0))
    torch.testing.assert_close(layer(x), expected)
    assert layer.is_semi_structured
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            twin.weight.fill_(1.0)
        assert torch.equal(twin(x), twin.dense_module()(x))


def test_loading_a_dense_state_under_a_controller_is_dense_until_it_is_sparse_again() -> None:
    layer, x = linear(), torch.randn(3, 32)
    layer.declare(layer.weight != 0)
    layer.load_state_dict(nn.Linear(32, 16).state_dict())
    assert torch.equal(layer(x), layer.dense_module()(x))
    assert not layer.is_semi_structured
    make_two_four(layer)
    torch.testing.assert_close(layer(x), layer.dense_module()(x))
    assert layer.is_semi_structured


def test_a_pattern_that_is_there_by_chance_is_not_relied_on() -> None:
    layer = linear(transposable=True)
    layer.declare(layer.weight != 0, both_ways=False)
    layer.check()
    assert (layer.is_semi_structured, layer.is_transposable) == (True, False)
    layer.declare(torch.tensor([True, False, False, True]).repeat(16, 8))
    with torch.no_grad():
        layer.weight.zero_()
    layer.refresh()
    assert not layer.is_transposable


def test_a_storage_at_the_address_of_an_earlier_one_is_looked_at() -> None:
    layer, x = linear(), torch.randn(3, 32)
    layer.weight.data = layer.weight.data.clone()
    layer(x)
    address = layer.weight.data_ptr()
    layer.weight.data = torch.randn(16, 32)
    for _ in range(100):
        layer.weight.data = torch.randn(16, 32)
        if layer.weight.data_ptr() == address:
            break
    assert torch.equal(layer(x), layer.dense_module()(x))


# -- how often it packs --


def test_micro_batches_and_recomputed_passes_pack_once(packed: list[tuple[int, ...]]) -> None:
    layer = linear(transposable=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    mask = layer.weight != 0
    for step in range(2):
        for _ in range(4):
            x = torch.randn(3, 32, requires_grad=True)
            checkpoint(layer, x, use_reentrant=False).sum().backward()
        assert len(packed) == 2 * (step + 1)
        layer.weight.grad.mul_(mask)  # type: ignore[union-attr]
        optimizer.step()


# -- under a controller --


def test_a_step_of_four_micro_batches_chooses_once_and_packs_once_each_way(packed: list[tuple[int, ...]]) -> None:
    model, chosen = forced(nn.Sequential(SemiStructuredLinear(32, 16))), list[int]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    method = methods.rewire(0.5, allocation="uniform", structure=NM(2, 4, transposable=True))
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=3)
    sparsifier.watch(lambda step, before, after: chosen.append(step))
    for step in range(3):
        packed.clear()
        for _ in range(4):
            model(torch.randn(3, 32, requires_grad=True)).sum().backward()
        assert packed == [(16, 32), (32, 16)]
        optimizer.step()
        assert chosen == list(range(1, step + 2))
        optimizer.zero_grad()


def live(structure: NM) -> dict[str, gossamer.Method]:
    rewire = methods.rewire(0.5, allocation="uniform", exploit=gossamer.Reset(7))
    plain = {
        "rewire": rewire,
        "every-5-fix": methods.rewire(0.5, every=5, allocation="uniform", exploit=gossamer.Fix(0.5)),
        "regularize": methods.rewire(0.5, allocation="uniform", exploit=gossamer.Regularize(0.01)),
        "ste": methods.ste(0.5, allocation="uniform"),
        "sr-ste": methods.sr_ste(0.5, decay=1e-2),
        "static": methods.static(0.5, allocation="uniform"),
    }
    return {name: replace(method, structure=structure) for name, method in plain.items()}


METHODS = {
    f"{name} {structure.name}": method
    for structure in (NM(2, 4), NM(2, 4, transposable=True))
    for name, method in live(structure).items()
    if not structure.transposable or name in ("rewire", "sr-ste")
}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)).to(dtype)


def train(model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    generator, losses = torch.Generator().manual_seed(2), []
    for _ in range(steps):
        x, labels = torch.randn(12, 16, generator=generator), torch.arange(12) % 4
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_training_equals_masked(packed: list[tuple[int, ...]], method: gossamer.Method) -> None:
    runs = []
    for convert in (False, True):
        model: nn.Module = network()
        if convert:
            model = forced(gossamer.convert(model, method, layout="semi_structured", total_steps=50))
        optimizer = adamw(model)
        sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=50)
        runs.append((train(model, optimizer, 50), sparsifier, model))
    (expected, masked, reference), (losses, ours, model) = runs
    transposable = method.structure.transposable  # type: ignore[attr-defined]
    assert len(packed) == (150 if transposable else 100), "twice two layers, but no gradient of the first input"
    for name, support in masked.supports.items():
        assert torch.equal(ours.supports[name].mask, support.mask)
        assert method.structure.is_valid(support.mask)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_training_in_bfloat16_autocast_equals_masked() -> None:
    method, losses = METHODS["rewire 2:4 transposable"], []
    for convert in (False, True):
        model: nn.Module = network()
        if convert:
            model = forced(gossamer.convert(model, method, layout="semi_structured"))
        optimizer = adamw(model)
        gossamer.sparsify(model, method, optimizer, total_steps=20)
        losses.append(train(torch.autocast("cpu", torch.bfloat16)(model), optimizer, 20))
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-2, atol=1e-2)


def test_states_that_are_restored_or_loaded_are_packed_anew() -> None:
    method = METHODS["rewire 2:4"]
    model = forced(gossamer.convert(network(), method, layout="semi_structured"))
    optimizer = adamw(model)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=50)
    x = torch.randn(3, 16)
    train(model, optimizer, 3)
    before, state = model(x), copy.deepcopy(sparsifier.state_dict())
    train(model, optimizer, 3)
    model(x)
    sparsifier.load_state_dict(state)
    plain = gossamer.convert(copy.deepcopy(model), layout="dense")
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model[0](x), functional.linear(x, model[0].weight, model[0].bias))
    del before


def test_an_average_of_the_weights_is_another_model() -> None:
    method = METHODS["rewire 2:4"]
    model = forced(gossamer.convert(network(), method, layout="semi_structured"))
    optimizer = adamw(model)
    gossamer.sparsify(model, method, optimizer, total_steps=50)
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(5):
        train(model, optimizer, 3)
        average.update_parameters(model)
    x = torch.randn(3, 16)
    torch.testing.assert_close(average(x), gossamer.convert(copy.deepcopy(average.module), layout="dense")(x))


def test_training_along_inputs_goes_on_from_transposable_weights() -> None:
    runs = []
    for convert in (False, True):
        model: nn.Module = network()
        for layer in (model[0], model[2]):  # type: ignore[index]
            make_two_four(layer, transposable=True)
        if convert:
            model = forced(gossamer.convert(model, METHODS["rewire 2:4"], layout="semi_structured"))
        optimizer = adamw(model)
        gossamer.sparsify(model, METHODS["rewire 2:4"], optimizer, total_steps=50)
        runs.append(train(model, optimizer, 8))
    torch.testing.assert_close(torch.tensor(runs[1]), torch.tensor(runs[0]), rtol=1e-4, atol=1e-5)


def test_a_method_that_starts_dense_packs_once_it_is_two_four(packed: list[tuple[int, ...]]) -> None:
    method = methods.one_shot(0.5, at=3, scope="layer", structure=NM(2, 4))
    model = forced(gossamer.convert(network(), method, layout="semi_structured", total_steps=8))
    optimizer = adamw(model)
    gossamer.sparsify(model, method, optimizer, total_steps=8)
    train(model, optimizer, 3)
    assert packed == []
    train(model, optimizer, 3)
    assert packed
    assert all(layer.is_semi_structured for layer in (model[0], model[2]))  # type: ignore[index]


def test_training_after_detach_is_dense() -> None:
    runs = []
    for convert in (False, True):
        model: nn.Module = network()
        if convert:
            model = forced(gossamer.convert(model, METHODS["rewire 2:4"], layout="semi_structured"))
        optimizer = adamw(model)
        sparsifier = gossamer.sparsify(model, METHODS["rewire 2:4"], optimizer, total_steps=50)
        train(model, optimizer, 3)
        sparsifier.detach()
        runs.append(train(model, optimizer, 5))
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewire 2:4", "rewire 2:4 transposable"])
def test_compiles_once_whatever_is_rewired(packed: list[tuple[int, ...]], name: str) -> None:
    runs, frames = [], []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = forced(gossamer.convert(network(), METHODS[name], layout="semi_structured"))
        optimizer = adamw(model)
        gossamer.sparsify(model, METHODS[name], optimizer, total_steps=20)
        counter = CompileCounterWithBackend("aot_eager")
        runs.append(train(torch.compile(model, backend=counter, fullgraph=True) if compiled else model, optimizer, 20))
        frames.append(counter.frame_count)
    assert runs[0] == runs[1]
    assert frames == [0, 1]
    assert len(packed) == 2 * 20 * (3 if "transposable" in name else 2), "once per step, in compiled code too"


# -- deployment --


def test_torchs_own_tensors_are_for_cuda_devices() -> None:
    with pytest.raises(
        ConfigError, match=r"no weight can become .*: 0: on cpu, these tensors are for CUDA devices; 2: "
    ):
        to_torch_semi_structured(network())
    with pytest.raises(ConfigError, match="no linear layers"):
        to_torch_semi_structured(nn.Tanh())
