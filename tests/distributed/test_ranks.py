"""Law 6 on two gloo processes: DDP and FSDP2 equal one process on the joined batch, with the same supports."""

from __future__ import annotations

from typing import Any

import pytest

from .checks import recipes
from .ranks import Ranks, answers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(ranks: Ranks) -> dict[str, Any]:
    return ranks.found("checks")


@pytest.mark.parametrize("wrapped", ["ddp", "before-ddp", "fsdp2"])
@pytest.mark.parametrize("method", recipes())
def test_two_ranks_equal_one_on_the_joined_batch(found: dict[str, Any], wrapped: str, method: str) -> None:
    for rank in answers(found, f"{wrapped}:{method}"):
        assert rank["supports_equal"]
        assert rank["difference"] < 1e-10
        assert rank["rewirings"] >= 4 or method == "static"


@pytest.mark.parametrize("method", recipes())
def test_state_of_a_sharded_run_fits_an_unsharded_model(found: dict[str, Any], method: str) -> None:
    assert all(rank["state_portable"] for rank in answers(found, f"fsdp2:{method}"))


def test_a_tampered_support_is_detected_and_named(found: dict[str, Any]) -> None:
    for rank in answers(found, "tampered"):
        assert rank["message"].startswith("SyncError: supports differ between ranks at step 4: 3.weight on ranks [1]")


def test_a_scale_that_sharded_gradients_cannot_carry_is_refused(found: dict[str, Any]) -> None:
    for rank in answers(found, "sharded-scale"):
        assert 'use scale_on="update"' in rank["message"]


def test_what_a_rewiring_asks_of_the_network(found: dict[str, Any]) -> None:
    """Replicas choose for themselves and compare hashes now and then; of shards each weight is gathered and cut."""
    gathered, cut, compared = "c10d_functional.all_gather_into_tensor", "c10d.scatter_", "c10d.allgather_"
    wanted = {
        "rewire:False": {},
        "rigl:False": {compared: 1},
        "rewire:True": {gathered: 2 * 3, cut: 3},  # magnitudes and support of three weights
        "rigl:True": {gathered: 6 * 3, cut: 3, compared: 1},
    }
    for name, counts in wanted.items():
        assert [rank["counts"] for rank in answers(found, f"collectives:{name}")] == [counts] * 2
