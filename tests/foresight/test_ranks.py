"""On two gloo processes: scores are those of one process on the joined batch, of rank 0's model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .ranks_worker import SALIENCIES

WORKER = Path(__file__).with_name("ranks_worker.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ranks") / "found.json"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(WORKER),
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", [*SALIENCIES, "gradient"])
def test_two_ranks_find_what_one_finds_on_the_joined_batch(found: dict[str, Any], name: str) -> None:
    for rank in found[name]:
        assert "error" not in rank, rank["error"]
        assert all(rank.values()), rank


def test_one_rank_may_count_alone(found: dict[str, Any]) -> None:
    assert found["alone"] == [{"counts": {"5.weight": 128}}, {"counts": None}]


def test_sharded_weights_are_refused(found: dict[str, Any]) -> None:
    for rank in found["sharded"]:
        assert rank["message"].startswith(
            "0.weight is sharded (FSDP2), and scores need whole weights: find the supports"
        )
