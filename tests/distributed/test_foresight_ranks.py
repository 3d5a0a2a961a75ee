"""On two gloo processes: scores are those of one process on the joined batch, of rank 0's model."""

from __future__ import annotations

from typing import Any

import pytest

from .foresight_checks import SALIENCIES
from .ranks import Ranks, answers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(ranks: Ranks) -> dict[str, Any]:
    return ranks.found("foresight_checks")


@pytest.mark.parametrize("name", [*SALIENCIES, "gradient"])
def test_two_ranks_find_what_one_finds_on_the_joined_batch(found: dict[str, Any], name: str) -> None:
    for rank in answers(found, name):
        assert all(rank.values()), rank


def test_one_rank_may_count_alone(found: dict[str, Any]) -> None:
    assert found["alone"] == [{"counts": {"5.weight": 128}}, {"counts": None}]


def test_sharded_weights_are_refused(found: dict[str, Any]) -> None:
    for rank in found["sharded"]:
        assert rank["message"].startswith(
            "0.weight is sharded (FSDP2), and scores need whole weights: find the supports"
        )
