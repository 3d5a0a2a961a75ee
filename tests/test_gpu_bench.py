"""The GPU benchmarks without a GPU: the dry run takes every path once, and without it they say what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gossamer import _bench_gpu, cli

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.slow
def test_a_dry_run_checks_everything_and_reports_no_figure(tmp_path: Path) -> None:
    file, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    command = [sys.executable, str(SCRIPT), "--dry", "--json", str(file), "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(file.read_text())
    assert told["dry"]
    assert {each["outcome"] for each in told["checks"]} == {"right"}
    assert {row["target"] for row in told["rows"]} == {"ceilings", *(f"G{number}" for number in range(1, 19))}
    assert all(row["reached"] is None for row in told["rows"]), [row for row in told["rows"] if row["reached"]]
    assert not page.exists()


@without_gpu
def test_without_a_gpu_the_page_says_so() -> None:
    told = (ROOT / "docs" / "results" / "gpu.md").read_text()
    assert "Not yet run on hardware" in told
    assert "python benchmarks/gpu/run.py" in told


def test_every_side_of_the_bench_computes() -> None:
    for rows, columns in ((8, 12), (6, 10)):
        sides = _bench_gpu.sides(rows, columns, 5, 0.5, 1, torch.device("cpu"))
        assert set(sides) == {"dense bf16", "masked"} | ({"2:4 masked"} if rows == 8 else set())
        for run in sides.values():
            y, dx, dw = run(0)  # type: ignore[misc]
            assert (y.shape, dx.shape, dw.shape) == ((5, rows), (5, columns), (rows, columns))


def test_the_bench_prints_every_side() -> None:
    row = {"density": 0.5, "milliseconds": {"dense bf16": 1.0, "masked": 2.0}}
    layer = {"layer": "8x8", "batch": 4, "densities": [row]}
    told = {"gpu": "one", "torch": "2", "triton": True, "statistic": "median", "layers": [layer]}
    assert _bench_gpu.lines(told)[-1] == "density 0.5: dense bf16 1.000 (1.00x dense), masked 2.000 (0.50x dense)"


@without_gpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "8x8"], "torch sees no CUDA device here"),
        (["--layer", "conv:8x8x3x3@8"], "measures linear layers"),
        (["--layer", "8x8", "--hybrid"], "--threads and --hybrid are for the CPU"),
    ],
)
def test_what_the_bench_cannot_measure(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["bench", "--device", "cuda", *arguments])
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())


def test_devices_are_cpu_and_cuda() -> None:
    done = CliRunner().invoke(cli.app, ["bench", "--device", "tpu", "--layer", "8x8"])
    assert done.exit_code == 1
    assert "tpu" in done.stderr
