"""Law 6 for sparse layers, on two gloo processes: DDP equals one process, with the same supports."""

from __future__ import annotations

from typing import Any

import pytest

from .ranks import Ranks, answers
from .sparse_checks import recipes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(ranks: Ranks) -> dict[str, Any]:
    return ranks.found("sparse_checks")


@pytest.mark.parametrize("wrapped", ["ddp", "before"])
@pytest.mark.parametrize("method", recipes())
def test_two_ranks_equal_one_on_the_joined_batch(found: dict[str, Any], wrapped: str, method: str) -> None:
    for rank in answers(found, f"{wrapped}:{method}"):
        assert rank["supports_equal"]
        assert rank["difference"] < 1e-10
        assert rank["rewirings"] >= 4 or method == "static"


@pytest.mark.parametrize("check", ["refused", "refused:blocks"])
def test_counts_that_change_are_refused(found: dict[str, Any], check: str) -> None:
    for rank in answers(found, check):
        assert "which DistributedDataParallel does not allow" in rank["message"]


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp2"])
def test_semi_structured_layers_equal_masked_ones(found: dict[str, Any], wrapped: str) -> None:
    for rank in answers(found, f"semi:{wrapped}"):
        assert rank["supports_equal"]
        assert rank["difference"] < 1e-10
        assert rank["rewirings"] >= 4
        assert rank["packs"] == 3 * 24, (
            "each step anew, though FSDP2 gathers the weights at the same address and version"
        )
