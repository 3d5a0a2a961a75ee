"""Checkpoints of sparse layers: the file of the masked model, read by either, without a dense weight."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer
from gossamer import checkpoint
from gossamer.errors import CheckpointError
from gossamer.nn import SparseConv1d, SparseConv2d, SparseLinear, SparseWeight
from gossamer.topology import Support


class Net(nn.Module):
    """Every kind of sparse layer, between dense ones; built dense, or with sparse layers of these densities."""

    def __init__(self, seed: int, *densities: float) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv1d(2, 6, 3, padding=1)
        self.one = SparseConv1d(6, 8, 3, densities[0], padding=1, groups=2) if densities else None
        self.one = self.one or nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.two = SparseConv2d(8, 12, (3, 1), densities[1]) if densities else nn.Conv2d(8, 12, (3, 1))
        self.norm = nn.BatchNorm2d(12)
        self.last = SparseLinear(12 * 14, 40, densities[2], bias=False) if densities else nn.Linear(168, 40, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(self.first(x)).relu().unsqueeze(-1))
        return self.last(self.norm(x).relu().flatten(1))  # type: ignore[no-any-return]


NAMES = ("one.weight", "two.weight", "last.weight")
DENSITIES = (0.3, 0.2, 0.02)


def layer(model: nn.Module, name: str) -> SparseWeight:
    found = model.get_submodule(name.removesuffix(".weight"))
    assert isinstance(found, SparseWeight)
    return found


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """What the masked model's state dict would be."""
    state = {}
    for name, value in model.state_dict().items():
        path = name.rpartition(".")[0]
        if name.endswith(".values"):
            state[f"{path}.weight"] = layer(model, f"{path}.weight").to_dense().detach()
        elif not name.endswith(".index"):
            state[name] = value
    return state


def masked(model: Net) -> Net:
    twin = Net(99)
    twin.load_state_dict(dense_state(model))
    return twin.train(model.training)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(
        value.dtype == b[name].dtype and torch.equal(value, b[name]) for name, value in a.items()
    )


def supports(model: nn.Module) -> dict[str, Support]:
    return {name: layer(model, name).support() for name in NAMES}


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return json.loads(header["__metadata__"]["gossamer"]), load_file(path)


# -- models ----------------------------------------------------------------------------------------------------------


def test_the_file_is_that_of_the_masked_model(tmp_path: Path) -> None:
    model = Net(0, *DENSITIES)
    checkpoint.save_model(tmp_path / "sparse", model)
    checkpoint.save_model(tmp_path / "masked", masked(model))
    (info, entries), (expected, others) = contents(tmp_path / "sparse"), contents(tmp_path / "masked")
    assert info == expected
    assert set(NAMES) <= set(info["sparse"])
    assert same(dict(sorted(entries.items())), dict(sorted(others.items())))
    rows = {row["name"]: row for row in checkpoint.describe(tmp_path / "sparse")["rows"]}
    assert [rows[name]["stored"] for name in NAMES] == ["bits", "bits", "gaps8"]
    assert all(rows[name]["count"] == layer(model, name).count for name in NAMES)


@pytest.mark.parametrize("writer", ["sparse", "masked"])
@pytest.mark.parametrize("densities", [DENSITIES, (0.5, 0.1, 0.3)])
def test_either_kind_of_model_takes_over_the_file_of_either(
    tmp_path: Path, writer: str, densities: tuple[float, ...]
) -> None:
    model, dense, fresh = Net(0, *DENSITIES), Net(5), Net(6, *densities)
    checkpoint.save_model(tmp_path / "x", model if writer == "sparse" else masked(model))
    held = dict(fresh.named_parameters())
    assert same(checkpoint.load_model(tmp_path / "x"), dense_state(model))
    assert same(checkpoint.load_model(tmp_path / "x", dense), dense_state(model))
    assert same(dict(dense.state_dict()), dense_state(model))
    state = checkpoint.load_model(tmp_path / "x", fresh)
    assert set(state) == set(fresh.state_dict())
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))
    assert supports(fresh) == supports(model)
    assert all(value is held[name] for name, value in fresh.named_parameters())
    x = torch.randn(5, 2, 16)
    assert torch.equal(fresh(x), model(x))


