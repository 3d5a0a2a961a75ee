"""The ledger: hand-worked figures, and the laws that tie theory, execution and dense training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import methods
from gossamer.analysis.ledger import HELD, OFFSET, REWIRING, STEP, Ledger, Stretch, entries, stretches
from gossamer.analysis.work import Work, works
from gossamer.nn.layer_shape import LayerShape, traced
from gossamer.nn.offset import OffsetLinear
from gossamer.offsets import DCT

# 10 x 20, batch 4: N = 200, n = 50, P = 4
SHAPE = LayerShape("linear", (10, 20), 4)
MASKED = Work("fc.weight", SHAPE, 200, 50, "masked", slots=2, rewires=True, grows_by_gradient=True)
SPARSE = replace(MASKED, execution="sparse", index_bytes=130)
HYBRID = replace(MASKED, execution="hybrid", index_bytes=130, trained=200, live=True, grows_by_gradient=False)
X, Y = 4 * 4 * 20, 4 * 4 * 10  # bytes of input and output


def _flops(work: Work) -> dict[str, tuple[int, int]]:
    return {e.phase: (e.flops, e.flops_executed) for e in entries(work) if e.phase not in HELD}


def _bytes(work: Work) -> dict[str, tuple[int, int]]:
    return {e.phase: (e.bytes, e.bytes_executed) for e in entries(work)}


# -- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [MASKED, SPARSE, HYBRID])
def test_theory_does_not_depend_on_execution(work: Work) -> None:
    masked = replace(work, execution="masked", index_bytes=0)
    assert [(e.phase, e.flops, e.bytes) for e in entries(work)] == [
        (e.phase, e.flops, e.bytes) for e in entries(masked)
    ]


def test_all_active_and_masked_computes_as_dense() -> None:
    dense = Work("w", SHAPE, 200, 200, "dense")
    masked = replace(dense, execution="masked")
    assert _flops(dense) == _flops(masked)
    assert all(theory == executed for theory, executed in _flops(dense).values())


def test_theory_is_linear_in_density_and_batch() -> None:
    for phase in STEP:
        assert _flops(replace(SPARSE, count=100))[phase][0] == 2 * _flops(SPARSE)[phase][0]
        assert _flops(replace(SPARSE, shape=replace(SHAPE, batch=8)))[phase][1] == 2 * _flops(SPARSE)[phase][1]


def test_a_training_is_the_sum_of_its_parts() -> None:
    parts = (Stretch(10, 1, {"fc.weight": 50}), Stretch(5, 0, {"fc.weight": 20}))
    whole = Ledger((SPARSE,), parts).totals
    single = [Ledger((SPARSE,), (part,)).totals for part in parts]
    assert whole.flops == sum(t.flops for t in single)
    assert whole.flops_executed == sum(t.flops_executed for t in single)
    assert whole.flops_dense == sum(t.flops_dense for t in single)


# -- hand-worked ---------------------------------------------------------------------------------------------------


def test_flops_by_hand() -> None:
    assert _flops(MASKED) == {
        "forward": (400, 1600),
        "backward to activations": (400, 1600),
        "backward to weights": (400, 1600),
        "dense-gradient step": (1200, 0),
        "rewiring": (200, 200),
    }
    sparse = _flops(SPARSE)
    assert {phase: sparse[phase] for phase in STEP} == dict.fromkeys(STEP, (400, 400))
    assert sparse["dense-gradient step"] == (1200, 1600)
    assert _flops(HYBRID) == {
        "forward": (400, 400),
        "backward to activations": (400, 400),
        "backward to weights": (1600, 1600),
        "rewiring": (200, 200),
    }


def test_bytes_by_hand() -> None:
    sparse, masked, hybrid = _bytes(SPARSE), _bytes(MASKED), _bytes(HYBRID)
    assert sparse["forward"] == (200 + X + Y, 200 + 130 + X + Y)
    assert masked["forward"] == (200 + X + Y, 800 + X + Y)
    assert sparse["weights"] == sparse["gradients"] == (200, 200)
    assert masked["weights"] == masked["gradients"] == (200, 800)
    assert sparse["slots"] == (400, 400)
    assert masked["slots"] == (400, 1600)
    assert sparse["indices"] == (25, 130)  # 200 bits
    assert masked["indices"] == (25, 200)
    assert sparse["activations"] == (X, 4 * X)  # 4 of 16 lanes
    assert masked["activations"] == (X, X)
    assert hybrid["weights"] == (200 + 800, 800 + 800)
    assert sparse["rewiring"] == (800, 800 + 2 * 200 * 3 + 2 * 130)
    assert masked["rewiring"] == (800, 800 + 800 + 400)


def test_the_first_layer_needs_no_activation_gradient() -> None:
    first = replace(SPARSE, shape=replace(SHAPE, inner=False))
    assert "backward to activations" not in _flops(first)


def test_a_convolution_uses_its_weights_at_every_output_position() -> None:
    shape = LayerShape("conv", (8, 4, 3, 3), 2, (6, 6), stride=(2, 2), padding=(1, 1))
    assert shape.out_size == (3, 3)
    assert _flops(Work("c.weight", shape, 288, 288, "dense"))["forward"] == (2 * 288 * 18, 2 * 288 * 18)


def test_rigl_is_charged_its_dense_gradient_at_every_rewiring() -> None:
    ledger = Ledger((SPARSE,), (Stretch(100, 10),))
    assert ledger.totals.flops == 100 * 3 * 400 + 10 * (1200 + 200)
    assert ledger.totals.flops_executed == 100 * 3 * 400 + 10 * (1600 + 200)
    assert ledger.totals.flops_dense == 100 * 3 * 1600
    twice = replace(ledger, accumulate=2)
    assert twice.totals.flops_executed == 2 * (100 * 3 * 400 + 10 * 1600) + 10 * 200


def test_rows_of_a_run_become_stretches() -> None:
    rows = [
        {"step": 8, "rewirings": 1, "counts": {"fc.weight": 50}},
        {"step": 20, "rewirings": 2, "counts": {}},
    ]
    assert stretches(rows, {"fc.weight": 200}) == (
        Stretch(8, 1, {"fc.weight": 50}),
        Stretch(12, 2, {"fc.weight": 200}),
    )


# -- models --------------------------------------------------------------------------------------------------------


def test_tracing_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding="valid"), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout())
    x, before = torch.randn(5, 3, 9, 9), {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    shapes = traced(model, x)
    assert shapes == {"0.weight": LayerShape("conv", (8, 3, 3, 3), 5, (9, 9), (2, 2), (0, 0), (1, 1), 1, inner=False)}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tracing_counts_rows_and_repeated_calls() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    shape = traced(model, torch.randn(2, 5, 6))["0.weight"]
    assert shape.batch == 20
    assert shape.inner


def test_ledger_of_a_masked_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    method = methods.rigl(0.1, every=10)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=100)
    x = torch.randn(4, 20)
    model(x).sum().backward()
    optimizer.step()
    found = works(model, traced(model, x), sparsifier.summary(), method, [optimizer])
    by_name = {work.name: work for work in found}
    assert list(by_name) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert by_name["0.weight"].slots == by_name["0.bias"].slots == 2
    assert by_name["0.weight"].grows_by_gradient
    assert by_name["0.weight"].execution == "masked"
    assert by_name["0.bias"].execution == "dense"
    ledger = Ledger(found, (Stretch(100, 7),))
    assert ledger.totals.flops < ledger.totals.flops_executed
    assert ledger.totals.flops_executed == ledger.totals.flops_dense + 7 * 900
    assert json.loads(json.dumps(ledger.to_dict()))["layers"]["2.weight"]["entries"] == 300
    assert "dense-gradient step" in str(ledger)
    assert REWIRING[1] in str(ledger)


@pytest.mark.parametrize(
    ("method", "layout"), [(methods.rigl(0.1, every=10), "sparse"), (methods.rewire(0.1), "hybrid")]
)
def test_ledger_of_converted_models(method: gossamer.Method, layout: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 10))
    model = gossamer.convert(model, method, layout=layout, total_steps=100)
    optimizer = torch.optim.AdamW(model.parameters())
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=100)
    x = torch.randn(4, 40)
    model(x).sum().backward()
    optimizer.step()
    found = works(model, traced(model, x), sparsifier.summary(), method, [optimizer])
    weights = [work for work in found if work.name.endswith("weight")]
    assert [(w.name, w.numel, w.execution, w.slots) for w in weights] == [
        ("0.weight", 2400, layout, 2),
        ("2.weight", 600, layout, 2),
    ]
    assert all(work.index_bytes > 0 for work in weights)
    assert all(w.shape is not None for w in weights)
    forward = [entry for entry in Ledger(found).entries if entry.phase == "forward"]
    assert all(entry.flops_executed == entry.flops for entry in forward)


@pytest.mark.parametrize(
    ("method", "trained", "live"),
    [
        (methods.rewire(0.1), 900, True),
        (methods.snfs(0.1, every=10), 900, False),
        (methods.set_(0.1, every=10), None, False),
        (methods.static(0.1), None, False),
        (methods.topkast(0.1), 180, True),
        (methods.topkast(0.1, backward=0.5), 450, True),
        (methods.topkast(0.1, backward=gossamer.topology.Linear(0.5, 0.2)), 180, True),
    ],
)
def test_who_gets_a_gradient(method: gossamer.Method, trained: int | None, live: bool) -> None:
    model = nn.Linear(30, 30, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=100)
    (work,) = works(model, traced(model, torch.randn(2, 30)), sparsifier.summary(), method, [optimizer])
    assert (work.trained, work.live) == (trained, live)
    assert not work.grows_by_gradient
    assert math.isclose(work.count, 90)


@pytest.mark.parametrize("train_alpha", [True, False])
def test_ledger_of_an_offset(train_alpha: bool) -> None:
    """D x and D^T g beside the ledger of S; that of D^T g in the first layer is for the gradient of alpha."""
    layers = [OffsetLinear(n, m, train_alpha=train_alpha, offset=DCT()) for n, m in ((20, 30), (30, 10))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    method, optimizer = methods.static(0.1), torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=100)
    x = torch.randn(4, 20)
    found = works(model, traced(model, x), sparsifier.summary(), method, [optimizer])
    first, second = (work for work in found if work.offset)
    assert (first.name, second.name) == ("0.sparse.weight", "2.sparse.weight")
    flops = [_flops(work) for work in (first, second)]
    theory = [1.25 * 30 * math.log2(30), 1.25 * 30 * math.log2(30)]
    assert [f[OFFSET[0]][0] for f in flops] == [round(2 * 4 * each) for each in theory]
    assert flops[1][OFFSET[1]] == flops[1][OFFSET[0]]
    assert (OFFSET[1] in flops[0]) == train_alpha
    plain = tuple(replace(work, offset=None) for work in found)
    extra = Ledger(found, (Stretch(10),)).totals.flops - Ledger(plain, (Stretch(10),)).totals.flops
    assert extra == 10 * sum(f[phase][0] for f in flops for phase in OFFSET if phase in f)
    assert Ledger(found, (Stretch(10),)).totals.flops_dense == Ledger(plain, (Stretch(10),)).totals.flops_dense
