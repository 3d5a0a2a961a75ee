"""What convert() refuses and chooses by itself: methods that layers do not run, batches, densities that fall."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import Method, methods
from gossamer.errors import ConfigError
from gossamer.methods import REGISTRY
from gossamer.nn import SparseLinear, conversion_report, measure
from gossamer.nn.hybrid import HybridLinear
from gossamer.nn.measure import Verdict, traced
from gossamer.sparse_methods import refusal

from .laws.executions import Run
from .laws.settings import batches, mlp

DATA = batches((20,), 2)
STEPS = 24
ARGUMENTS: dict[str, dict[str, Any]] = {
    **{name: {"data": DATA} for name in ("snip", "grasp", "iter-snip", "force")},
    "synflow": {"inputs": (20,)},
    "magnitude": {"allow_collapse": True},
    "deepr": {"temperature": 1e-3},
}


def built(name: str) -> Any:
    return REGISTRY[name].build(0.5, **ARGUMENTS.get(name, {}))


PLAIN = sorted(name for name in REGISTRY if isinstance(built(name), Method))
UNFIT = sorted(name for name in PLAIN if refusal(built(name)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], int, int, str]]:
    """(weight, batch, count, layout) of every measurement; all say that it pays."""
    seen: list[tuple[tuple[int, ...], int, int, str]] = []

    def judge(shape: Any, count: int, layout: str, every: float) -> Verdict:
        seen.append((shape.weight, shape.batch, count, layout))
        return Verdict(True, 2.0, "2.00x dense fp32")

    monkeypatch.setattr(measure, "judge", judge)
    return seen


def refused(*arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        gossamer.convert(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- every method --


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"lottery"}))  # which is no method of one training
def test_every_method_tells_what_it_keeps(name: str) -> None:
    table = gossamer.sparsify(mlp(), built(name), total_steps=STEPS).summary()
    assert table.active == sum(row.count for row in table.rows if row.sparse) <= table.eligible
    assert table.active > 0 or name == "cs", "whose gates start at score 0, on the edge"
    assert "0.weight" in str(table)


def test_the_counts_of_soft_gates_are_those_of_their_supports() -> None:
    sparsifier = gossamer.sparsify(mlp(), methods.str_(0.5, s_init=-1.0), total_steps=STEPS)
    counts = {row.name: row.count for row in sparsifier.summary().rows if row.sparse}
    assert counts == {name: support.count for name, support in sparsifier.supports.items()}


@pytest.mark.parametrize("name", PLAIN)
def test_sparse_layers_take_what_they_run_and_hybrid_ones_all(name: str) -> None:
    method = built(name)
    if name in UNFIT:
        assert 'layout="hybrid"' in refused(mlp(), method, total_steps=STEPS)
    else:
        assert isinstance(gossamer.convert(mlp(), method, total_steps=STEPS)[0], SparseLinear)
    model = mlp()
    if not method.starts_dense:
        model = gossamer.convert(model, method, layout="hybrid", total_steps=STEPS)
        assert isinstance(model[0], HybridLinear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gossamer.sparsify(model, method, optimizer, total_steps=STEPS)


def test_methods_that_sparse_layers_do_not_run() -> None:
    assert {"snfs", "deepr", "srigl", "rebalance", "rewire", "topkast"} <= set(UNFIT)


@pytest.mark.parametrize("name", UNFIT)
def test_hybrid_layers_train_as_masked_ones(name: str, asked: list[Any]) -> None:
    method = built(name)
    runs = []
    for hybrid in (False, True):
        model = mlp().double()
        if hybrid:
            gossamer.convert(model, method, layout="auto", batch=DATA[0][0].double(), total_steps=STEPS, seed=3)
            assert {layout for *_, layout in asked} == {"hybrid"}
        runs.append(Run(model, method, "sgd-momentum", sparse=False, steps=STEPS))
    for x, y in batches((20,), STEPS):
        for run in runs:
            run.step((x.double(), y))
    masked, other = runs
    for name, value in masked.tensors().items():
        assert torch.allclose(other.tensors()[name], value, rtol=1e-8, atol=1e-12), name


# -- what is measured --


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(20, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.norm(self.fc(input=first)) + second  # type: ignore[no-any-return]


X, Y = torch.randn(6, 20), torch.randn(6, 16)


@pytest.mark.parametrize("batch", [(X, Y), {"first": X, "second": Y}, {"second": Y, "first": X}])
def test_batches_are_given_as_the_model_takes_them(batch: Any, asked: list[Any]) -> None:
    gossamer.convert(Two(), methods.static(0.3), layout="auto", batch=batch)
    assert asked == [((16, 20), 6, 96, "sparse")]


@pytest.mark.parametrize("batch", [X, (X,), {"x": X}, (X, torch.randn(6, 15)), "text", 32, [X, Y]])
def test_batches_that_do_not_fit(batch: Any) -> None:
    model = Two()
    before = copy.deepcopy(model.state_dict())
    told = refused(model, methods.static(0.3), layout="auto", batch=batch)
    assert told.startswith("the model does not take this batch: ")
    assert "a tuple of positional arguments, or a dict of named ones" in told
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert traced(model, (X, Y))["fc.weight"].batch == 6, "no hook is left"


def test_methods_that_start_dense_are_measured_at_their_last_density(asked: list[Any]) -> None:
    model = gossamer.convert(mlp(), methods.gmp(0.2), layout="auto", batch=X, total_steps=STEPS)
    last = methods.gmp(0.2).resolve(STEPS).counts({"0": (16, 20), "3": (12, 16), "5": (4, 12)}, STEPS)
    assert [count for *_, count, _ in asked] == list(last.values())
    report = conversion_report(model)
    assert report is not None
    assert report.choices[0].count == 320, "it starts full"
    assert report.choices[0].why.startswith(f"at its last density {last['0'] / 320:.3g}: 2.00x")


# -- messages --


def test_messages_name_what_works() -> None:
    assert "to convert() and sparsify()" in refused(mlp(), methods.rigl(0.3))
    for what in (None, "rigl", 0.1):
        told = refused(mlp(), what)
        assert "expected a Method such as" in told
        assert "mapping" in told
    model = gossamer.convert(mlp(), methods.static(0.5))
    with pytest.raises(ConfigError) as caught:
        gossamer.sparsify(model, methods.snfs(0.5), total_steps=STEPS)
    assert 'use dsr or rigl, or hybrid layers, convert(model, method, layout="hybrid")' in str(caught.value)


def test_usual_recipes_of_weight_decay_miss_values() -> None:
    """As docs/optimizers.md says, with the one that does not."""
    model = gossamer.convert(mlp(), methods.static(0.5))
    named = dict(model.named_parameters())
    assert not [name for name, parameter in named.items() if parameter.ndim >= 2]
    found = [name for name, p in named.items() if p.ndim >= 2 or name.split(".")[-1] == "values"]
    assert found == ["0.values", "3.values", "5.values"]
