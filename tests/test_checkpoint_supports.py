"""How a checkpoint holds supports: every form gives the positions back, the smallest is chosen, damage is found."""

from __future__ import annotations

import json
import re
import struct
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer
from gossamer import _sparse_values, checkpoint
from gossamer._sparse_values import Stored, cheapest, drawn, read_positions
from gossamer.errors import CheckpointError
from gossamer.topology import Unstructured

PAGE = Path(__file__).parents[1] / "docs" / "checkpoint-format.md"
FORMS = ("bits", "gaps8", "gaps16", "index32", "seed")


def ways(index: list[int], numel: int) -> dict[str, Stored]:
    made = list(_sparse_values._ways(np.array(index, np.int64), numel, None))
    return {f"{way.kind}{8 * way.make().itemsize}": way for way in made}


def read(way: Stored, numel: int, change: Callable[[Tensor], Tensor] = lambda entry: entry) -> list[int] | None:
    found = read_positions({"stored": way.kind, **way.about}, change(torch.from_numpy(way.make())), numel)
    return None if found is None else found.tolist()


# -- laws --


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 254, 255, 256, 257, 510, 511, 65535, 65536, 65537, 131071]), max_size=8), st.data()
)
@example([], None)
@example([1] * 8, None)
def test_every_form_gives_back_the_positions_in_the_bytes_it_says(steps: list[int], data: Any) -> None:
    index = (np.cumsum(np.array(steps, np.int64)) - 1).tolist()
    numel = (index[-1] + 1 if index else 1) + (data.draw(st.sampled_from([0, 1, 7, 300])) if data else 0)
    forms = ways(index, numel)
    assert list(forms) == ["bits8", "gaps8", "gaps16", "index32"]
    for way in forms.values():
        assert way.make().nbytes == way.bytes
        assert read(way, numel) == index
    assert cheapest(np.array(index, np.int64), numel, None).bytes == min(way.bytes for way in forms.values())


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits and drawing go through long weights tile by tile."""
    generator = torch.Generator().manual_seed(1)
    index = (torch.rand(5000, generator=generator) < 0.1).nonzero().view(-1).numpy()
    bits, many = _sparse_values.bits_of(index, 5000), drawn(7, 5000, 600).tolist()
    monkeypatch.setattr(_sparse_values, "_TILE", 64)
    assert np.array_equal(_sparse_values.bits_of(index, 5000), bits)
    assert np.array_equal(np.packbits(np.isin(np.arange(5000), index)), bits)
    assert read(ways(index.tolist(), 5000)["bits8"], 5000) == index.tolist()
    assert drawn(7, 5000, 600).tolist() == many
    assert drawn(7, 5000, 5).tolist() == np.sort(np.argsort(-torch_draw(7, 5000), kind="stable")[:5]).tolist()


def torch_draw(seed: int, numel: int) -> Any:
    return torch.rand(numel, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize(("seed", "numel", "count"), [(0, 1, 1), (3, 40, 0), (5, 40, 40), (2**62 + 9, 200_000, 7001)])
def test_drawing_again_is_what_torch_drew(seed: int, numel: int, count: int) -> None:
    """200000 numbers of 24 bits hold some thousand ties."""
    (mask,) = Unstructured().select([torch.from_numpy(torch_draw(seed, numel))], count, [torch.zeros(numel) > 0])
    assert drawn(seed, numel, count).tolist() == mask.nonzero().view(-1).tolist()


def test_gaps_by_hand() -> None:
    codes = ways([0, 1, 255, 510, 1275], 1276)["gaps8"].make().tolist()
    assert codes == [0, 0, 253, 254, 255, 255, 254]
    assert ways([65534, 65535 + 65535], 200_000)["gaps16"].make().tolist() == [65534, 65535, 0]


# -- seeds --


def static(allocation: str = "erk", seed: int = 3) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 40), nn.Linear(40, 10))
    return model, gossamer.sparsify(model, gossamer.methods.static(0.1, allocation), seed=seed)


def stored(path: Path) -> dict[str, str]:
    return {row["name"]: row["stored"] for row in checkpoint.describe(path)["rows"]}


def test_a_support_that_its_seed_gives_is_stored_as_the_seed(tmp_path: Path) -> None:
    model, sparsifier = static()
    checkpoint.save_model(tmp_path / "x", model, sparsifier)
    rows = {row["name"]: row for row in checkpoint.describe(tmp_path / "x")["rows"]}
    for name, support in sparsifier.supports.items():
        assert (rows[name]["stored"], rows[name]["bytes"]) == ("seed", 4 * support.count)
    state = checkpoint.load_model(tmp_path / "x")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_other_supports_are_not(tmp_path: Path) -> None:
    for case, (model, sparsifier) in enumerate([static("equal_per_filter"), static()]):
        if case == 1:
            sparsifier.seed = 4  # not the one that drew
        checkpoint.save_model(tmp_path / "x", model, sparsifier)
        assert "seed" not in stored(tmp_path / "x").values()
    model, _ = static()
    checkpoint.save_model(tmp_path / "x", model)
    assert "seed" not in stored(tmp_path / "x").values()
    dynamic = gossamer.sparsify(nn.Linear(50, 50), gossamer.methods.set_(0.1), total_steps=10)
    assert checkpoint._seeds(dynamic) == {}


# -- size and reader --


@pytest.mark.parametrize("density", [0.5, 0.25, 0.125, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001, 1e-4, 1e-5])
def test_size_is_that_of_the_formula_to_3_percent(tmp_path: Path, density: float) -> None:
    numel = 1 << 22 if density > 1e-3 else 1 << 24
    weight = torch.zeros(numel)
    generator = torch.Generator().manual_seed(2)
    active = torch.randint(0, numel, (round(density * numel),), generator=generator)
    weight[active] = 1.5
    n = int(weight.count_nonzero())
    d, bias = n / numel, torch.zeros(0 if n > 10_000 else 20_000)  # the header is not what is measured here
    checkpoint.save(tmp_path / "x", {"w": weight, "b": bias}, masks={"w": weight != 0})
    formula = n * (4 + min(1 / (8 * d), 1 / (1 - (1 - d) ** 255), 2 / (1 - (1 - d) ** 65535), 4)) + bias.nbytes
    assert (tmp_path / "x").stat().st_size == pytest.approx(formula, rel=0.03)


def examples(folder: Path) -> dict[str, Tensor]:
    """A file with every form; returns what it holds."""
    model, sparsifier = static()
    checkpoint.save_model(folder / "seed", model, sparsifier)
    state: dict[str, Tensor] = {"dense": torch.arange(4.0), "scalar": torch.tensor(3)}
    for name, size, every in (("bits", 99, 3), ("gaps8", 999, 300), ("gaps16", 99_999, 2500)):
        state[name] = torch.zeros(3, size // 3, dtype=torch.bfloat16 if name == "bits" else torch.float32)
        state[name].view(-1)[::every] = torch.randn(len(range(0, size, every))).to(state[name].dtype)
    state["index32"] = torch.zeros(2_000_000)
    state["index32"][1_999_999] = 5.0
    masks = {name: value != 0 for name, value in state.items() if name in FORMS}
    checkpoint.save(folder / "others", state, masks=masks, kind="model")
    return dict(model.state_dict()) | state


def test_the_numpy_reader_of_the_docs_reads_every_form(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[-1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    reader = types.ModuleType("reader")
    exec(compile(code, "checkpoint-format.md", "exec"), reader.__dict__)
    assert not any(isinstance(v, types.ModuleType) and v.__name__ == "torch" for v in vars(reader).values())
    expected = examples(tmp_path)
    assert set((stored(tmp_path / "seed") | stored(tmp_path / "others")).values()) == {*FORMS, "dense"}
    seen = reader.read_model(tmp_path / "seed") | reader.read_model(tmp_path / "others")
    assert set(seen) == set(expected)
    for name, value in expected.items():
        plain = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
        assert (seen[name].shape, seen[name].dtype) == (plain.shape, plain.dtype)
        assert seen[name].tobytes() == plain.tobytes()


def test_the_table_of_the_docs() -> None:
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in PAGE.read_text().splitlines() if "|" in line}
    densities = [float(cell) for cell in rows["density"]]
    for density, form, cost in zip(densities, rows["form"], rows["bytes per value of the support"], strict=True):
        d, skip8, skip16 = density, 1 - (1 - density) ** 255, 1 - (1 - density) ** 65535
        costs = {"bits": 1 / (8 * d), "gaps8": 1 / skip8, "gaps16": 2 / skip16, "index32": 4.0}
        assert costs[form.strip()] == min(costs.values())
        assert costs[form.strip()] == pytest.approx(float(cost), rel=0.01)


# -- older and damaged files --


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    """As the first release wrote it."""
    info = {
        "version": 1,
        "kind": "model",
        "metadata": {"model": "Linear"},
        "sparse": {
            "a": {"shape": [2, 5], "values": "a::values", "support": "a"},
            "b": {"shape": [8], "values": "b::values", "support": "b"},
        },
        "supports": {
            "a": {"stored": "index", "tensor": "a::index", "count": 2},
            "b": {"stored": "bits", "tensor": "b::bits", "count": 3},
        },
        "tree": {"a": {"$tensor": "a"}, "b": {"$tensor": "b"}},
    }
    entries = {"a::values": torch.tensor([1.0, 2.0]), "a::index": torch.tensor([3, 9], dtype=torch.int32)}
    entries |= {"b::values": torch.tensor([4.0, 5.0, 6.0]), "b::bits": torch.tensor([0b01010001], dtype=torch.uint8)}
    save_file(entries, tmp_path / "x", {"gossamer": json.dumps(info)})
    state = checkpoint.load_model(tmp_path / "x")
    assert state["a"].tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 2]]
    assert state["b"].tolist() == [0, 4, 0, 5, 0, 0, 0, 6]
    assert stored(tmp_path / "x") == {"a": "index32", "b": "bits"}


def edited(path: Path, change: Callable[[dict[str, Any]], Any], tensors: dict[str, Tensor] | None = None) -> None:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    info = json.loads(header["__metadata__"]["gossamer"])
    change(info["supports"]["w"])
    save_file(load_file(path) | (tensors or {}), path, {"gossamer": json.dumps(info)})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Positions 3 and 5 of 100, in gaps."""
    w = torch.zeros(100)
    w[[3, 5]] = 1.0
    checkpoint.save(tmp_path / "x", {"w": w}, masks={"w": w != 0})
    assert load_file(tmp_path / "x")["w::gaps"].tolist() == [3, 1]
    return tmp_path / "x"


