"""Subspace training: w = d + U theta."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import AttachError, CheckpointError, ConfigError
from gossamer.subspace import PROJECTIONS, Dense, Disjoint, Fastfood, Projection, Sparse, SubspaceModel
from gossamer.subspace.projections import _small_hadamard, hadamard

SHAPES = {"a.weight": (20, 30), "a.bias": (7,), "b.weight": (11, 5, 3, 3)}
TOTAL = 600 + 7 + 495
ALL: list[Projection] = [Dense(), Sparse(), Fastfood(), Disjoint(), Disjoint("equal_per_layer")]
each = pytest.mark.parametrize("projection", ALL, ids=str)


def matrix(projection: Projection, dimension: int, seed: int = 0) -> Tensor:
    """U, column by column."""
    embedding = projection.embed(SHAPES, dimension, seed)
    return torch.stack([embedding(unit) for unit in torch.eye(dimension)], dim=1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


@each
def test_columns_have_unit_norm(projection: Projection) -> None:
    norms = torch.linalg.vector_norm(matrix(projection, 64), dim=0)
    if isinstance(projection, Fastfood):  # on average, as its crop cuts every column elsewhere
        assert norms.square().mean().item() == pytest.approx(1, abs=0.01)
    else:
        assert torch.allclose(norms, torch.ones(64), atol=1e-6)


@each
def test_the_gradient_is_the_transpose(projection: Projection) -> None:
    u, theta, g = matrix(projection, 50), torch.randn(50, requires_grad=True), torch.randn(TOTAL)
    projection.embed(SHAPES, 50, 0)(theta).backward(g)
    assert theta.grad is not None
    assert torch.allclose(theta.grad, u.t() @ g, atol=1e-5)


@each
def test_the_seed_says_it_all(projection: Projection) -> None:
    state = torch.random.get_rng_state()
    assert torch.equal(matrix(projection, 33, 5), matrix(projection, 33, 5))
    assert not torch.equal(matrix(projection, 33, 5), matrix(projection, 33, 6))
    assert torch.equal(state, torch.random.get_rng_state())


def test_disjoint_columns_are_units_in_rows_of_their_own() -> None:
    for projection in (Disjoint(), Disjoint("equal_per_layer")):
        u = matrix(projection, 60)
        assert torch.equal(u.t() @ u, torch.eye(60))
    counts = [int((part != 0).sum()) for part in matrix(Disjoint("equal_per_layer"), 60).split([600, 7, 495])]
    assert counts == [27, 7, 26]  # the bias is full


def test_sparse_has_the_share_of_each_tensor() -> None:
    parts = matrix(Sparse(), 64).split([600, 7, 495])
    assert [int((part != 0).sum()) for part in parts] == [round(64 * n**0.5) for n in (600, 7, 495)]
    column = torch.cat([part[:, 0] for part in parts])
    sizes = torch.cat([torch.full((n,), n**0.25) for n in (600, 7, 495)])
    ratio = (column.abs() / sizes)[column != 0]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio))  # entries grow with the fourth root of the tensor's size


def test_all_dimensions_span_everything() -> None:
    embedding = Dense().embed({"w": (6, 5)}, 30, 0)
    u = torch.stack([embedding(unit) for unit in torch.eye(30)], dim=1)
    assert torch.linalg.matrix_rank(u) == 30


@pytest.mark.parametrize("levels", [0, 4, 6, 9])
def test_hadamard_is_that_of_sylvester(levels: int) -> None:
    h = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(levels):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    x = torch.randn(2**levels, dtype=torch.float64)
    assert torch.allclose(hadamard(x), h @ x)


@each
def test_autocast_leaves_the_weights_their_precision(projection: Projection) -> None:
    sub = SubspaceModel(net(), 40, projection)
    torch.nn.init.normal_(sub.theta)
    expected = sub.weights()
    with torch.autocast("cpu", torch.bfloat16):
        found = sub.weights()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@each
def test_it_starts_as_the_model_and_moves_only_theta(projection: Projection) -> None:
    model, x = net(), torch.randn(16, 8)
    before, values = model.eval()(x), {name: p.clone() for name, p in model.named_parameters()}
    sub = SubspaceModel(model, 40, projection, seed=3)
    assert torch.equal(sub(x), before)
    optimizer = torch.optim.Adam([p for p in sub.parameters() if p.requires_grad], lr=0.05)
    sub.train()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(sub(x), torch.arange(16) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, values[name]) for name, p in sub.model.named_parameters())
    moved = torch.cat([(w - values[name]).reshape(-1) for name, w in sub.weights().items()])
    offset = sub.embedding(sub.theta)
    assert torch.allclose(moved, offset, atol=1e-6)


def test_batch_norm_keeps_its_statistics() -> None:
    sub = SubspaceModel(net(), 10)
    sub.train()(torch.randn(16, 8))
    assert sub.model[1].num_batches_tracked == 1  # type: ignore[index]


def test_finalize_gives_the_same_function() -> None:
    sub = SubspaceModel(net(), 10)
    sub.theta.data.normal_()
    x = torch.randn(5, 8)
    expected = sub.eval()(x)
    model = sub.finalize()
    assert torch.equal(model(x), expected)
    assert all(p.requires_grad for p in model.parameters())


def test_from_zero_is_a_sparse_network() -> None:
    model = net()
    values = {name: p.clone() for name, p in model.named_parameters() if name.endswith("weight") and p.ndim == 2}
    sub = SubspaceModel(model, 30, Disjoint("equal_per_layer"), offset="zero", only=["0.weight", "3.weight"])
    weights = sub.weights()
    assert sum(int((w != 0).sum()) for w in weights.values()) == 30
    for name, weight in weights.items():
        assert torch.equal(weight[weight != 0], values[name][weight != 0])
    assert [name for name, p in sub.named_parameters() if p.requires_grad] == [
        *("theta", "model.0.bias", "model.1.weight", "model.1.bias", "model.3.bias")
    ]


def test_a_state_dict_brings_its_directions() -> None:
    sub = SubspaceModel(net(), 12, Sparse(), seed=4)
    sub.theta.data.normal_()
    other = SubspaceModel(net(), 12, Sparse(), seed=9)
    other.load_state_dict(sub.state_dict())
    x = torch.randn(4, 8)
    assert torch.equal(other.eval()(x), sub.eval()(x))
    assert not any(name.startswith("embedding") for name in sub.state_dict())
    newer = {**sub.state_dict(), "drawn": torch.tensor([4, 99])}
    with pytest.raises(CheckpointError, match="version 99"):
        other.load_state_dict(newer)


def test_directions_are_those_of_the_seed_whatever_the_number_format() -> None:
    x = torch.randn(4, 8).double()
    for projection in (Dense(), Fastfood()):
        sub = SubspaceModel(net().double(), 12, projection, seed=4)
        model = net().double()
        torch.set_default_dtype(torch.float64)
        try:
            other = SubspaceModel(model, 12, projection, seed=9)
            sub.theta.data.normal_()
            other.load_state_dict(sub.state_dict())
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(other.eval()(x), sub.eval()(x))


def test_the_state_of_another_subspace_is_refused() -> None:
    state = SubspaceModel(net(), 12, Sparse()).state_dict()
    with pytest.raises(CheckpointError, match=r"a subspace with Sparse\(\), this one has Fastfood\(\)"):
        SubspaceModel(net(), 12).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"0.bias moves in only one of the subspaces"):
        SubspaceModel(net(), 12, Sparse(), only=["*.weight"]).load_state_dict(state)


def test_first_used_in_inference_mode() -> None:
    _small_hadamard.cache_clear()
    sub = SubspaceModel(net(), 12)
    with torch.inference_mode():
        sub(torch.randn(4, 8))
    sub(torch.randn(4, 8)).sum().backward()
    assert sub.theta.grad is not None


def test_copies_are_their_own() -> None:
    sub = SubspaceModel(net(), 12)
    copied = copy.deepcopy(sub)
    copied.theta.data.normal_()
    x = torch.randn(4, 8)
    assert not torch.equal(copied.eval()(x), sub.eval()(x))


def test_it_compiles() -> None:
    sub = SubspaceModel(net(), 12, Sparse())
    sub.theta.data.normal_()
    x = torch.randn(4, 8)
    compiled = torch.compile(sub.eval(), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), sub(x), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SubspaceModel(net(), 0), "dimension is 0; expected a whole number from 1 to 244"),
        (lambda: SubspaceModel(net(), 245), "from 1 to 244"),
        (lambda: SubspaceModel(net(), 2.5), "dimension is 2.5"),  # type: ignore[arg-type]
        (lambda: SubspaceModel(net(), 4, offset="zero"), "which nothing trains"),
        (lambda: SubspaceModel(net(), 4, offset="origin"), "origin"),  # type: ignore[arg-type]
        (lambda: SubspaceModel(net(), 4, only=["2.weight"]), "matches no trainable parameter"),
        (lambda: SubspaceModel(net(), 4, Dense), "expected one of gossamer.subspace"),  # type: ignore[arg-type]
        (lambda: SubspaceModel("net", 4), "expected a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: SubspaceModel(nn.Linear(50_000, 1_000), 1_000, Dense()), "use Sparse"),
        (lambda: SubspaceModel(net(), 4, seed=2**63), "kept in 64 bits"),
        (lambda: Disjoint("even"), "even"),
        (lambda: SubspaceModel(net(), 3, Disjoint("uniform")), "fewer than one for each of 6 layers"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_sparsified_model_is_refused() -> None:
    model = net()
    gossamer.sparsify(model, gossamer.methods.static(0.5), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(AttachError, match="sparsified already"):
        SubspaceModel(model, 4)


def test_every_projection_has_its_name() -> None:
    assert set(PROJECTIONS) == {"dense", "sparse", "fastfood", "disjoint"}
    assert all(made.name == name for name, made in PROJECTIONS.items())
