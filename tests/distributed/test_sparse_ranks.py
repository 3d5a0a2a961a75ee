"""Law 6 for sparse layers, on two gloo processes: DDP equals one process, with the same supports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .sparse_worker import recipes

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sparse") / "found.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "--module", "tests.distributed.sparse_worker", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT, check=False)
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text())


def ranks(found: dict[str, Any], check: str) -> list[dict[str, Any]]:
    for rank in found[check]["ranks"]:
        assert "error" not in rank, rank["error"]
    return found[check]["ranks"]


@pytest.mark.parametrize("wrapped", ["ddp", "before"])
@pytest.mark.parametrize("method", recipes())
def test_two_ranks_equal_one_on_the_joined_batch(found: dict[str, Any], wrapped: str, method: str) -> None:
    for rank in ranks(found, f"{wrapped}:{method}"):
        assert rank["supports_equal"]
        assert rank["difference"] < 1e-10
        assert rank["rewirings"] >= 4 or method == "static"


def test_counts_that_change_are_refused(found: dict[str, Any]) -> None:
    for rank in ranks(found, "refused"):
        assert "which DistributedDataParallel does not allow" in rank["message"]


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp2"])
def test_semi_structured_layers_equal_masked_ones(found: dict[str, Any], wrapped: str) -> None:
    for rank in ranks(found, f"semi:{wrapped}"):
        assert rank["supports_equal"]
        assert rank["difference"] < 1e-10
        assert rank["rewirings"] >= 4
        assert rank["packs"] == 3 * 24, (
            "each step anew, though FSDP2 gathers the weights at the same address and version"
        )