DAMAGED = {
    "bits": [torch.tensor([20, *[0] * 11]), torch.tensor([20, *[0] * 13]), torch.tensor([20, *[0] * 11, 1])],
    "gaps": [torch.tensor([3]), torch.tensor([3, 96]), torch.tensor([255, 3, 1]), torch.tensor([3, 1, 0])],
    "index": [torch.tensor(bad) for bad in ([-1, 5], [5, 5], [5, 100], [6, 5], [5])],
}


@pytest.mark.parametrize(("kind", "entry"), [(kind, entry) for kind, bad in DAMAGED.items() for entry in bad])
def test_positions_that_do_not_fit(good: Path, kind: str, entry: Tensor) -> None:
    typed = entry.to(torch.int32 if kind == "index" else torch.uint8)
    edited(good, lambda support: support.update(stored=kind), {"w::gaps": typed})
    with pytest.raises(CheckpointError, match="the stored mask of w does not fit its 2 values"):
        checkpoint.load(good)


@pytest.mark.parametrize("kind", ["bits", "gaps", "index"])
def test_entries_of_another_type_or_shape(good: Path, kind: str) -> None:
    for entry in (torch.tensor([3.0, 5.0]), torch.tensor([[3, 1]], dtype=torch.uint8), torch.tensor([True, True])):
        edited(good, lambda support: support.update(stored=kind), {"w::gaps": entry})
        with pytest.raises(CheckpointError, match=r"the stored mask of w does not fit its 2 values|is damaged"):
            checkpoint.load(good)


def test_a_support_in_a_form_of_the_future(good: Path) -> None:
    edited(good, lambda support: support.update(stored="runs"))
    with pytest.raises(CheckpointError, match="a support stored as 'runs': a newer gossamer wrote it"):
        checkpoint.load(good)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"seed": None},
        {"seed": True},
        {"count": 3},
        {"count": 10**18},
        {"count": -1},
        {"digest": "0" * 16},
        {"digest": None},
    ],
)
def test_a_seed_that_does_not_give_the_support(good: Path, change: dict[str, Any]) -> None:
    true = {"stored": "seed", "seed": 9, "count": 2, "digest": _sparse_values.digest(drawn(9, 100, 2))}
    edited(good, lambda support: (support.clear(), support.update(true)))
    assert torch.equal(checkpoint.load(good).state["w"].nonzero().view(-1), torch.from_numpy(drawn(9, 100, 2)))
    edited(good, lambda support: support.update(change))
    with pytest.raises(CheckpointError, match="the stored mask of w does not fit its 2 values"):
        checkpoint.load(good)
