from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two processes for the checks of this folder."""
    started = Ranks(tmp_path_factory.mktemp("ranks"))
    yield started
    started.stop()
