"""Law 6 for learned methods, on two gloo processes: DDP equals one process on the joined batch; FSDP2 is refused."""

from __future__ import annotations

from typing import Any

import pytest

from .learned_checks import recipes
from .ranks import Ranks, answers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(ranks: Ranks) -> dict[str, Any]:
    return ranks.found("learned_checks")


@pytest.mark.parametrize("name", recipes())
def test_two_ranks_equal_one_before_and_after_the_cut(found: dict[str, Any], name: str) -> None:
    for rank in answers(found, name):
        assert rank["supports_equal"]
        assert rank["difference"] < 1e-10


def test_sharded_and_wrapped_weights_are_refused(found: dict[str, Any]) -> None:
    assert all("call sparsify() with a learned method first" in rank["message"] for rank in found["wrapped"])
    assert all("is sharded (FSDP2)" in rank["message"] for rank in found["sharded"])
