"""k-winners: who wins, what is learned, what passes back, what is kept, and what the published code does otherwise."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gossamer
from gossamer.errors import ConfigError
from gossamer.nn.k_winners import KWinners, KWinners2d, update_boost
from gossamer.topology import FanIn


def trained(layer: KWinners | KWinners2d, seed: int = 0) -> KWinners | KWinners2d:
    """The layer with duty cycles that differ."""
    layer.duty_cycle.copy_(torch.rand(layer.duty_cycle.shape, generator=torch.Generator().manual_seed(seed)))
    return layer


# ---- who wins -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 12), density=st.floats(0.05, 1.0), seed=st.integers(0, 999), relu=st.booleans())
def test_the_k_best_ranks_win_and_the_first_of_equals(n: int, density: float, seed: int, relu: bool) -> None:
    layer = trained(KWinners(n, density, 1.0, boost_strength=2.0, relu=relu), seed)
    x = torch.randint(-2, 3, (5, n), generator=torch.Generator().manual_seed(seed)).float()
    duty, k = layer.duty_cycle.clone(), max(1, round(n * density))
    out = layer(x)
    for row, got in zip(x.tolist(), out.tolist(), strict=True):
        rank = [v * math.exp(-2.0 * d) if v >= 0 else v * math.exp(2.0 * d) for v, d in zip(row, duty, strict=True)]
        wins = sorted(range(n), key=lambda i: (-torch.tensor(rank[i]).item(), i))[:k]
        assert got == [v if i in wins and (v > 0 or not relu) else 0.0 for i, v in enumerate(row)]


def test_images_compete_as_a_whole_or_at_each_position() -> None:
    x = torch.randn(3, 6, 2, 4, generator=torch.Generator().manual_seed(0))
    whole, local = (trained(KWinners2d(6, 0.25, local=way)) for way in (False, True))
    held = torch.exp(-whole.duty_cycle)
    ranks = torch.where(x < 0, x / held, x * held)
    out = whole(x)
    for image, rank in zip(out, ranks, strict=True):
        assert set(image.flatten().nonzero().view(-1).tolist()) == set(rank.flatten().topk(12).indices.tolist())
    out = local(x)
    assert bool((out.count_nonzero(1) == round(6 * 0.25)).all())
    best = ranks.topk(2, dim=1).indices
    assert torch.equal(out.gather(1, best), x.gather(1, best))


def test_memory_format_and_image_size_change_nothing() -> None:
    for local in (False, True):
        layer = KWinners2d(4, 0.5, local=local)
        for size in ((3, 3), (2, 5)):
            x = torch.randn(2, 4, *size)
            other = copy.deepcopy(layer)
            assert torch.equal(layer(x), other(x.to(memory_format=torch.channels_last)))
            assert torch.equal(layer.duty_cycle, other.duty_cycle)
            assert layer.k(*size) == (2 if local else 2 * size[0] * size[1])


def test_counts_in_both_modes_round_as_published() -> None:
    layer, image, local = KWinners(25, 0.1, 1.5), KWinners2d(3, 0.1, 1.5), KWinners2d(25, 0.1, 1.5, local=True)
    assert (layer.k, image.k(5, 5), local.k(5, 5)) == (2, 8, 2), "halves round to even"
    for module in (layer, image, local):
        module.eval()
    assert (layer.k, image.k(5, 5), local.k(5, 5)) == (3, 11, 4)
    assert KWinners2d(30, 0.1, 1.5, local=True).eval().k(5, 5) == 4, "30 * .1 * 1.5 is 4.5, 30 * (.1 * 1.5) is more"
    assert KWinners(3, 0.01).k == KWinners2d(3, 0.01).k(1, 1) == 1, "one always wins"
    assert KWinners(3, 0.5, 2.0).eval().k == 3


def test_leading_dimensions_are_samples() -> None:
    x = torch.randn(4, 5, 10)
    one, other = KWinners(10, 0.3), KWinners(10, 0.3)
    assert torch.equal(one(x).view(20, 10), other(x.view(20, 10)))
    assert torch.equal(one.duty_cycle, other.duty_cycle)
    assert one(x[0, 0]).count_nonzero() == 3


def test_half_types_rank_as_float() -> None:
    layer = trained(KWinners(64, 0.1))
    x = torch.randn(8, 64).bfloat16()
    out = copy.deepcopy(layer)(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, layer(x.float()).bfloat16())
    assert bool((out.count_nonzero(1) == 6).all())


def test_nan_and_infinity_are_not_hidden() -> None:
    x = torch.tensor([[1.0, math.nan, 3.0, 2.0], [math.inf, 1.0, 0.0, -math.inf]])
    out = KWinners(4, 0.25)(x)
    assert math.isnan(out[0, 1])
    assert out[1].tolist() == [math.inf, 0.0, 0.0, 0.0]


# ---- what is learned ------------------------------------------------------------------------------------------------


def test_duty_cycles_by_hand() -> None:
    """Two batches of 2 with a period of 3: T = 2, then 3."""
    layer = KWinners(3, density=0.34, boost_strength=0.0, duty_cycle_period=3)
    layer(torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0]]))
    assert layer.duty_cycle.tolist() == [1.0, 0.0, 0.0]
    layer(torch.tensor([[0.0, 5.0, 0.0], [-3.0, -2.0, -1.0]]))  # a winner below 0 does not count
    assert layer.duty_cycle.tolist() == pytest.approx([1 / 3, 1 / 3, 0.0])
    assert int(layer.learning_iterations) == 4
    layer.eval()(torch.ones(5, 3))
    assert int(layer.learning_iterations) == 4


def test_duty_cycles_of_images_are_means_over_positions() -> None:
    layer = KWinners2d(2, density=0.5, boost_strength=0.0)
    layer(torch.tensor([[[[4.0, 3.0]], [[1.0, 2.0]]], [[[4.0, 0.0]], [[3.0, 0.0]]]]))
    assert layer.duty_cycle.flatten().tolist() == [3 / 4, 1 / 4]


def test_a_batch_longer_than_the_period_is_all_that_counts() -> None:
    x = torch.randn(50, 8)
    layer = trained(KWinners(8, 0.25, duty_cycle_period=10))
    out = layer(x)
    assert torch.equal(layer.duty_cycle, (out > 0).float().mean(0))


def test_boosting_evens_out_who_wins() -> None:
    torch.manual_seed(0)
    favours = torch.linspace(0, 1, 40)
    ratios = []
    for strength in (0.0, 1.5):
        layer = KWinners(40, 0.1, boost_strength=strength)
        for _ in range(40):
            layer(torch.rand(50, 40) + favours)
        ratios.append(layer.entropy().ratio)
    assert ratios[0] < 0.8 < ratios[1] <= 1


def test_entropy_of_equal_duty_cycles_is_the_maximum() -> None:
    layer = KWinners(20, 0.1)
    assert layer.entropy().bits == 0.0
    layer.duty_cycle.fill_(0.1)
    assert layer.entropy().bits == pytest.approx(20 * -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)))
    assert layer.entropy().ratio == pytest.approx(1.0)
    image = KWinners2d(5, 0.5)
    image.duty_cycle.fill_(0.5)
    assert image.entropy() == (5.0, 5.0)
    assert KWinners(4, 1.0, 1.0).entropy().ratio == 1.0


def test_boost_falls_once_per_epoch() -> None:
    model = nn.Sequential(KWinners(4, 0.5, boost_strength=2.0, boost_strength_factor=0.5), nn.Sequential(KWinners2d(2)))
    update_boost(model)
    update_boost(model)
    assert float(model[0].boost_strength) == 0.5
    assert float(model[1][0].boost_strength) == pytest.approx(0.81)


def test_a_resumed_layer_goes_on_exactly() -> None:
    torch.manual_seed(0)
    for make in (lambda: KWinners(12, 0.25, duty_cycle_period=20), lambda: KWinners2d(12, 0.25, duty_cycle_period=20)):
        layer, other = make(), make()
        shape = (7, 12) if isinstance(layer, KWinners) else (7, 12, 2, 2)
        for _ in range(2):
            layer(torch.randn(shape))
            update_boost(layer)
        other.load_state_dict(layer.state_dict())
        for _ in range(3):
            x = torch.randn(shape)
            assert torch.equal(layer(x), other(x))
        assert torch.equal(layer.duty_cycle, other.duty_cycle)


# ---- the published code ---------------------------------------------------------------------------------------------


def published(x: Tensor, duty: Tensor, beta: float, k: int, seen: int, period: int) -> tuple[Tensor, Tensor]:
    """Output and duty cycles after it: the card's equations, one sample after the other."""
    out = torch.zeros_like(x)
    for b, row in enumerate(x):
        rank = row * torch.exp(-beta * duty)
        threshold = rank.sort(descending=True).values[k - 1]
        out[b] = torch.where(rank >= threshold, row, 0.0)
    window = min(period, seen + len(x))
    return out, (duty * (window - len(x)) + (out > 0).sum(0)) / window


