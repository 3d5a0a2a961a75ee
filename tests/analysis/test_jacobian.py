"""Spectra equal the singular values of torch's own Jacobians, estimates agree with them, and nothing is changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gossamer
from gossamer import methods
from gossamer.analysis import LayerSpectra, Spectrum, end_to_end, layerwise
from gossamer.errors import ConfigError, DivergedError
from gossamer.foresight.isometry import rescale_fan_in
from gossamer.topology import Entries, gain_below


class Block(nn.Module):
    """Depthwise convolution with stride, norm, grouped convolution, in-place ReLU, shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)
        self.norm = nn.BatchNorm2d(inputs)
        self.grouped = nn.Conv2d(inputs, outputs, 1, groups=2)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.grouped(self.act(self.norm(self.depthwise(x)))) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer1 = Block(2, width, 1)
        self.layer2 = Block(width, width, 2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.layer2(self.layer1(x)).flatten(1)))


def net(width: int = 4) -> Net:
    """In training mode but for one block, with statistics that are not the identity."""
    torch.manual_seed(0)
    model = Net(width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model.layer2.eval()
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def reference(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Singular values example by example, by torch.autograd.functional."""
    found = []
    for one in x.double():
        jacobian = torch.autograd.functional.jacobian(function, one[None])
        outputs = jacobian.numel() // one.numel()
        found.append(torch.linalg.svdvals(jacobian.reshape(outputs, one.numel())))
    return torch.stack(found)


def close(measured: Spectrum, values: Tensor) -> None:
    assert measured.exact
    assert measured.values is not None
    torch.testing.assert_close(measured.values, values, rtol=1e-9, atol=1e-10)
    assert measured.count == values.numel()
    for name, value in (
        ("mean", values.mean()),
        ("std", values.std(correction=0)),
        ("max", values.max()),
        ("min", values.min()),
        ("mean_square", values.square().mean()),
    ):
        assert getattr(measured, name) == pytest.approx(float(value), abs=1e-9), name


# -- exact --


def test_the_end_to_end_spectrum_is_that_of_the_jacobian_of_the_evaluating_model() -> None:
    model, x = net(), images()
    twin = copy.deepcopy(model).double().eval()
    close(end_to_end(model, x), reference(twin, x))


def test_each_module_is_measured_at_the_input_it_receives() -> None:
    model, x = net(), images()
    twin = copy.deepcopy(model).double().eval()
    found = layerwise(model, x, ["layer*", "head"])
    assert list(found) == ["layer1", "layer2", "head"]
    middle = twin.layer1(x.double())
    close(found["layer1"], reference(twin.layer1, x))
    close(found["layer2"], reference(twin.layer2, middle))
    close(found["head"], reference(twin.head, twin.layer2(middle).flatten(1)))
    inner = layerwise(model, x, "layer2.*")
    assert list(inner) == [f"layer2.{n}" for n in ("depthwise", "norm", "act", "grouped", "shortcut", "act#2")]
    close(inner["layer2.depthwise"], reference(twin.layer2.depthwise, middle))
    close(inner["layer2.shortcut"], reference(twin.layer2.shortcut, middle))
    both = twin.layer2.grouped(twin.layer2.act(twin.layer2.norm(twin.layer2.depthwise(middle))))
    close(inner["layer2.act#2"], reference(torch.relu, both + twin.layer2.shortcut(middle)))


def test_from_the_input_the_jacobian_begins_at_the_input_of_the_model() -> None:
    model, x = net(), images()
    twin = copy.deepcopy(model).double().eval()
    found = layerwise(model, x, ["layer*", "head"], start="input")
    close(found["layer2"], reference(lambda z: twin.layer2(twin.layer1(z)), x))
    close(found["head"], reference(twin, x))


def test_the_default_modules_own_the_weights_that_would_be_sparse() -> None:
    model = net()
    names = [row.name.removesuffix(".weight") for row in gossamer.targets.choose(model, None) if row.sparse]
    assert list(layerwise(model, images())) == names
    assert list(layerwise(model, images(), nn.BatchNorm2d)) == ["layer1.norm", "layer2.norm"]
    assert list(layerwise(nn.Linear(3, 2), torch.ones(1, 3))) == ["Linear"]


@pytest.mark.parametrize("tracked", [True, False])
def test_statistics_of_the_batch_are_constants(tracked: bool) -> None:
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(2, track_running_stats=tracked), images()
    scale = 1 / (x.double().var((0, 2, 3), correction=0) + norm.eps).sqrt()
    values = end_to_end(nn.Sequential(norm), x, statistics="batch" if tracked else "running").values
    expected = scale.repeat_interleave(36).sort(descending=True).values.expand(3, -1)
    torch.testing.assert_close(values, expected)


def test_a_linear_chain_has_the_singular_values_of_the_product() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(4))).double()
    product = torch.eye(6).double()
    for layer in chain:
        product = layer.weight.detach() @ product
    for method in ("exact", "lanczos"):
        found = end_to_end(chain, torch.randn(2, 6), method=method)
        assert found.max == pytest.approx(float(torch.linalg.svdvals(product)[0]), rel=1e-9)
    close(end_to_end(chain, torch.randn(2, 6)), torch.linalg.svdvals(product).expand(2, -1))


def test_hand_worked_values() -> None:
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.diag(torch.tensor([4.0, 2.0, 0.0]))
    found = end_to_end(layer, torch.ones(1, 3))
    assert (found.mean, found.max, found.min, found.condition) == (2.0, 4.0, 0.0, 2.0)
    assert found.mean_square == pytest.approx(20 / 3)
    assert found.dead == pytest.approx(1 / 3)
    layer.weight.data.zero_()
    for method in ("exact", "lanczos"):
        found = end_to_end(layer, torch.ones(2, 3), method=method)
        assert (found.max, found.dead, found.condition, found.mean_square) == (0.0, 1.0, None, 0.0)
    assert "condition -" in str(found)


def test_the_relu_is_seen_at_its_input() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    model[0].weight.data = torch.eye(2)
    values = end_to_end(model, torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])).values
    assert values is not None
    assert values.tolist() == [[1, 1], [1, 0], [0, 0]]


# -- estimates --


@pytest.mark.parametrize("start", ["layer", "input"])
def test_estimates_agree_with_exact_values(start: Any) -> None:
    model, x = net(6), images(2)
    exact = layerwise(model, x, ["layer*", "layer2.*", "head"], start=start)
    rough = layerwise(model, x, ["layer*", "layer2.*", "head"], start=start, method="lanczos", probes=8)
    for name, true in exact.items():
        found = rough[name]
        assert (found.exact, found.values, found.condition, found.dead) == (False, None, None, None)
        assert found.count == true.count
        assert found.max <= true.max * (1 + 1e-9)
        assert found.max == pytest.approx(true.max, rel=2e-2), name
        assert found.min >= true.min - 1e-9 * true.max
        assert found.mean_square == pytest.approx(true.mean_square, rel=0.15), name
        assert found.mean == pytest.approx(true.mean, rel=0.15), name
        assert found.std == pytest.approx(true.std, rel=0.15, abs=0.05 * true.max), name


def test_estimates_average_to_the_exact_mean_square() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(20, 30), torch.ones(400, 20)  # every example has random vectors of its own
    exact = end_to_end(model, x[:1])
    many = end_to_end(model, x, method="lanczos", probes=5, steps=20)
    assert many.mean_square == pytest.approx(exact.mean_square, rel=0.02)
    assert many.mean == pytest.approx(exact.mean, rel=0.02)
    assert many.std == pytest.approx(exact.std, rel=0.02)
    assert (many.max, many.min) == (pytest.approx(exact.max), pytest.approx(exact.min))


def test_few_distinct_values_end_the_lanczos_steps_early() -> None:
    layer = nn.Linear(50, 50, bias=False)
    layer.weight.data = torch.diag(torch.cat([torch.full((25,), 3.0), torch.ones(25)]))
    found = end_to_end(layer, torch.ones(8, 50), method="lanczos", probes=50)
    assert (found.max, found.min) == (pytest.approx(3.0), pytest.approx(1.0))
    assert found.mean == pytest.approx(2.0, rel=0.02)


def test_a_seed_decides_the_estimate() -> None:
    model, x = net(), images()
    first, again, other = (end_to_end(model, x, method="lanczos", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_auto_is_exact_where_the_jacobians_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(4, 3), torch.ones(2, 4)
    monkeypatch.setattr("gossamer.analysis.jacobian.EXACT_ENTRIES", 24)
    assert end_to_end(model, x).exact
    monkeypatch.setattr("gossamer.analysis.jacobian.EXACT_ENTRIES", 23)
    assert not end_to_end(model, x).exact
    assert end_to_end(model, x, method="exact").exact


# -- nothing changes --


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_the_model_and_the_random_state_stay_as_they_are(method: Any) -> None:
    model, x = net(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gossamer.sparsify(model, methods.static(0.5), optimizer)
    model(x).sum().backward()
    model.head.bias.requires_grad_(False)
    seen: list[int] = []
    model.layer1.register_forward_hook(lambda *_: seen.append(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}

    def flags() -> list[Any]:
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
        return [hooks, [(id(p), p.requires_grad, p._version) for p in model.parameters()]]

    before, random, given = flags(), torch.get_rng_state(), x.clone()
    with torch.no_grad():
        end_to_end(model, x, method=method, statistics="batch")
        layerwise(model, x, method=method)
    assert flags() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None or torch.equal(p.grad, grads[n]) for n, p in model.named_parameters())
    with torch.inference_mode():
        assert end_to_end(model, x, method=method).max > 0


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrapped_model_is_measured_as_itself(one_process: None) -> None:
    model, x = net(), images()
    plain = layerwise(model, x)
    for wrapped in (DistributedDataParallel(model), nn.DataParallel(model), torch.compile(model)):
        assert layerwise(wrapped, x) == plain


def test_a_sharded_model_is_refused(one_process: None) -> None:
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ConfigError, match=r"the model is sharded \(FSDP2\)"):
        end_to_end(model, images())


# -- other kinds of modules --


def test_attention_and_recurrent_layers_with_tokens() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 8)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.rnn = nn.GRU(8, 5, batch_first=True)

        def forward(self, tokens: Tensor) -> dict[str, Tensor]:
            return {"tokens": tokens, "states": self.rnn(src_mask(self.block(self.embed(tokens))))[0]}

    def src_mask(x: Tensor) -> Tensor:
        return x * 1.0

    torch.manual_seed(0)
    model, tokens = Text(), torch.arange(6).view(2, 3)
    found = layerwise(model, tokens)
    assert list(found) == ["block.self_attn", "block.linear1", "block.linear2", "rnn"]
    twin = copy.deepcopy(model).double().eval()
    hidden = twin.embed(tokens)
    own = twin.block.self_attn
    close(found["block.self_attn"], reference(lambda z: own(z, z, z)[0], hidden))
    close(found["rnn"], reference(lambda z: twin.rnn(z)[0], twin.block(hidden)))
    rough = layerwise(model, tokens, "rnn", method="lanczos", probes=64)["rnn"]
    assert rough.mean_square == pytest.approx(found["rnn"].mean_square, rel=0.15)
    with pytest.raises(ConfigError, match=r"torch.int64: there is no Jacobian .* use layerwise"):
        end_to_end(model, tokens)
    with pytest.raises(ConfigError, match="use start='layer'"):
        layerwise(model, tokens, start="input")
    with pytest.raises(ConfigError, match="embed receives or returns no floating-point tensor"):
        layerwise(model, tokens, "embed")


# -- tables --


def made(*mean_squares: float, start: str = "layer") -> LayerSpectra:
    rows = {f"l{n}": Spectrum(1, 0, 1, 1, value, 1, 0, 4, True) for n, value in enumerate(mean_squares)}
    return LayerSpectra(start, rows)


def test_the_slope_is_the_rate_per_layer() -> None:
    assert made(0.1, 0.01, 0.001, start="input").slope == pytest.approx(-1)
    assert made(0.1, 0.1, 10.0).slope == pytest.approx(-1 / 3)
    assert made(1.0, 0.0).slope == -math.inf
    assert made(5.0, start="input").slope is None
    text = str(made(0.1, 0.01, start="input"))
    assert text.splitlines()[1].split()[:3] == ["l0", "-1.00", "0.1"]
    assert text.endswith("from the input: -1.000")


def test_slopes_from_layers_and_from_the_input_agree_in_a_random_chain() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(6)))
    for layer in chain:
        nn.init.normal_(layer.weight, std=0.07)  # variance 0.0049 * 100: each layer halves the mean square
    x = torch.randn(1, 100)
    for start in ("layer", "input"):
        assert layerwise(chain, x, start=start).slope == pytest.approx(math.log10(0.49), abs=0.02)


# -- refusals --


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach() * 2


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()[:1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: end_to_end(Mixed(), torch.ones(2, 3)), "Mixed mixes the examples of a batch"),
        (lambda: end_to_end(nn.RNN(3, 2), torch.ones(4, 3)[:, None]), "RNN mixes the examples of a batch"),
        (lambda: end_to_end(Cut(), torch.ones(2, 3)), "the output of Cut does not depend on its input"),
        (lambda: end_to_end(Transposed(), torch.ones(2, 3)), r"turns \(2, 3\) into \(1,\)"),
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(0, 3)), "which is empty"),
        (lambda: end_to_end(nn.Linear(3, 2), [torch.ones(1, 3)]), "inputs is list; expected one tensor"),  # type: ignore[arg-type]
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(1, 3), method="svd"), "method='svd': expected"),  # type: ignore[arg-type]
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(1, 3), statistics="x"), "statistics='x': expected"),  # type: ignore[arg-type]
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(1, 3), steps=0), "steps=0: expected a whole number from 1"),
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(1, 3), probes=True), "probes=True: expected"),
        (lambda: layerwise(nn.Linear(3, 2), torch.ones(1, 3), start="end"), "start='end': expected"),  # type: ignore[arg-type]
        (lambda: layerwise(net(), images(), "layers*"), r"modules='layers\*' matches no module of Net; did you mean"),
        (lambda: layerwise(net(), images(), nn.Conv3d), "matches no module of Net"),
        (lambda: layerwise(net(), images(), []), "modules is empty"),
        (lambda: layerwise(net(), images(), [3]), "modules holds 3"),  # type: ignore[list-item]
        (lambda: layerwise(net(), images(), True), "modules=True: expected names, globs"),  # type: ignore[arg-type]
        (lambda: layerwise(None, images()), "model is NoneType; expected a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: end_to_end(None, images()), "model is NoneType; expected a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(1, 4)), r"Linear cannot run on one tensor of shape \(1, 4\)"),
        (lambda: end_to_end(nn.Bilinear(3, 3, 2), torch.ones(1, 3)), "Bilinear cannot run on one tensor of shape"),
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(1, 3), seed=10**30), "seed=1000.*: expected a whole number"),
        (lambda: end_to_end(nn.Linear(3, 2), torch.ones(1, 3), seed=True), "seed=True: expected a whole number"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        call()
    assert "\n" not in str(told.value)


def test_a_module_that_is_not_called_is_refused_by_name() -> None:
    model = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)
    with pytest.raises(ConfigError, match=r"the forward pass does not call self_attn.out_proj"):
        layerwise(model, torch.ones(1, 2, 4), "self_attn.out_proj")


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.cache = model.weight * 2  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="Linear cannot be copied"):
        end_to_end(model, torch.ones(1, 2))


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_what_is_not_finite_raises_with_its_name(method: Any) -> None:
    model = net()
    model.head.weight.data[0, 0] = math.inf
    with pytest.raises(DivergedError, match="the Jacobian of head is not finite"):
        layerwise(model, images(), "head", method=method)


# -- what the theory says --


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 9), (9, 6), (7, 7)])
def test_the_gain_of_rebalance_is_the_mean_square_times_the_smaller_side_over_the_outputs(
    inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(inputs, outputs, bias=False).double()
    weight = model.weight.detach()
    weight[torch.rand(outputs, inputs) < 0.5] = 0.0
    gain = float(weight.square().sum()) / outputs
    (found,) = layerwise(model, torch.ones(1, inputs)).values()
    assert gain == pytest.approx(found.mean_square * min(inputs, outputs) / outputs)
    group = [Entries(weight, weight != 0), Entries(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))]
    shares = gain_below(1e3)(group, [3, 3], [torch.ones_like(member.active) for member in group])
    assert shares[0] / shares[1] == pytest.approx(math.log(1e3 / gain) / math.log(1e6))  # a gain of 0 counts as 1e-6
    backward = (weight.T @ torch.eye(outputs, dtype=torch.float64)).square().sum() / outputs  # per unit gradient
    forward = weight.square().sum(1).mean()  # mean square entry of W x for x with E x x^T = I
    assert gain == pytest.approx(float(backward))
    assert gain == pytest.approx(float(forward))


def relu_net(seed: int) -> nn.Sequential:
    """Eight square layers of width 256 with He's variance, ReLU between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Linear(256, 256, bias=False), nn.ReLU()]
        nn.init.normal_(layers[-2].weight, std=math.sqrt(2 / 256))
    return nn.Sequential(*layers[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("density", "rescaled", "expected", "decades"),
    [
        (1.0, False, 2.0, 0.15),
        (0.1, False, 2e-8, 0.15),
        (0.1, True, 2.0, 0.15),
        (0.01, False, 2e-16, 0.8),  # 2.56 weights per unit: units without a live input die, and lower it further
        (0.01, True, 2.0, 1.0),
    ],
)
def test_masks_shrink_the_mean_square_by_the_density_per_layer_and_fan_in_rescaling_restores_it(
    density: float, rescaled: bool, expected: float, decades: float
) -> None:
    logs = []
    for seed in range(3):
        model = relu_net(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = gossamer.sparsify(model, methods.static(density, allocation="uniform"), optimizer, seed=seed)
        if rescaled:
            rescale_fan_in(model, sparsifier.supports)
        logs.append(math.log10(end_to_end(model, torch.randn(8, 256)).mean_square))
    assert sum(logs) / 3 == pytest.approx(math.log10(expected), abs=decades)
