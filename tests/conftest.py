"""Small tensors: one thread is faster than two, and rounding does not depend on the machine."""

from __future__ import annotations

import os
import tempfile

import torch

torch.set_num_threads(1)
_CACHE = tempfile.TemporaryDirectory(prefix="gossamer-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # what is measured while tests run is of no use to anybody