def test_active_zeros_stay_active(tmp_path: Path) -> None:
    model = SparseLinear(30, 20, 0.1)
    with torch.no_grad():
        model.values[::3] = 0.0
        model.values[1::3] = -0.0
    checkpoint.save_model(tmp_path / "x", model)
    fresh = SparseLinear(30, 20, 0.2)
    checkpoint.load_model(tmp_path / "x", fresh)
    assert fresh.support() == model.support()
    assert torch.equal(fresh.values.signbit(), model.values.signbit())


def test_a_weight_that_was_stored_dense_has_no_support(tmp_path: Path) -> None:
    """The layer's own holds all of it, or the exact non-zeros are taken."""
    dense = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        dense.weight[0, 0] = 0.0
    checkpoint.save_model(tmp_path / "x", dense)
    assert checkpoint.describe(tmp_path / "x")["rows"][0]["stored"] == "dense"
    full, other = (SparseLinear(10, 10, density, bias=False) for density in (1.0, 0.5))
    for model, count in ((full, 100), (other, 99)):
        checkpoint.load_model(tmp_path / "x", model)
        assert model.count == count
        assert torch.equal(model.to_dense(), dense.weight)
    checkpoint.save_model(tmp_path / "full", full)  # dense is smaller
    assert checkpoint.describe(tmp_path / "full")["rows"][0]["stored"] == "dense"
    assert torch.equal(checkpoint.load_model(tmp_path / "full")["weight"], dense.weight)


@pytest.mark.parametrize("count", [0, 1])
def test_nearly_empty_layers(tmp_path: Path, count: int) -> None:
    def made(index: list[int]) -> SparseLinear:
        return SparseLinear(300, 7, support=Support.from_index(torch.tensor(index, dtype=torch.int64), (7, 300)))

    model, fresh = made([1234][:count]), made([5, 6, 7])
    checkpoint.save_model(tmp_path / "x", model)
    checkpoint.load_model(tmp_path / "x", fresh)
    assert torch.equal(fresh.to_dense(), model.to_dense())
    assert fresh.count == count