def test_reference_is_the_published_procedure() -> None:
    torch.manual_seed(0)
    layer = KWinners(10, 0.4, boost_strength=1.3, duty_cycle_period=15, reference=True)
    duty, seen = torch.zeros(10), 0
    for _ in range(4):
        x = torch.randint(-3, 4, (6, 10)).float()  # with ties
        wanted, duty = published(x, duty, 1.3, 4, seen, 15)
        seen += 6
        assert torch.equal(layer(x), wanted)
        assert torch.allclose(layer.duty_cycle, duty)


def test_what_was_mended() -> None:
    """Frequent winners below 0 rank lower, not higher; ties do not make more winners; a long batch is no negative T."""
    x, duty = torch.tensor([[-1.0, -1.1, -9.0]]), torch.tensor([0.0, 1.0, 0.0])
    mended, reference = (KWinners(3, 0.34, boost_strength=1.0, reference=way) for way in (False, True))
    for layer, winner in ((mended, 0), (reference, 1)):
        layer.duty_cycle.copy_(duty)
        assert layer(x)[0].nonzero().item() == winner
    ties = torch.ones(1, 3)
    assert KWinners(3, 0.34, boost_strength=0)(ties).tolist() == [[1.0, 0.0, 0.0]]
    assert KWinners(3, 0.34, boost_strength=0, reference=True)(ties).tolist() == [[1.0, 1.0, 1.0]]
    long = KWinners(3, 0.34, boost_strength=0, duty_cycle_period=2, reference=True)
    long.duty_cycle.fill_(0.5)
    long(torch.tensor([[1.0, 0.0, 0.0]]).repeat(6, 1))
    assert long.duty_cycle.tolist() == [2.0, -1.0, -1.0], "as published"


