"""What is scored: SNIP is |w g|, GraSP the change of the squared gradient; by hand as well, with SynFlow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import foresight
from gossamer.foresight import Ones, Saliency, SynapticFlow

from . import oracles
from .measure import masks, names, same, scores
from .nets import NETS, Residual, images, mlp, seeded, vectors

EVERY = pytest.mark.parametrize("net", NETS)


def built(net: str) -> tuple[nn.Module, list[Any], Ones]:
    make, data, ones = NETS[net]
    return seeded(make), data, ones


def joined(data: list[Any]) -> list[Any]:
    return [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]


# -- SNIP --------------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("batches", [1, 3])
def test_snip_is_the_derivative_by_multiplicative_masks(net: str, batches: int) -> None:
    model, data, _ = built(net)
    found = scores(model, foresight.snip(data, batches))
    wanted = oracles.mask_sensitivity(model, names(model), data[:batches])
    assert list(found) == list(wanted)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-14)


def test_batch_norm_in_evaluation_takes_the_running_statistics() -> None:
    model, data = seeded(Residual), images()
    model(3 * data[1][0] + 2)  # statistics that are not the identity
    evaluated = oracles.running_with(model, {}, batch_norm="eval")
    evaluated.bn0.eval()
    loss = nn.functional.cross_entropy(evaluated(data[0][0]), data[0][1])
    loss.backward()
    found = scores(model, foresight.snip(data, batch_norm="eval"))
    for name, value in found.items():
        p = evaluated.get_parameter(name)
        torch.testing.assert_close(value, (p * p.grad).abs().detach())
    trained = scores(model, foresight.snip(data))
    assert not torch.allclose(trained["stem.weight"], found["stem.weight"])


def test_the_scale_of_the_loss_changes_nothing() -> None:
    model, data, _ = built("residual")

    def larger(output: Tensor, target: Tensor) -> Tensor:
        return 1024 * foresight.examples.cross_entropy(output, target)

    assert same(masks(model, foresight.snip(data), 0.2), masks(model, foresight.snip(data, loss=larger), 0.2))


def test_gradients_are_averaged_before_the_absolute_value() -> None:
    """Two batches that pull in opposite directions cancel."""
    model, x = seeded(lambda: nn.Linear(3, 1, bias=False)), torch.ones(1, 3, dtype=torch.float64)
    data = [(x, 1.0), (x, -1.0)]
    found = scores(model, foresight.snip(data, 2, loss=lambda output, sign: sign * output.sum()))
    assert not found["weight"].any()


@pytest.mark.parametrize("objective", [foresight.snip, foresight.grasp])
@pytest.mark.parametrize("net", ["mlp", "recurrent", "attention", "plain-residual"])
def test_several_batches_are_one_joined_batch_without_batch_norm(net: str, objective: Any) -> None:
    model, data, _ = built(net) if net != "plain-residual" else (seeded(lambda: Residual(norm=False)), images(), None)
    found, wanted = scores(model, objective(data, 3)), scores(model, objective(joined(data)))
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-8, atol=1e-16)


def test_half_precision_is_scored_in_single() -> None:
    """A gradient of 1e-9 is zero in float16, and its weight would tie with all others."""
    model = seeded(lambda: mlp(6, 8, 3), dtype=torch.float16)
    data = vectors(6, 3)
    found = scores(model, foresight.snip(data, loss=lambda o, t: 1e-9 * foresight.examples.cross_entropy(o, t)))
    assert all(value.dtype == torch.float32 and bool((value > 0).all()) for value in found.values())


# -- GraSP -------------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_grasp_is_the_change_of_the_squared_gradient(net: str, temperature: float) -> None:
    """d||g||^2 along -w_q is -2 w_q (H g)_q, by central differences at the largest scores of every weight."""
    model, data, _ = built(net)
    found = scores(model, foresight.grasp(data, temperature=temperature))
    w, step = oracles.initial(model, list(found)), 1e-4
    for name, value in found.items():
        for q in value.abs().reshape(-1).topk(3).indices.tolist():
            norms = []
            for factor in (1 - step, 1 + step):
                moved = {**w, name: w[name].clone()}
                moved[name].view(-1)[q] *= factor
                norms.append(oracles.squared_gradient(model, moved, data[:1], temperature))
            change = (norms[0] - norms[1]) / (2 * step)
            assert change == pytest.approx(-2 * float(value.view(-1)[q]), rel=1e-3, abs=1e-12), (name, q)


@pytest.mark.parametrize("net", ["residual", "mlp"])
def test_of_a_sparse_net_only_active_weights_have_a_gradient(net: str) -> None:
    """The squared gradient is that of what is left, as rounds after the first see it."""
    model, data, _ = built(net)
    active = masks(model, foresight.snip(data), 0.4)
    found = scores(model, foresight.grasp(data, temperature=1.0), active)
    w, step = {name: value * active[name] for name, value in oracles.initial(model, list(found)).items()}, 1e-4
    for name, value in found.items():
        q, norms = int(value.abs().argmax()), []
        for factor in (1 - step, 1 + step):
            moved = {**w, name: w[name].clone()}
            moved[name].view(-1)[q] *= factor
            norms.append(oracles.squared_gradient(model, moved, data[:1], active=active))
        change = (norms[0] - norms[1]) / (2 * step)
        assert change == pytest.approx(-2 * float(value.view(-1)[q]), rel=1e-3), name


@pytest.mark.parametrize(
    "name", ["stem.weight", "depthwise.weight", "grouped.weight", "shortcut.weight", "head.weight"]
)
def test_removing_a_small_weight_changes_the_squared_gradient_so_much(name: str) -> None:
    model, data, _ = built("residual")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[2] = 1e-5
    score = float(scores(model, foresight.grasp(data, temperature=1.0))[name].view(-1)[2])
    w = oracles.initial(model, names(model))
    before = oracles.squared_gradient(model, w, data[:1])
    w[name].view(-1)[2] = 0
    assert oracles.squared_gradient(model, w, data[:1]) - before == pytest.approx(-2 * score, rel=1e-2)


def test_the_temperature_divides_logits() -> None:
    model, data, _ = built("mlp")
    divided = foresight.grasp(data, temperature=1.0, forward=lambda run, batch: (run(batch[0]) / 200, batch[1]))
    for a, b in zip(scores(model, foresight.grasp(data)).values(), scores(model, divided).values(), strict=True):
        torch.testing.assert_close(a, b)


# -- by hand -----------------------------------------------------------------------------------------------------------


def two_layers() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """f = v U x = 9 with U x = (5, 1); half the squared error, of e = 9 - 1 = 8."""
    model = mlp(2, 2, 1, bias=False, act=nn.Identity).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        model[2].weight.copy_(torch.tensor([[2.0, -1.0]]))
    return model, [(torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))]


def half_squares(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum()


def test_snip_by_hand() -> None:
    """g_U = e v x^T = [[16, 32], [-8, -16]], g_v = e U x = (40, 8)."""
    model, data = two_layers()
    found = scores(model, foresight.snip(data, loss=half_squares))
    assert found["0.weight"].tolist() == [[16, 64], [24, 16]]
    assert found["2.weight"].tolist() == [[80, 8]]


def test_grasp_by_hand() -> None:
    """||g||^2 = e^2 A with A = |U x|^2 + |v|^2 |x|^2 = 51.

    Half its gradient: (e A v + e^2 U x) x^T = (1136, -344) (1, 2) and e A U x + e^2 |x|^2 v = (2680, 88).
    """
    model, data = two_layers()
    found = scores(model, foresight.grasp(data, loss=half_squares, temperature=1.0))
    assert found["0.weight"].tolist() == [[1136, 4544], [-1032, 688]]
    assert found["2.weight"].tolist() == [[5360, -88]]
    kept = masks(model, foresight.grasp(data, loss=half_squares, temperature=1.0), 0.5)
    assert kept["0.weight"].tolist() == [[True, True], [False, False]]
    assert kept["2.weight"].tolist() == [[True, False]]


def test_synflow_by_hand() -> None:
    """|U| 1 = (3, 4), so R = 2 * 3 + 1 * 4 = 10."""
    model, _ = two_layers()
    found = scores(model, Saliency(SynapticFlow(), ones=Ones((2,))))
    assert found["0.weight"].tolist() == [[2, 4], [3, 1]]
    assert found["2.weight"].tolist() == [[6, 4]]