class Wrapper(nn.Module):
    """Names as DDP has them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_shared_layers_and_wrapped_models(tmp_path: Path) -> None:
    shared, other = SparseLinear(20, 20, 0.1), SparseLinear(20, 20, 0.3)
    checkpoint.save_model(tmp_path / "x", Wrapper(nn.Sequential(shared, nn.ReLU(), shared)))
    assert set(contents(tmp_path / "x")[0]["sparse"]) == {"0.weight"}
    state = checkpoint.load_model(tmp_path / "x", nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)))
    assert torch.equal(state["0.weight"], shared.to_dense())
    assert state["2.weight"] is state["0.weight"]
    checkpoint.load_model(tmp_path / "x", Wrapper(nn.Sequential(other, nn.ReLU(), other)))
    assert torch.equal(other.to_dense(), shared.to_dense())


@pytest.mark.parametrize("layout", ["sparse", "hybrid"])
def test_a_converted_model_has_the_file_of_the_masked_one(tmp_path: Path, layout: Any) -> None:
    """Down to the seed, which drew the supports that the layers came with."""
    method = gossamer.methods.static(0.1)
    for kind in ("masked", layout):
        model = mlp(0)
        if kind != "masked":
            gossamer.convert(model, method, layout=layout, seed=4)
        checkpoint.save_model(tmp_path / kind, model, gossamer.sparsify(model, method, seed=4))
    assert (tmp_path / layout).read_bytes() == (tmp_path / "masked").read_bytes()
    assert {row["stored"] for row in checkpoint.describe(tmp_path / layout)["rows"]} == {"seed", "dense"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_values(tmp_path: Path, dtype: torch.dtype) -> None:
    model, fresh = SparseLinear(40, 30, 0.1, dtype=dtype), SparseLinear(40, 30, 0.2, dtype=dtype)
    checkpoint.save_model(tmp_path / "x", model)
    checkpoint.load_model(tmp_path / "x", fresh)
    assert torch.equal(fresh.to_dense(), model.to_dense())
    assert torch.equal(checkpoint.load_model(tmp_path / "x")["weight"], model.to_dense())


def test_no_dense_weight_is_made(tmp_path: Path) -> None:
    """A dense weight of 2^34 entries would take 64 GiB, its mask 16."""
    side = 1 << 17

    def made(seed: int) -> SparseLinear:
        index = torch.randint(0, side * side, (1000,), generator=torch.Generator().manual_seed(seed))
        return SparseLinear(side, side, bias=False, support=Support.from_index(index, (side, side)))

    model, fresh = made(0), made(1)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (model, fresh)]
    for each, optimizer in zip((model, fresh), optimizers, strict=True):
        each.values.grad = torch.randn_like(each.values)
        optimizer.step()
    checkpoint.save_model(tmp_path / "x", model)
    (row,) = checkpoint.describe(tmp_path / "x")["rows"]
    assert (row["stored"], row["bytes"]) == ("index64", 1000 * (4 + 8))
    checkpoint.load_model(tmp_path / "x", fresh)
    assert torch.equal(fresh.positions(), model.positions())
    assert torch.equal(fresh.values, model.values)
    checkpoint.save_training(tmp_path / "t", model=model, optimizers=optimizers[0])
    again = made(2)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    checkpoint.load_training(tmp_path / "t", model=again, optimizers=optimizer)
    assert torch.equal(again.positions(), model.positions())
    slots = [o.state[p]["momentum_buffer"] for o, p in ((optimizer, again.values), (optimizers[0], model.values))]
    assert torch.equal(*slots)


def test_a_layer_on_the_meta_device_has_no_values(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot save weight, a tensor on the meta device"):
        checkpoint.save_model(tmp_path / "x", SparseLinear(30, 20, 0.1, device="meta"))


@pytest.mark.parametrize("bad", [SparseLinear(30, 21, 0.1), SparseLinear(30, 20, 0.1, bias=False)])
def test_a_file_of_another_model_changes_nothing(tmp_path: Path, bad: SparseLinear) -> None:
    checkpoint.save_model(tmp_path / "x", SparseLinear(30, 20, 0.2))
    before = copy.deepcopy(bad.state_dict())
    with pytest.raises(CheckpointError, match="does not fit this SparseLinear: "):
        checkpoint.load_model(tmp_path / "x", bad)
    assert same(dict(before), dict(bad.state_dict()))


# -- training --------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
}


class Run:
    """Model, optimizer and, if there is a method, the sparsifier that rewires."""

    def __init__(self, model: nn.Module, optimizer: str, method: str | None = None) -> None:
        self.model, self.optimizer = model, OPTIMIZERS[optimizer](model.parameters())
        self.sparsifier = None
        if method:
            chosen = {
                "static": gossamer.methods.static,
                "set": lambda d: gossamer.methods.set_(d, every=2, allocation="uniform"),
                "rigl": lambda d: gossamer.methods.rigl(d, every=3),
                "dsr": lambda d: gossamer.methods.dsr(d, every=2, threshold=0.02, grace=3),
            }[method](0.1)
            self.sparsifier = gossamer.sparsify(self.model, chosen, self.optimizer, total_steps=20, seed=1)

    def steps(self, first: int, last: int) -> None:
        for t in range(first, last):
            generator = torch.Generator().manual_seed(t)
            x = torch.randn(16, *self.shape, generator=generator)
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, 16) if isinstance(self.model, Net) else (40,)

    @property
    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizers": self.optimizer, "sparsifier": self.sparsifier}

    def state(self) -> list[Any]:
        saved = self.sparsifier.state_dict() if self.sparsifier else None
        return copy.deepcopy([dict(self.model.state_dict()), self.optimizer.state_dict(), saved])


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return bool(a == b)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    whole, resumed = Run(Net(0, *DENSITIES), optimizer), Run(Net(1, 0.1, 0.3, 0.05), optimizer)
    resumed.steps(0, 2)  # slots of other lengths are there already
    whole.steps(0, 4)
    checkpoint.save_training(tmp_path / "x", **whole.parts)
    checkpoint.load_training(tmp_path / "x", **resumed.parts)
    assert identical(resumed.state(), whole.state())
    for run in (whole, resumed):
        run.steps(4, 8)
    assert identical(resumed.state(), whole.state())


def mlp(seed: int, density: float | None = None) -> nn.Module:
    torch.manual_seed(seed)
    if density is None:
        return nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30))
    return nn.Sequential(SparseLinear(40, 60, density), nn.ReLU(), SparseLinear(60, 30, density))


@pytest.mark.parametrize("method", ["static", "set", "rigl", "dsr"])
def test_rewiring_runs_resume_exactly(tmp_path: Path, method: str) -> None:
    def fresh(seed: int) -> Run:
        return Run(mlp(seed, 0.1), "adamw", method)

    whole, resumed = fresh(0), fresh(1)
    whole.steps(0, 7)
    resumed.steps(0, 3)
    checkpoint.save_training(tmp_path / "x", **whole.parts)
    checkpoint.load_training(tmp_path / "x", **resumed.parts)
    assert identical(resumed.state(), whole.state())
    for run in (whole, resumed):
        run.steps(7, 13)
    assert identical(resumed.state(), whole.state())
    checkpoint.save_model(tmp_path / "m", whole.model, whole.sparsifier)
    state = checkpoint.load_model(tmp_path / "m")
    assert all(torch.equal(state[f"{i}.weight"], whole.model[i].to_dense()) for i in (0, 2))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first", ["sparse", "masked"])
def test_a_run_can_change_between_masked_and_sparse(tmp_path: Path, optimizer: str, first: str) -> None:
    """The file holds the same weights, slots and supports; they go on alike to rounding."""
    sparse = Run(mlp(0, 0.1), optimizer, "set")
    given = {f"{i}.weight": sparse.model[i].support() for i in (0, 2)}
    plain = mlp(0)
    plain.load_state_dict(dense_state(sparse.model))
    chosen = gossamer.methods.set_(0.1, every=2, allocation="uniform")
    dense = Run(plain, optimizer)
    dense.sparsifier = gossamer.sparsify(plain, chosen, dense.optimizer, total_steps=20, seed=1)
    dense.sparsifier.load_state_dict(sparse.sparsifier.state_dict())
    plain.load_state_dict(dense_state(sparse.model))
    assert dict(dense.sparsifier.supports) == given
    writer, reader = (sparse, dense) if first == "sparse" else (dense, sparse)
    writer.steps(0, 5)
    reader.steps(0, 1)
    checkpoint.save_training(tmp_path / "x", **writer.parts)
    checkpoint.load_training(tmp_path / "x", **reader.parts)
    assert same(dense_state(sparse.model), dict(plain.state_dict()))
    assert dict(sparse.sparsifier.supports) == dict(dense.sparsifier.supports)
    for i in (0, 2):
        kept, slots = sparse.model[i].positions(), sparse.optimizer.state[sparse.model[i].values]
        for slot, value in dense.optimizer.state[plain[i].weight].items():
            mine = value.reshape(-1)[kept] if value.ndim else value
            assert torch.equal(slots[slot], mine), slot
    for run in (writer, reader):
        run.steps(5, 9)
    torch.testing.assert_close(dense_state(sparse.model), dict(plain.state_dict()), rtol=1e-4, atol=1e-6)


def test_slots_share_the_support_of_their_weight(tmp_path: Path) -> None:
    run = Run(mlp(0, 0.1), "adamw")
    run.steps(0, 1)
    checkpoint.save_training(tmp_path / "x", **run.parts)
    info, entries = contents(tmp_path / "x")
    assert set(info["supports"]) == {"model/0.weight", "model/2.weight"}
    assert info["sparse"]["optimizers/0/state/0/exp_avg"]["support"] == "model/0.weight"
    assert sum("::gaps" in name for name in entries) == 2


# -- what does not fit -----------------------------------------------------------------------------------------------


def damage(path: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    info, entries = contents(path)
    entries[name] = change(entries[name])
    save_file(entries, path, {"gossamer": json.dumps(info)})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model/0.weight::gaps", lambda t: t[:-1]),
        ("model/0.weight::gaps", lambda t: torch.cat([t, t[:1]])),
        ("model/0.weight::gaps", lambda t: t.new_full(t.shape, 254)),
        ("model/0.weight::gaps", lambda t: t.float()),
        ("model/0.weight::values", lambda t: t[1:]),
        ("optimizers/0/state/0/exp_avg::values", lambda t: t[:-3]),
    ],
)
def test_damage_is_found_before_anything_changes(tmp_path: Path, name: str, change: Any) -> None:
    run, other = Run(mlp(0, 0.1), "adamw"), Run(mlp(1, 0.05), "adamw")
    run.steps(0, 2)
    other.steps(0, 1)
    checkpoint.save_training(tmp_path / "x", **run.parts)
    damage(tmp_path / "x", name, change)
    before = other.state()
    with pytest.raises(CheckpointError, match="does not fit its"):
        checkpoint.load_training(tmp_path / "x", **other.parts)
    with pytest.raises(CheckpointError, match="does not fit its"):
        checkpoint.load_model(tmp_path / "x", other.model)
    assert identical(before, other.state())


def test_a_support_that_the_sparsifier_contradicts(tmp_path: Path) -> None:
    run, other = Run(mlp(0, 0.1), "sgd", "static"), Run(mlp(1, 0.1), "sgd", "static")
    checkpoint.save_training(tmp_path / "x", **run.parts)
    state = checkpoint.load(tmp_path / "x").state
    state["model"]["0.weight"][:] = 0.0
    masks = {"model/0.weight": state["model"]["0.weight"] != 0}
    checkpoint.save(tmp_path / "x", state, masks=masks, kind="training")
    before = other.state()
    with pytest.raises(CheckpointError, match=r"is damaged: 0\.weight has 0 values, its support 240"):
        checkpoint.load_training(tmp_path / "x", **other.parts)
    assert identical(before, other.state())


@pytest.mark.parametrize("kind", ["model", "training"])
def test_flipped_and_missing_bytes_leave_a_valid_model(tmp_path: Path, kind: str) -> None:
    rng, path, run, target = random.Random(3), tmp_path / "x", Run(mlp(0, 0.1), "adamw"), Run(mlp(1, 0.05), "adamw")
    run.steps(0, 1)
    if kind == "model":
        checkpoint.save_model(path, run.model)
    else:
        checkpoint.save_training(path, **run.parts)
    data, refused = path.read_bytes(), 0
    for case in range(120):
        changed = bytearray(data)
        changed[rng.randrange(len(data) if case % 2 else 8 + struct.unpack("<Q", data[:8])[0])] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.randrange(len(data))] if case % 10 == 0 else changed)
        before = target.state()
        try:
            if kind == "model":
                checkpoint.load_model(path, target.model)
            else:
                checkpoint.load_training(path, **target.parts)
        except CheckpointError:
            refused += 1
            assert identical(before, target.state())
        target.model(torch.zeros(1, 40))  # looks through every index
    assert refused > 40