@pytest.mark.parametrize("local", [False, True])
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999))
def test_above_zero_and_without_ties_both_agree(seed: int, local: bool) -> None:
    x = torch.rand(4, 6, 3, 3, generator=torch.Generator().manual_seed(seed)) + 0.01
    one, other = (trained(KWinners2d(6, 0.3, local=local, reference=way), seed) for way in (False, True))
    assert torch.equal(one(x), other(x))
    assert torch.equal(one.duty_cycle, other.duty_cycle)


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [False, True])
def test_gradient_passes_through_the_winners_alone(relu: bool) -> None:
    x = torch.randn(4, 10, requires_grad=True)
    out = trained(KWinners(10, 0.6, relu=relu))(x)
    (got,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert torch.equal(got, (out != 0).float())


def test_gradcheck() -> None:
    layer = KWinners(6, 0.5).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features=0: expected a whole number"),
        ({"density": 0.0}, "density is the fraction"),
        ({"density": 0.8, "k_inference_factor": 1.5}, "1.2 of the units would win in evaluation mode; .* up to 1.25"),
        ({"k_inference_factor": 0}, "use a factor above 0"),
        ({"boost_strength": -1}, "boost_strength=-1: this is beta"),
        ({"boost_strength": 1e30}, "a number from 0 to 80"),
        ({"boost_strength_factor": 1.1}, "boost_strength_factor=1.1"),
        ({"duty_cycle_period": 0}, "duty_cycle_period=0"),
        ({"duty_cycle_period": 10**30}, "below 2"),
        ({"relu": 1}, "relu=1: expected True or False"),
        ({"reference": "yes"}, "reference='yes': expected True or False"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KWinners(**{"features": 10, **arguments})  # type: ignore[arg-type]


def test_inputs_that_do_not_fit() -> None:
    for x in (torch.zeros(2, 3), torch.tensor(1.0)):
        with pytest.raises(ConfigError, match=r"expected \(\.\.\., 4\)"):
            KWinners(4)(x)
    for x in (torch.zeros(4, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 0, 2)):
        with pytest.raises(ConfigError, match=r"expected \(batch, 4, height, width\)"):
            KWinners2d(4)(x)
    with pytest.raises(ConfigError, match="local=None"):
        KWinners2d(4, local=None)  # type: ignore[arg-type]


def test_empty_batches_teach_nothing() -> None:
    layer = KWinners(4)
    assert layer(torch.zeros(0, 4)).shape == (0, 4)
    assert layer.duty_cycle.isfinite().all()


def test_it_says_what_it_is() -> None:
    assert repr(KWinners(8, 0.25, relu=True)).startswith("KWinners(8, density=0.25, k_inference_factor=1.5")
    assert repr(KWinners2d(8, local=True)).endswith("local=True)")


# ---- in a network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=lambda kind: kind.__name__)
def test_sparse_weights_of_the_published_code_are_static_with_exact_fan_in(make: type[torch.optim.Optimizer]) -> None:
    """Theirs: a fixed mask of round(density * fan-in) inputs per unit; after each step what is off the mask is set to
    0, while gradients are not masked."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(20, 16), KWinners(16, 0.25), nn.Linear(16, 3))
    theirs = copy.deepcopy(ours)
    fan_in = FanIn(exact=True)
    method = gossamer.methods.static(0.3, allocation="uniform", structure=fan_in)
    optimizer = make(ours.parameters(), lr=0.05)
    sparsifier = gossamer.sparsify(ours, method, optimizer, targets=["0.*"])
    mask = sparsifier.supports["0.weight"].mask
    assert bool((mask.sum(1) == round(0.3 * 20)).all())
    rezero = make(theirs.parameters(), lr=0.05)
    for step in range(6):
        with torch.no_grad():
            theirs[0].weight.mul_(mask)
        x, y = torch.randn(8, 20), torch.randint(3, (8,))
        for net, optim in ((ours, optimizer), (theirs, rezero)):
            nn.functional.cross_entropy(net(x), y).backward()
            optim.step()
            optim.zero_grad()
        with torch.no_grad():
            theirs[0].weight.mul_(mask)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)), step


def test_smoke_with_sparse_layers_and_a_method() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        KWinners2d(8, 0.2),
        nn.Flatten(),
        nn.Linear(8 * 36, 32),
        KWinners(32, 0.25),
        nn.Linear(32, 4),
    )
    method = gossamer.methods.static(0.3)
    x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 4
    converted = gossamer.convert(copy.deepcopy(model), method)
    for net in (model, converted):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        gossamer.sparsify(net, method, optimizer)
        for _ in range(30):
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss < 0.5


# ---- where it is run ------------------------------------------------------------------------------------------------


def test_a_nan_in_one_sample_changes_no_other() -> None:
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [math.nan, 2.0, math.nan, 3.0]])
    out = KWinners(4, 0.5, boost_strength=0)(x)
    assert out[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert out[1].isnan().tolist() == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision_learns_the_same_duty_cycles(dtype: torch.dtype) -> None:
    """In bfloat16 a duty cycle of .04 over 10,000 samples would no longer grow."""
    generator = torch.Generator().manual_seed(0)
    layer = KWinners(16, 0.25, duty_cycle_period=10_000)
    other = copy.deepcopy(layer).to(dtype)
    for _ in range(200):
        x = torch.randn(50, 16, generator=generator).to(dtype)
        assert torch.equal(other(x), layer(x.float()).to(dtype))
    assert torch.equal(layer.duty_cycle, other.duty_cycle)
    assert KWinners(4).double().duty_cycle.dtype == torch.float64
    assert KWinners(4).to("meta", dtype).to_empty(device="cpu").duty_cycle.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("make", [KWinners, KWinners2d])
def test_compiled_and_exported_it_is_the_same(make: type[KWinners | KWinners2d]) -> None:
    torch._dynamo.reset()
    layer, shape = make(6, 0.5), (3, 6) if make is KWinners else (3, 6, 2, 2)
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    for _ in range(2):
        x = torch.randint(-2, 3, shape).float()  # with ties
        assert torch.equal(compiled(x), layer(x))
    assert torch.equal(compiled.duty_cycle, layer.duty_cycle)
    exported = torch.export.export(layer.eval(), (x,)).module()
    assert torch.equal(exported(x), layer(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_second_forward_pass_in_the_backward_pass_is_refused(reentrant: bool) -> None:
    layer, x = KWinners(4, 0.5), torch.randn(2, 4, requires_grad=True)
    out = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(ConfigError, match="leave them out of activation checkpointing"):
        out.sum().backward()
    checkpoint(layer.eval(), x, use_reentrant=reentrant).sum().backward()


def test_what_is_no_activation() -> None:
    for x, message in (
        ([1.0, 2.0], "the input is a list"),
        (torch.eye(4).to_sparse(), "x.to_dense()"),
        (torch.ones(2, 4).long(), "x.float()"),
        (torch.ones(2, 4, dtype=torch.complex64), "real floating point"),
    ):
        layer = KWinners(4)
        with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
            layer(x)  # type: ignore[arg-type]
        assert int(layer.learning_iterations) == 0
