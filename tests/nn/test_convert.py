"""`convert` swaps layers, and the model computes what it did with masked weights."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gossamer
from gossamer import convert
from gossamer.analysis.sanity import first_supports
from gossamer.errors import AttachError, ConfigError, TargetError
from gossamer.methods import gmp, rewire, rigl, static
from gossamer.nn import (
    HybridConv2d,
    HybridLinear,
    PackedActivation,
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    SparseWeight,
    conversion_report,
    measure,
)
from gossamer.topology import Support

from .near import assert_near, masked

METHOD = static(0.2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 32, 1, 2)
        self.one, self.two = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = F.relu(self.two(F.relu(self.one(x))) + self.down(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.Dropout(0.4), nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 10))


def vgg() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding="same"), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )


def text() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.Flatten(), nn.Linear(48, 5)
    )


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual": (Residual, (3, 10, 12)),
    "mlp": (mlp, (48,)),
    "vgg": (vgg, (3, 8, 8)),
    "text": (text, (4, 12)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """A masked model and the same converted."""
    make, sample = MODELS[name]
    model = make()
    reference = masked(copy.deepcopy(model), first_supports(model, METHOD))
    return reference, convert(model, METHOD), sample


def weight_gradient(model: nn.Module, name: str) -> Tensor:
    grad = model.get_parameter(name).grad
    assert grad is not None
    return grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [7, 16, 33])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_computes_what_the_masked_one_does(name: str, batch: int, training: bool) -> None:
    reference, model, sample = pair(name)
    x = torch.randn(batch, *sample)
    outputs = []
    for each in (model, reference):
        torch.manual_seed(1)  # dropout
        y = each.train(training)(x)
        F.cross_entropy(y, torch.arange(batch) % 5).backward()
        outputs.append(y)
    assert type(outputs[0]) is Tensor
    assert_near(*outputs)
    for path, layer in model.named_modules():
        if isinstance(layer, SparseWeight):
            dense = weight_gradient(reference, f"{path}.weight").reshape(-1)
            assert_near(layer.values.grad, dense[layer.positions()])
    shared = set(dict(model.named_parameters())) & set(dict(reference.named_parameters()))
    assert shared
    for shared_name in shared:
        assert_near(weight_gradient(model, shared_name), weight_gradient(reference, shared_name))
    buffers = dict(model.named_buffers())
    for name, buffer in reference.named_buffers():
        assert_near(buffers[name].float(), buffer.float())


def test_activations_stay_packed_inside_and_leave_plain() -> None:
    _, model, sample = pair("residual")
    kinds: dict[str, type] = {}
    for name in ("stem", "norm", "one", "two", "down", "head"):
        model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: kinds.update({name: type(o)}))
    y = model(torch.randn(16, *sample))
    assert type(y) is Tensor
    assert set(kinds.values()) == {PackedActivation}


def test_training_through_the_converted_model_follows_the_masked_one() -> None:
    reference, model, sample = pair("vgg")
    x, y = torch.randn(32, *sample), torch.arange(32) % 10
    supports = {f"{n}.weight": m.support() for n, m in model.named_modules() if isinstance(m, SparseWeight)}
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9) for each in (reference, model)]
    for _ in range(20):
        for each, optimizer in zip((reference, model), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(each(x), y).backward()
            optimizer.step()
        masked(reference, supports)
    for name, support in supports.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, SparseWeight)
        assert layer.support() == support
        assert_near(layer.to_dense(), reference.get_parameter(name), 1e-4)


def test_supports_are_those_of_sparsify() -> None:
    model = Residual()
    method = rigl(0.3)
    sparsifier = gossamer.sparsify(copy.deepcopy(model), method, total_steps=10, seed=3)
    converted = convert(model, method, seed=3, total_steps=10)
    found = {f"{n}.weight": m.support() for n, m in converted.named_modules() if isinstance(m, SparseWeight)}
    assert found == dict(sparsifier.supports)


# -- there and back --


@pytest.mark.parametrize("name", MODELS)
def test_back_to_dense_is_bit_for_bit(name: str) -> None:
    reference, model, sample = pair(name)
    back = convert(model, layout="dense")
    assert [type(m) for m in back.modules()] == [type(m) for m in reference.modules()]
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in back.state_dict().items())
    assert conversion_report(back) is None
    x = torch.randn(4, *sample)
    assert torch.equal(back.eval()(x), reference.eval()(x))
    assert len(back._forward_hooks) == 0


def test_one_layer_is_replaced_itself() -> None:
    layer = convert(nn.Linear(40, 30), METHOD)
    assert isinstance(layer, SparseLinear)
    assert type(layer(torch.randn(3, 40))) is Tensor
    report = conversion_report(layer)
    assert report is not None
    assert [c.name for c in report.choices] == ["weight"]
    assert isinstance(convert(layer, layout="dense"), nn.Linear)


def test_modes_parameters_and_hooks_are_kept() -> None:
    model = mlp().eval()
    calls: list[str] = []
    handle = model[3].register_forward_hook(lambda *_: calls.append("seen"))
    bias = model[0].bias
    bias.requires_grad_(False)
    state = torch.get_rng_state()
    converted = convert(model, METHOD)
    assert torch.equal(torch.get_rng_state(), state)
    assert converted is model
    assert not any(m.training for m in model.modules())
    assert model[0].bias is bias
    assert not bias.requires_grad
    model(torch.randn(2, 48))
    handle.remove()
    model(torch.randn(2, 48))
    assert calls == ["seen"]


def test_copies_pickles_and_states() -> None:
    model = convert(Residual(), METHOD).eval()
    x = torch.randn(5, 3, 8, 8)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin(x)) is Tensor
        assert torch.equal(twin(x), expected)
        assert conversion_report(twin) == conversion_report(model)
    other = convert(Residual(), METHOD, seed=5).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected)


def test_a_module_used_twice_is_replaced_everywhere() -> None:
    layer = nn.Linear(20, 20)
    model = convert(nn.Sequential(layer, nn.ReLU(), layer), METHOD)
    assert model[0] is model[2]
    assert isinstance(model[0], SparseLinear)


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: list[Tensor]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return OrderedDict(a=y, b=(y.relu(), [Output(y, [y])]), c="text")


def test_nested_outputs_leave_plain() -> None:
    out = convert(Nested(), METHOD)(torch.randn(3, 20))
    inner = out["b"][1][0]
    assert all(type(t) is Tensor for t in (out["a"], out["b"][0], inner.logits, inner.hidden[0]))
    assert out["c"] == "text"


def test_an_average_of_dense_copies_follows_the_weights_through_rewirings() -> None:
    """The recipe of docs/sparse-layers.md."""

    def dense_copy() -> nn.Module:
        return convert(copy.deepcopy(model), layout="dense")

    method = rigl(0.3, every=2)
    model = convert(mlp(), method, total_steps=20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gossamer.sparsify(model, method, optimizer, total_steps=20)
    average = AveragedModel(dense_copy(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected, before = None, model[0].support()
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(16, 48)).square().sum().backward()
        optimizer.step()
        average.update_parameters(dense_copy())
        weight = model[0].to_dense().detach()
        expected = weight if expected is None else 0.9 * expected + 0.1 * weight
    assert model[0].support() != before
    assert_near(average.module[0].weight, expected)
    x = torch.randn(4, 48)
    assert_near(F.linear(x, expected, average.module[0].bias), average.module[0](x))


@pytest.mark.slow
def test_compile_and_export_of_a_converted_model() -> None:
    _, model, sample = pair("vgg")
    x = torch.randn(16, *sample)
    model.eval()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert_near(compiled(x), model(x))
    assert_near(torch.export.export(model, (x,)).module()(x), model(x))


def test_autocast_runs_the_rest_in_bfloat16() -> None:
    model = convert(nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 16)), METHOD, targets=["0.weight"])
    x = torch.randn(16, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[0].values.grad is not None
    assert_near(y.float(), model(x), 0.05)


# -- what is chosen --


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 20), nn.Linear(20, 20)
        self.b.weight = self.a.weight


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.recurrent = nn.GRU(16, 16)
        self.deep = nn.Conv3d(16, 16, 3)
        self.up = nn.ConvTranspose2d(16, 16, 3)
        self.wrapped = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.own = type("Own", (nn.Linear,), {})(16, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


def test_what_cannot_be_swapped_stays_dense_with_a_reason() -> None:
    model = convert(Mixed(), METHOD)
    report = conversion_report(model)
    assert report is not None
    why = {c.name: c.why for c in report.choices if c.layout == "dense"}
    assert {c.name for c in report.choices if c.layout == "sparse"} == {"fine.weight"}
    assert "attention" in why["attention.in_proj_weight"]
    assert "a Linear that may compute something else" in why["attention.out_proj.weight"]
    assert "recurrent" in why["recurrent.weight_hh_l0"]
    assert why["deep.weight"] == "there is no sparse layer for Conv3d"
    assert "ConvTranspose2d" in why["up.weight"]
    assert "reflect" in why["wrapped.weight"]
    assert "Own" in why["own.weight"]
    assert "TransformerEncoderLayer" in why["block.linear1.weight"]
    assert str(report).splitlines()[1].split() == [
        "fine.weight",
        "sparse",
        "16x16",
        str(model.fine.count),
        "asked",
        "for",
    ]
    assert model.block.eval()(torch.randn(2, 3, 16)).shape == (2, 3, 16)


def test_tied_weights_stay_dense() -> None:
    model = nn.Sequential(Tied(), nn.Linear(20, 20))
    convert(model, {"0.a.weight": Support.full((20, 20)), "1.weight": Support.full((20, 20))})
    report = conversion_report(model)
    assert report is not None
    assert [(c.layout, "tied" in c.why) for c in report.choices] == [("dense", True), ("sparse", False)]


def test_live_methods_take_hybrid_layers() -> None:
    model = convert(Residual(), rewire(0.2), layout="hybrid")
    assert isinstance(model.one, HybridConv2d)
    assert isinstance(model.head, HybridLinear)
    back = convert(model, layout="dense")
    assert type(back.one) is nn.Conv2d
    lone = convert(text(), rewire(0.2), layout="hybrid")
    assert type(lone[0]) is nn.Conv1d
    assert "no hybrid layer for Conv1d" in str(conversion_report(lone))


def test_a_method_that_starts_dense_starts_full() -> None:
    model = convert(mlp(), gmp(0.2), total_steps=100)
    assert all(m.density == 1 for m in model.modules() if isinstance(m, SparseWeight))


def test_masks_serve_as_supports() -> None:
    mask = torch.rand(30, 40) < 0.2
    model = convert(mlp(), {"3.weight": mask})
    assert torch.equal(model[3].support().mask, mask)
    assert type(model[0]) is nn.Linear
    kinds = convert(nn.Sequential(nn.Conv1d(3, 4, 2), nn.Conv2d(3, 4, 2)), METHOD)
    assert [type(m) for m in kinds] == [SparseConv1d, SparseConv2d]


def test_auto_swaps_what_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def judge(shape: Any, count: int, layout: str, every: float) -> measure.Verdict:
        asked.append((shape.weight, shape.batch, count, layout))
        fast = shape.weight == (40, 48)
        return measure.Verdict(fast, 2.0 if fast else 0.8, "2.00x dense" if fast else "no speed-up here: 0.80x dense")

    monkeypatch.setattr(measure, "judge", judge)
    model = convert(mlp(), METHOD, layout="auto", batch=torch.randn(9, 48))
    report = conversion_report(model)
    assert report is not None
    assert [(c.layout, c.why) for c in report.choices] == [
        ("sparse", "2.00x dense"),
        ("dense", "no speed-up here: 0.80x dense"),
        ("dense", "no speed-up here: 0.80x dense"),
    ]
    assert asked[0] == ((40, 48), 9, report.choices[0].count, "sparse")
    assert [type(m) for m in model if not isinstance(m, nn.ReLU | nn.GELU | nn.Dropout)] == [
        SparseLinear,
        *[nn.Linear] * 2,
    ]
    convert(mlp(), rewire(0.2), layout="auto", batch=torch.randn(9, 48))
    assert asked[-1][-1] == "hybrid"


# -- refusals --


def refusal(kind: type[Exception], *arguments: Any, **named: Any) -> str:
    with pytest.raises(kind) as caught:
        convert(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arguments_that_cannot_be() -> None:
    full = Support.full((40, 48))
    assert "expected one of" in refusal(ConfigError, mlp(), METHOD, layout="fast")
    assert "expected a torch.nn.Module" in refusal(ConfigError, [mlp()], METHOD)
    assert "takes neither" in refusal(ConfigError, mlp(), METHOD, layout="dense")
    assert "pass batch=" in refusal(ConfigError, mlp(), METHOD, layout="auto")
    assert 'use layout="hybrid"' in refusal(ConfigError, mlp(), rewire(0.2))
    assert "holds sparse layers already" in refusal(ConfigError, convert(mlp(), METHOD), METHOD)
    assert "leave targets out" in refusal(ConfigError, mlp(), {"0.weight": full}, targets="dctps")
    assert "no supports" in refusal(ConfigError, mlp(), {})
    assert "did you mean" in refusal(TargetError, mlp(), {"0.weigth": full})
    assert "1-D" in refusal(TargetError, mlp(), {"0.weight": full, "0.bias": full})
    assert "has shape (40, 48), the weight has (30, 40)" in refusal(ConfigError, mlp(), {"3.weight": full})
    assert "bool" in refusal(ConfigError, mlp(), {"0.weight": full.mask.float()})
    assert "expected a Method" in refusal(ConfigError, mlp(), 0.1)
    assert "mapping from weight names" in refusal(ConfigError, mlp(), [full])
    assert "mapping from weight names" in refusal(ConfigError, mlp())
    assert "support of 0.weight is a list" in refusal(ConfigError, mlp(), {"0.weight": [1, 2]})
    assert "seed" in refusal(ConfigError, mlp(), METHOD, seed=1.5)
    assert "no layer can be swapped: weight: there is no sparse" in refusal(ConfigError, nn.Conv3d(4, 4, 3), METHOD)


def test_a_kernel_too_large_to_index_stays_dense() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 182, bias=False), nn.Flatten(), nn.Linear(2, 2))
    report = conversion_report(convert(model, METHOD))
    assert report is not None
    assert [c.layout for c in report.choices] == ["dense", "sparse"]
    assert report.choices[0].why.startswith("a kernel of 33124 entries")


@pytest.mark.parametrize("batch", [torch.randn(3, 7), "x", [1, 2]], ids=["another size", "text", "list"])
def test_a_batch_that_does_not_fit_is_told(batch: Any) -> None:
    model = mlp()
    told = refusal(ConfigError, model, METHOD, layout="auto", batch=batch)
    assert "the model does not take this batch" in told
    assert type(model[0]) is nn.Linear


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        made = mlp()
        assert "inference_mode" in refusal(ConfigError, mlp(), METHOD)
    assert "inference_mode" in refusal(ConfigError, made, METHOD)


def test_a_model_on_the_meta_device_cannot_go_back() -> None:
    model = convert(mlp(), METHOD).to("meta")
    assert "has sizes only" in refusal(ConfigError, model, layout="dense")
    assert isinstance(model[0], SparseLinear)


def test_models_that_are_trained_already() -> None:
    model = mlp()
    gossamer.sparsify(model, METHOD)
    assert "sparsified already" in refusal(AttachError, model, METHOD)
    assert "before the model is wrapped" in refusal(ConfigError, torch.compile(mlp()), METHOD)
