"""Isometry of weights: gradients by finite differences, hand-worked gaps, and kept weights that come closer to it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gossamer
from gossamer import Support, methods
from gossamer.errors import ConfigError, DivergedError
from gossamer.foresight.isometry import (
    Isometry,
    approximate_isometry,
    gap_gradient,
    measure_isometry,
    rescale_fan_in,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 2),
        nn.Flatten(),
        nn.Linear(24, 40),
        nn.Linear(40, 10),
    )


def supports_of(model: nn.Module, density: float = 0.5) -> dict[str, Support]:
    generator = torch.Generator().manual_seed(1)
    return {
        row.name: Support.from_mask(torch.rand(row.parameter.shape, generator=generator) < density)
        for row in gossamer.targets.choose(model, None)
        if row.sparse
    }


# -- measuring --


def gap_by_definition(weight: Tensor) -> float:
    """Of the transposed weight, (fan_in, out), as the source writes it."""
    matrix = weight.flatten(1).T.double()
    gram = matrix.T @ matrix if matrix.shape[1] <= matrix.shape[0] else matrix @ matrix.T
    return float((gram - torch.eye(gram.shape[0])).norm())


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (4, 4), (3, 2, 3, 3), (30, 2, 3, 3)])
def test_the_gap_is_that_of_the_smaller_gram_matrix_and_of_the_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    values = torch.linalg.svdvals(weight.flatten(1).double())
    found = measure_isometry(weight)
    assert found.gap == pytest.approx(gap_by_definition(weight))
    assert found.gap == pytest.approx(float((values.square() - 1).norm()))
    assert found.mean_square == pytest.approx(float(values.square().mean()))


def test_an_orthogonal_weight_has_no_gap_and_supports_and_parts_count() -> None:
    weight = nn.init.orthogonal_(torch.empty(6, 4, dtype=torch.float64))
    assert measure_isometry(weight).gap == pytest.approx(0, abs=1e-12)
    assert measure_isometry(torch.cat([weight, weight]), parts=2).gap == pytest.approx(0, abs=1e-12)
    assert measure_isometry(torch.cat([weight, weight])).gap == pytest.approx(2)  # W^T W = 2 I_4
    diagonal = Support.from_mask(torch.eye(3, dtype=torch.bool))
    assert measure_isometry(torch.ones(3, 3), diagonal) == Isometry(0.0, 1.0, (1, 3, 3))


@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 7, 5)])
@pytest.mark.parametrize("squared", [False, True])
def test_the_gradient_is_that_of_finite_differences(shape: tuple[int, ...], squared: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    gradient = gap_gradient(weight, squared=squared)[1]
    numeric = torch.empty_like(weight)
    for place in range(weight.numel()):
        ends = []
        for shift in (1e-6, -1e-6):
            moved = weight.clone()
            moved.view(-1)[place] += shift
            ends.append(gap_gradient(moved, squared=squared)[0].sum())
        numeric.view(-1)[place] = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-7)


def test_the_gradient_is_the_published_one_and_zero_at_the_minimum() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(9, 5, dtype=torch.float64)  # (fan_in, out)
    error = matrix.T @ matrix - torch.eye(5)
    torch.testing.assert_close(gap_gradient(matrix.T[None])[1][0].T, 2 * matrix @ error / error.norm())
    gap, gradient = gap_gradient(torch.eye(3)[None])
    assert gap.item() == 0
    assert gradient.count_nonzero() == 0


def test_a_boolean_mask_is_a_support() -> None:
    weight = nn.init.normal_(torch.empty(10, 40))
    mask = weight > 0
    assert measure_isometry(weight, mask) == measure_isometry(weight, Support.from_mask(mask))
    for change in (rescale_fan_in, approximate_isometry):
        one, other = net(), net()
        assert change(one, {"7.weight": mask}) == change(other, {"7.weight": Support.from_mask(mask)})
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_has_no_gap(value: float) -> None:
    with pytest.raises(DivergedError, match="the weight is not finite"):
        measure_isometry(torch.full((3, 3), value))


# -- enforcing --


@pytest.mark.parametrize("squared", [False, True])
def test_enforcing_lowers_every_gap_keeps_the_supports_and_touches_nothing_else(squared: bool) -> None:
    model = net()
    supports = supports_of(model)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    results = approximate_isometry(model, supports, steps=300, squared=squared)
    assert set(results) == set(supports)
    parts = {"2.weight": 8, "3.weight": 2}
    for name, value in model.state_dict().items():
        if name not in supports:
            assert torch.equal(value, before[name]), name
            continue
        done, support = results[name], supports[name]
        assert value[~support.mask].count_nonzero() == 0
        assert done.after < done.before, name
        if not squared or name not in parts:
            first = measure_isometry(before[name], support, parts=parts.get(name, 1))
            assert done.before == pytest.approx(first.gap, rel=1e-5)
            assert done.after == pytest.approx(
                measure_isometry(value, parts=parts.get(name, 1)).gap, rel=1e-4, abs=1e-5
            )
    assert torch.equal(torch.get_rng_state(), random)
    again = net()
    assert approximate_isometry(again, supports, steps=300, squared=squared) == results
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_dense_weight_becomes_an_isometry_also_with_more_outputs_than_inputs(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(shape[1], shape[0])
    full = {"weight": Support.full(shape)}
    rough = approximate_isometry(copy.deepcopy(model), full)["weight"]
    assert rough.settled
    assert rough.after < 0.5 < rough.before  # circles the minimum at the distance of its rate
    fine = approximate_isometry(model, full, squared=True)["weight"]
    assert fine.settled
    assert fine.after < 1e-3
    torch.testing.assert_close(torch.linalg.svdvals(model.weight.detach()), torch.ones(12), rtol=0, atol=1e-3)


def test_one_step_is_gradient_descent_on_the_kept_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    mask = torch.rand(3, 4) < 0.6
    start = model.weight.detach() * mask
    error = start @ start.T - torch.eye(3)
    expected = (start - 0.01 * 2 * error @ start / error.norm()) * mask
    done = approximate_isometry(model, {"weight": Support.from_mask(mask)}, steps=1, lr=0.01)
    torch.testing.assert_close(model.weight.detach(), expected)
    assert (done["weight"].steps, done["weight"].settled) == (1, False)


def test_what_cannot_become_isometric_is_reported_as_it_is() -> None:
    model = nn.Linear(4, 4)
    mask = torch.eye(4, dtype=torch.bool)
    mask[0, 0] = False  # one row without weights: the gap cannot fall below 1
    done = approximate_isometry(model, {"weight": Support.from_mask(mask)}, squared=True)["weight"]
    assert done.settled
    assert done.after == pytest.approx(1, abs=1e-3)
    empty = {"weight": Support.from_mask(torch.zeros(4, 4, dtype=torch.bool))}
    done = approximate_isometry(model, empty)["weight"]
    assert (done.before, done.after, done.settled) == (2, 2, True)
    identity = nn.Linear(4, 4)
    nn.init.eye_(identity.weight)
    done = approximate_isometry(identity, {"weight": Support.full((4, 4))})["weight"]
    assert (done.after, done.steps, done.settled) == (0, 0, True)


def test_packed_attention_and_recurrent_weights_are_several_matrices() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.MultiheadAttention(4, 1), "r": nn.LSTM(4, 4)})
    supports = {name: Support.full(model.get_parameter(name).shape) for name in ("a.in_proj_weight", "r.weight_ih_l0")}
    approximate_isometry(model, supports, squared=True)
    for name, parts in (("a.in_proj_weight", 3), ("r.weight_ih_l0", 4)):
        for matrix in model.get_parameter(name).detach().chunk(parts):
            torch.testing.assert_close(torch.linalg.svdvals(matrix), torch.ones(4), rtol=0, atol=1e-3)


def test_a_sparsified_model_trains_on_from_the_enforced_weights() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = gossamer.sparsify(model, methods.set_(0.3, every=1), optimizer, total_steps=4)
    supports = dict(sparsifier.supports)
    assert all(done.after < done.before for done in approximate_isometry(model, supports, steps=50).values())
    assert dict(sparsifier.supports) == supports
    model(torch.randn(2, 3, 7, 7)).sum().backward()
    optimizer.step()
    assert sparsifier.step == 1


# -- rescaling --


def test_rescaling_gives_each_unit_the_variance_of_its_own_fan_in() -> None:
    model = net()
    supports = supports_of(model, 0.2)
    before = copy.deepcopy(model.state_dict())
    empty = rescale_fan_in(model, supports)
    for name, support in supports.items():
        weight, old, mask = model.get_parameter(name).detach(), before[name], support.mask
        if name == "4.weight":  # transposed: (in, out, *kernel)
            weight, old, mask = (t.transpose(0, 1) for t in (weight, old, mask))
        kept = mask.flatten(1).sum(1)
        factor = (mask[0].numel() / kept).sqrt()
        factor[kept == 0] = 0
        torch.testing.assert_close(weight, old * mask * factor.view(-1, *[1] * (weight.ndim - 1)))
        assert empty[name] == int((kept == 0).sum())
    assert sum(empty.values()) > 0


def test_rescaling_a_dense_weight_changes_nothing_and_groups_of_a_transposed_convolution_are_apart() -> None:
    model = nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False)
    nn.init.ones_(model.weight)
    rescale_fan_in(model, {"weight": Support.full(model.weight.shape)})
    assert bool((model.weight == 1).all())
    mask = torch.ones(4, 3, 1, 1, dtype=torch.bool)
    mask[0, 0] = False  # of output 0, whose inputs are 0 and 1
    rescale_fan_in(model, {"weight": Support.from_mask(mask)})
    expected = torch.ones(4, 3)
    expected[:2, 0] = torch.tensor([0.0, math.sqrt(2)])
    torch.testing.assert_close(model.weight.detach()[..., 0, 0], expected)


def test_rescaling_takes_the_transposed_linear_layer_of_gpt2() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nf = 2
            self.weight = nn.Parameter(torch.ones(4, 2))

    model = Conv1D()
    mask = torch.tensor([[True, True], [False, True], [False, True], [False, True]])
    rescale_fan_in(model, {"weight": Support.from_mask(mask)})
    assert model.weight[:, 0].tolist() == [2, 0, 0, 0]
    assert model.weight[:, 1].tolist() == [1, 1, 1, 1]


# -- refusals --


def complex_net() -> nn.Module:
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    return model


FULL = Support.full((10, 40))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: approximate_isometry(net(), {}), "supports is empty; pass weight name"),
        (lambda: rescale_fan_in(net(), {}), "supports is empty; pass weight name"),
        (lambda: approximate_isometry(net(), {"7.wait": FULL}), "the model has no weight '7.wait'; did you mean"),
        (lambda: approximate_isometry(net(), {"6.weight": FULL}), r"of 6.weight has shape \(10, 40\), the weight \(40"),
        (lambda: approximate_isometry(net(), {"7.bias": Support.full((10,))}), "7.bias cannot be sparse: 1-D"),
        (
            lambda: rescale_fan_in(complex_net(), {"phase": Support.full((2, 2))}),
            "phase cannot be sparse: torch.complex64 is not a floating",
        ),
        (lambda: approximate_isometry(net(), {"7.weight": FULL}, steps=0), "steps=0: expected a whole number from 1"),
        (lambda: approximate_isometry(net(), {"7.weight": FULL}, steps=True), "steps=True: expected"),
        (lambda: approximate_isometry(net(), {"7.weight": FULL}, lr=-1), "lr=-1: this is the rate"),
        (lambda: approximate_isometry(net(), {"7.weight": FULL}, squared=1), "squared=1: expected True or False"),  # type: ignore[arg-type]
        (lambda: measure_isometry(torch.ones(3)), "is no real matrix"),
        (lambda: measure_isometry(torch.ones(3, 3), parts=2), "parts=2: the 3 rows"),
        (lambda: measure_isometry(torch.ones(3, 3), FULL), "the support of the weight has shape"),
        (lambda: measure_isometry(None), "weight is NoneType; expected a tensor"),  # type: ignore[arg-type]
        (lambda: measure_isometry(torch.ones(3, 3), torch.ones(3, 3)), "the support of the weight is torch.float32"),
        (lambda: measure_isometry(torch.ones(3, 3), [1]), "is list; expected a Support or a boolean mask"),  # type: ignore[arg-type]
        (lambda: approximate_isometry(net(), {"7.weight": 3}), "7.weight is int; expected a Support"),  # type: ignore[dict-item]
        (lambda: rescale_fan_in(net(), [FULL]), "supports is list; pass weight name -> Support"),  # type: ignore[arg-type]
        (lambda: rescale_fan_in(net(), {3: FULL}), "the model has no weight 3"),  # type: ignore[dict-item]
        (lambda: approximate_isometry(None, {"7.weight": FULL}), "model is NoneType; expected a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: approximate_isometry(net(), {"7.weight": FULL}, lr=0), "lr=0: this is the rate"),
        (lambda: approximate_isometry(net(), {"7.weight": FULL}, lr=10**30), "lr=1000.*: this is the rate"),
    ],
)
def test_what_cannot_work_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("change", [approximate_isometry, rescale_fan_in])
def test_sharded_weights_are_refused(change: Callable[..., object], one_process: None) -> None:
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ConfigError, match=r"7.weight is sharded \(FSDP2\)"):
        change(model, {"7.weight": Support.full((10, 40))})


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_what_is_not_finite_or_diverges_raises_and_changes_nothing(value: float) -> None:
    model = net()
    supports = {name: Support.full(model.get_parameter(name).shape) for name in ("6.weight", "7.weight")}
    model.get_parameter("7.weight").data[0, 0] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DivergedError, match=r"7.weight is not finite or its isometry diverged"):
        approximate_isometry(model, supports, steps=2)
    after = model.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
