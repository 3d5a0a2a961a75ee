"""Reference models: their sizes, what they take, how they start, and the narrower twins."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import ConfigError
from gossamer.experiments import data
from gossamer.experiments.models import MODELS, build, eligible_count, model_options, small_twin
from gossamer.experiments.models.layers import Attention, scaled, scaled_dim
from gossamer.experiments.models.residual import InvertedResidual, Residual

CIFAR, MNIST, POOLED, DIGITS = ((3, 32, 32), 10), ((1, 28, 28), 10), ((1, 14, 14), 10), ((1, 8, 8), 10)
SIGNAL, TEXT = ((40,), 10), ((64,), 256)
IMAGE_MODELS = [name for name, info in MODELS.items() if "image" in info.kinds]
TAKEN = {name: [TEXT] if name == "gpt" else [CIFAR, MNIST, POOLED, DIGITS] for name in MODELS}
TAKEN["lenet5"], TAKEN["lenet5-dctps"] = [CIFAR, MNIST, POOLED], [CIFAR, MNIST]
for flat in ("mlp", "lenet300"):
    TAKEN[flat] = [*TAKEN[flat], SIGNAL]


def meta(name, dataset, **options):
    with torch.device("meta"):
        return build(name, dataset, **options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dataset", "count"), [("mlp", SIGNAL, 78_336), ("gpt", TEXT, 221_184), ("cnn", POOLED, 69_904)]
)
def test_eligible_counts_of_the_small_settings(name, dataset, count):
    assert eligible_count(meta(name, dataset)) == count


@pytest.mark.parametrize(
    ("name", "dataset", "count"),
    [
        ("lenet300", MNIST, 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10),
        ("lenet5", MNIST, 61_706),  # with all 16 x 6 kernels of the second layer, as everybody counts it
        ("resnet20", CIFAR, 272_474),
        ("resnet18", CIFAR, 11_173_962),
        ("resnet50", CIFAR, 23_520_842),
        ("vgg19", CIFAR, 20_035_018),
        ("mobilenetv2", CIFAR, 2_236_682),
        ("lenet5-dctps", CIFAR, 61_510),
        ("fixup110", CIFAR, 1_719_856 + 10 + 54 * 5 + 2),  # weights, head's biases, scalars
        ("vit-tiny", CIFAR, 5_362_378),
    ],
)
def test_parameter_counts_of_the_standard_nets(name, dataset, count):
    assert parameters(meta(name, dataset)) == count


def test_nets_of_the_intrinsic_dimension_have_the_published_sizes():
    assert parameters(meta("mlp", MNIST, hidden=(200, 200), batch_norm=False, bias=True)) == 199_210
    assert parameters(meta("lenet5", MNIST, padded=False)) == 44_426


def test_the_m1d_net_has_no_hidden_biases_and_a_norm_after_every_hidden_layer():
    model = build("mlp", SIGNAL)
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Flatten", *["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    assert [module.bias is None for module in model if isinstance(module, nn.Linear)] == [True, True, False]


def test_the_cnn_has_416_batch_norm_parameters():
    norms = [m for m in meta("cnn", POOLED).modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(parameters(m) for m in norms) == 416


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *[("vgg11", 1), ("vgg19", 1), ("resnet8", 8), ("resnet20", 8), ("resnet18", 4), ("resnet50", 4)],
        *[("mobilenetv2", 4), ("fixup8", 8), ("fixup110", 8)],
    ],
)
def test_image_sides_before_the_head(name, side):
    model, seen = meta(name, CIFAR), []
    model.head.pool.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[2:]))
    model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert seen == [(side, side)]


def test_the_mobilenet_of_dctps_has_five_projections_more():
    plain, published = (meta("mobilenetv2", CIFAR, projections=projections) for projections in (False, True))
    weights = [
        sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        for net in (plain, published)
    ]
    assert weights == [2_202_560, 2_261_824]
    assert sum(isinstance(m, nn.Conv2d) for m in published.modules()) == 5 + sum(
        isinstance(m, nn.Conv2d) for m in plain.modules()
    )


# ---- what they take -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_logits_for_every_shape_that_a_model_takes(name):
    for shape, classes in TAKEN[name]:
        x = torch.zeros(2, *shape, device="meta", dtype=torch.int64 if name == "gpt" else torch.float32)
        logits = meta(name, (shape, classes))(x)
        assert logits.shape == ((2, *shape, classes) if name == "gpt" else (2, classes))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    dataset = TAKEN[name][0]
    model = build(name, dataset, width=0.25, **({"depth": 2} if name == "vit-tiny" else {}))
    if name.startswith("fixup"):  # branches and head start at zero
        torch.nn.utils.vector_to_parameters(torch.randn(parameters(model)) / 10, model.parameters())
    shape = (4, *dataset[0])
    x = torch.randint(256, shape) if name == "gpt" else torch.randn(shape)
    F.cross_entropy(
        model(x).flatten(0, -2), torch.randint(10, shape[:1] if name != "gpt" else (shape[0] * 64,))
    ).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert bool((parameter.grad != 0).any()), key


def test_a_data_set_says_its_shape_and_classes_itself():
    for name, model in (("digits", "cnn"), ("mnist1d", "mlp"), ("stdlib", "gpt")):
        loaded = data.load(name)
        net = build(model, loaded).eval()
        x, y = loaded.train.batch(0, 4, seed=0)
        assert net(x).shape == (*y.shape, loaded.classes)


def test_the_default_net_learns_digits():
    loaded = data.load("digits")
    torch.manual_seed(0)
    model = build("mlp", loaded, hidden=(64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(60):
        x, y = loaded.train.batch(step, 64, seed=0)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = loaded.valid.whole()
    assert float((model.eval()(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet81", CIFAR), r"unknown model 'resnet81'; did you mean 'resnet8'"),
        (lambda: model_options("resnt20"), r"unknown model 'resnt20'; did you mean 'resnet20'"),
        (lambda: build("mlp", SIGNAL, hiden=(3,)), r"unknown option 'hiden' of model mlp; did you mean 'hidden'"),
        (lambda: build("cnn", CIFAR, depth=3), r"unknown option 'depth' of model cnn; it takes none"),
        (lambda: build("mlp", SIGNAL, hidden="a,b"), r"hidden = 'a': expected a whole number"),
        (lambda: build("mlp", SIGNAL, hidden=(8, 0)), r"hidden = \(8, 0\): expected 1 or more"),
        (lambda: build("mlp", SIGNAL, width=0), r"width = 0: expected a factor above 0"),
        (lambda: build("mlp", SIGNAL, width=math.nan), r"width = nan"),
        (lambda: build("lenet5", DIGITS), r"lenet5 cannot take 8x8 images: its two 5x5 layers need at least 12x12"),
        (lambda: build("lenet5-dctps", POOLED), r"lenet5-dctps cannot take 14x14 images.*at least 16x16"),
        (lambda: build("resnet8", SIGNAL), r"resnet8 takes image data, not inputs of shape \(40,\); use mlp"),
        (lambda: build("gpt", CIFAR), r"gpt takes tokens data, not inputs of shape \(3, 32, 32\)"),
        (lambda: build("mlp", data.load("stdlib")), r"mlp takes vector or image data, .*; use gpt"),
        (lambda: build("gpt", data.load("mnist1d")), r"gpt takes tokens data, .*; use mlp, lenet300$"),
        (lambda: build("mlp", ((3, 4), 10)), r"not inputs of shape \(3, 4\); use inputs of 1 or 3 axes"),
        (lambda: build("vit-tiny", CIFAR, patch=5), r"patch = 5 does not divide images of 32x32"),
        (lambda: build("vit-tiny", CIFAR, dim=100), r"dim = 100 cannot be cut into 3 heads"),
        (lambda: build("gpt", TEXT, heads=0), r"heads = 0: expected 1 or more"),
        (lambda: build("gpt", TEXT)(torch.zeros(1, 65, dtype=torch.int64)), r"65 tokens do not fit .* context of 64"),
        (lambda: small_twin("mlp", SIGNAL, 0), r"target_count = 0: expected 1 to 78336"),
        (lambda: small_twin("mlp", SIGNAL, 78_337), r"target_count = 78337: expected 1 to 78336"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_options_reach_the_net_and_may_be_text():
    assert [m.out_features for m in build("mlp", SIGNAL, hidden="30,20") if isinstance(m, nn.Linear)] == [30, 20, 10]
    plain = build("mlp", SIGNAL, batch_norm="no", bias="yes")
    assert not any(isinstance(m, nn.BatchNorm1d) for m in plain)
    assert all(m.bias is not None for m in plain if isinstance(m, nn.Linear))
    small, full = (meta("vgg11", CIFAR, small=small).head.linear.in_features for small in (True, False))
    assert (small, full) == (128, 512)
    assert build("vit-tiny", CIFAR, depth=1, patch=8).positions.shape == (16, 192)
    assert len(build("gpt", TEXT, depth=3).blocks) == 3


# ---- how they start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_vision_nets_start_he_normal(name):
    torch.manual_seed(0)
    model = build(name, TAKEN[name][0], width=0.5, **({"he": True} if name.startswith("fixup") else {}))
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.bias is None or not module.bias.any()
            if module.weight.numel() >= 2000:
                fan_in = module.weight[0].numel()
                n, checked = module.weight.numel(), checked + 1
                z = (float(module.weight.detach().var()) * fan_in / 2 - 1) * math.sqrt(
                    n / 2
                )  # standard normal, if it is so
                assert abs(z) < 5
    assert checked


def test_gpt_starts_with_half_of_the_usual_scale():
    torch.manual_seed(0)
    model = build("gpt", TEXT)
    scales = {
        "blocks.0.attention.qkv.weight": 0.5 / math.sqrt(96),
        "blocks.1.attention.out.weight": 0.25 / math.sqrt(96),
        "blocks.0.up.weight": 0.5 / math.sqrt(96),
        "blocks.1.down.weight": 0.25 / math.sqrt(384),
        "head.weight": 0.5 / math.sqrt(96),
        "embedding.weight": 2 / math.sqrt(96),
    }
    for key, std in scales.items():
        assert float(model.get_parameter(key).detach().std()) == pytest.approx(std, rel=0.05), key


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_softmax_of_scaled_products(causal):
    torch.manual_seed(0)
    layer = Attention(12, 3, causal=causal).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).split(12, dim=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


@settings(max_examples=15, deadline=None)
@given(place=st.integers(0, 63))
def test_gpt_predicts_from_the_past_alone(place):
    torch.manual_seed(0)
    model, tokens = build("gpt", TEXT, depth=1), torch.randint(256, (1, 64))
    changed = tokens.clone()
    changed[0, place] = (tokens[0, place] + 1) % 256
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(after[:place], before[:place])
    assert bool((after[place:] != before[place:]).any(-1).all())


def test_a_shorter_text_is_the_beginning_of_a_longer_one():
    model, tokens = build("gpt", TEXT), torch.randint(256, (2, 64))
    torch.testing.assert_close(model(tokens[:, :10]), model(tokens)[:, :10])


def test_a_residual_block_without_its_branch_is_its_shortcut():
    x = torch.randn(2, 8, 6, 6)
    for block in build("resnet8", CIFAR, width=0.5).modules():
        if isinstance(block, Residual):
            nn.init.zeros_(block.branch[-1].norm.weight)
            y = block.eval()(x)
            torch.testing.assert_close(y, block.shortcut(x).relu())
            x = y


def test_mobilenet_adds_the_input_only_where_the_shape_stays():
    blocks = [m for m in meta("mobilenetv2", CIFAR).modules() if isinstance(m, InvertedResidual)]
    assert len(blocks) == 17
    assert sum(block.added for block in blocks) == 10
    block = InvertedResidual(4, 4, 1, 6).eval()
    nn.init.zeros_(block.branch[-1].norm.weight)
    x = torch.randn(2, 4, 5, 5)
    assert block(x).equal(x)


# ---- width and the SMALL control ------------------------------------------------------------------------------------


@given(size=st.integers(1, 4096), width=st.floats(1e-4, 4))
def test_scaled_sizes_are_the_nearest_of_at_least_one(size, width):
    assert scaled(size, 1.0) == size
    assert scaled(size, width) >= 1
    assert abs(scaled(size, width) - max(1, size * width)) <= 0.5


@given(heads=st.integers(1, 12), per_head=st.integers(1, 64), width=st.floats(1e-4, 4))
def test_heads_always_divide_the_dimension(heads, per_head, width):
    assert scaled_dim(heads * per_head, heads, width) % heads == 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "fixup110"])  # as fixup8, and slow
def test_width_grows_hidden_sizes_alone(name):
    dataset = TAKEN[name][0]
    counts = []
    for width in (0.01, 0.1, 0.3, 0.9, 1.0):
        model = meta(name, dataset, width=width)
        counts.append(eligible_count(model))
        x = torch.zeros(2, *dataset[0], device="meta", dtype=torch.int64 if name == "gpt" else torch.float32)
        assert model(x).shape[-1] == dataset[1]
    assert counts == sorted(counts)
    assert counts[-1] == eligible_count(meta(name, dataset))
    assert counts[0] < counts[-1] / 50


@settings(max_examples=25, deadline=None)
@given(target=st.integers(1, 78_336))
def test_no_mlp_of_equal_hidden_layers_is_nearer_than_the_twin(target):
    model, ratio, width = small_twin("mlp", SIGNAL, target)
    reachable = [40 * h + h * h + 10 * h for h in range(1, 257)]
    count = eligible_count(model)
    assert abs(count - target) == min(abs(c - target) for c in reachable)
    assert ratio == count / target
    assert eligible_count(meta("mlp", SIGNAL, width=width)) == count


@pytest.mark.parametrize(
    ("name", "dataset", "tolerance"),
    [
        ("cnn", POOLED, 0.02),
        ("resnet20", CIFAR, 0.02),
        ("mobilenetv2", CIFAR, 0.01),
        ("vgg19", CIFAR, 0.01),
        ("gpt", TEXT, 0.08),
    ],
)
def test_twins_of_a_twentieth_are_near(name, dataset, tolerance):
    target = round(0.05 * eligible_count(meta(name, dataset)))
    _, ratio, width = small_twin(name, dataset, target)
    assert abs(ratio - 1) < tolerance
    assert width < 0.5


def test_a_twin_of_the_full_count_is_the_full_net():
    _, ratio, width = small_twin("lenet5", MNIST, eligible_count(meta("lenet5", MNIST)))
    assert (ratio, width) == (1.0, 1.0)


def test_a_twin_starts_as_build_does_at_the_same_seed():
    torch.manual_seed(5)
    twin, _, width = small_twin("cnn", POOLED, 3000)
    torch.manual_seed(5)
    built = build("cnn", POOLED, width=width)
    assert all(a.equal(b) for a, b in zip(twin.parameters(), built.parameters(), strict=True))


def test_a_twin_keeps_the_options():
    twin, _, _ = small_twin("mlp", SIGNAL, 1000, hidden=(50, 50, 50), batch_norm=False)
    assert len([m for m in twin if isinstance(m, nn.Linear)]) == 4
    assert not any(isinstance(m, nn.BatchNorm1d) for m in twin)
