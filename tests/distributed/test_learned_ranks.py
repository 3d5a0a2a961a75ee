"""Law 6 for learned methods, on two gloo processes: DDP equals one process on the joined batch; FSDP2 is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .learned_worker import recipes

WORKER = Path(__file__).with_name("learned_worker.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("learned") / "found.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(WORKER), str(out)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", recipes())
def test_two_ranks_equal_one_before_and_after_the_cut(found: dict[str, Any], name: str) -> None:
    for rank in found[name]:
        assert "error" not in rank, rank["error"]
        assert rank["supports_equal"]
        assert rank["difference"] < 1e-10


def test_sharded_and_wrapped_weights_are_refused(found: dict[str, Any]) -> None:
    assert all("call sparsify() with a learned method first" in rank["message"] for rank in found["wrapped"])
    assert all("is sharded (FSDP2)" in rank["message"] for rank in found["sharded"])
