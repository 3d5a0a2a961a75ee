"""Small tensors: one thread is faster than two, and rounding does not depend on the machine."""

from __future__ import annotations

import gc
import os
import sys
import tempfile

import pytest
import torch

torch.set_num_threads(1)
_modules = 0  # that were loaded when modules were last set aside
_CACHE = tempfile.TemporaryDirectory(prefix="gossamer-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # what is measured while tests run is of no use to anybody


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process is left with one of them when the others have nothing to do any more."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    _set_modules_aside()


def pytest_runtest_logfinish() -> None:
    if len(sys.modules) > _modules + 50:  # a test has loaded a compiler, or a library like transformers
        _set_modules_aside()


def _set_modules_aside() -> None:
    """Thousands of tests and modules never die: every run collects garbage, half a second if it looks at them too."""
    global _modules
    _modules = len(sys.modules)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's pictures take longer to draw than all else of a tiny run: only tests marked `curves` draw them."""
    if request.node.get_closest_marker("curves") is None:
        for name in ("curves", "topology_curves"):
            monkeypatch.setattr(f"gossamer.experiments.report.{name}", lambda *_: b"a picture")
