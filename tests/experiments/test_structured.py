"""Runs with a structure: it is told and looked at in the end; layers of blocks and 2:4 layers train as masks do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gossamer import cli, methods
from gossamer.checkpoint import describe, load_model, save_model
from gossamer.errors import ConfigError
from gossamer.experiments.runs import RunFolder
from gossamer.experiments.structured import described, of_run, packed_bytes, pattern_of, patterns_in
from gossamer.experiments.train import train
from gossamer.experiments.values import parse, spellings
from gossamer.topology import NM, Block, Channels, Structure, Support, Unstructured

from .tiny import Make, rows_of

BLOCKS: dict[str, Any] = {"method": "rigl", "density": 0.25, "args": {"every": 5, "structure": "block:4"}}
TWO_FOUR: dict[str, Any] = {
    "method": "rewire",
    "density": 0.5,
    "args": {"structure": "nm:2,4,true", "allocation": "uniform"},
    "targets": "!head*",
}


# -- execution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "execution"), [(BLOCKS, "block"), (TWO_FOUR, "semi_structured")])
def test_structured_layers_train_as_masked_ones(make: Make, values: dict[str, Any], execution: str) -> None:
    masked, executed = make("masked", **values), make("executed", **values, execution=execution)
    expected, result = train(masked), train(executed)
    assert {choice["layout"] for choice in result.execution} == {execution}
    assert result.structure == expected.structure
    for row, other in zip(rows_of(executed), rows_of(masked), strict=True):
        assert (row["counts"], row["flips"]) == (other["counts"], other["flips"])
        assert math.isclose(row["loss"], other["loss"], rel_tol=1e-4)


@pytest.mark.parametrize(
    ("execution", "values", "why"),
    [
        ("block", {"method": "static"}, "structure unstructured, not square blocks; use --set structure=block:16"),
        ("block", {"method": "static", "args": {"structure": "block:4,2"}}, "structure block 4x2, not square blocks"),
        ("block", {"method": "rewire", "args": {"structure": "block:4"}}, "its inactive weights keep a value"),
        ("block", {**BLOCKS, "optimizer": "muon"}, "muon orthogonalises whole matrices"),
        ("semi_structured", BLOCKS, "structure block 4, not 2:4 along inputs; use --set structure=nm:2,4"),
    ],
)
def test_execution_that_does_not_fit_is_refused(make: Make, execution: str, values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train(make(**values, execution=execution))
    assert why in str(caught.value)
    assert "--execution" in str(caught.value)


# -- what is told --------------------------------------------------------------------------------------------------


def test_a_run_tells_its_structure(make: Make) -> None:
    config = make(**TWO_FOUR)
    result = train(config)
    file = RunFolder(Path(str(config.out))).model_file
    entries = 16 * 64
    assert result.title == "rewire (2:4 transposable)"
    assert result.structure == {
        "name": "2:4 transposable",
        "holds": True,
        "broken": [],
        "packed_bytes": entries * 9 // 8,  # 1.125 bytes per entry
        "dense_bytes": entries * 2,
    }
    assert patterns_in(file)["linear1.weight"] == "2:4 transposable"
    assert describe(file)["metadata"]["structure"] == "2:4 transposable"
    assert "2:4 transposable" in (Path(str(config.out)) / "report.html").read_text()
    shown = CliRunner().invoke(cli.app, ["inspect", str(file), "--patterns", "--json"])
    rows = {row["name"]: row["pattern"] for row in json.loads(shown.output)["rows"]}
    assert (rows["linear1.weight"], rows["head.weight"]) == ("2:4 transposable", "")
    assert json.loads((Path(str(config.out)) / "result.json").read_text())["structure"] == result.structure


@pytest.mark.parametrize("method", ["set", "dense", "cs", "srigl"])
def test_runs_without_a_structure_of_supports_tell_none(make: Make, method: str) -> None:
    result = train(make(method=method, steps=8, **({} if method == "set" else {"args": {}})))
    assert result.structure is None
    assert result.title == method


def test_a_structure_that_does_not_hold_is_told(tmp_path: Path) -> None:
    layer = torch.nn.Linear(8, 4)
    method = methods.static(0.5, allocation="uniform", structure=NM(2, 4))
    kept = Support.from_mask(torch.tensor([[True, True, False, False] * 2] * 4))
    odd = Support.from_mask(torch.tensor([[True, True, True, False, True, False, False, False]] * 4))
    with torch.no_grad():
        layer.weight.mul_(kept.mask)
    save_model(tmp_path / "model.safetensors", layer)
    for support, holds in ((kept, True), (odd, False), (Support.from_mask(~kept.mask), False)):
        checked = of_run(method, {"weight": support}, tmp_path / "model.safetensors")
        assert [weight.holds for weight in checked] == [holds]
        about = described(checked)
        assert about is not None
        assert (about["holds"], about["broken"]) == (holds, [] if holds else ["weight"])
        assert (about["packed_bytes"] is None) == (not holds)
    assert torch.equal(load_model(tmp_path / "model.safetensors")["weight"], layer.weight)


def test_bytes_of_packed_forms_by_hand() -> None:
    half = torch.tensor([[True, True, False, False] * 4] * 8)
    assert packed_bytes(NM(2, 4), half, 2) == 64 * 2 + 16
    assert packed_bytes(NM(1, 4), half, 4) == 64 * 4 + 16
    corner = torch.zeros(6, 10, dtype=torch.bool)
    corner[4:, 8:] = True  # one block, which its edge cuts
    assert packed_bytes(Block(4), corner, 2) == 16 * 2 + 4
    for structure in (NM(2, 4, axis="outputs"), NM(4, 8), Block(4, 2), Channels()):
        assert packed_bytes(structure, half, 2) is None
    assert packed_bytes(Block(4), half.view(8, 4, 2, 2), 2) is None


@pytest.mark.parametrize(
    ("structure", "shape", "expected"),
    [
        (NM(2, 4), (8, 16), "2:4"),
        (NM(1, 4, axis="outputs"), (8, 16, 3, 3), "2:4 along outputs"),
        (NM(2, 4, transposable=True), (16, 8, 3, 3), "2:4 transposable"),
        (Block(16), (64, 48), "block 16"),
        (Block(8), (20, 12), "block 8"),
        (Unstructured(), (20, 12), ""),
    ],
)
def test_patterns_are_found_again(structure: Structure, shape: tuple[int, ...], expected: str) -> None:
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    count = structure.round(scores.numel() // (4 if expected.endswith("outputs") else 2), shape)
    (mask,) = structure.select([scores], count)
    assert pattern_of(scores * mask) == expected
    assert pattern_of(scores) == pattern_of(scores[0].flatten()) == pattern_of(torch.zeros(shape)) == ""


def test_spellings_are_what_is_parsed() -> None:
    for spelling in spellings(Structure | None):
        parse(spelling.replace(":n,m", ":2,4").replace(":rows", ":2"), Structure, "structure")
