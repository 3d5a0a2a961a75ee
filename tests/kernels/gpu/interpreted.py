"""Triton's interpreter: the kernels run on CPU tensors, one program after the other, in numpy.

It rounds float32 to bfloat16 towards zero, so what is compared there is float32, or can be held by bfloat16.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

_WHY = None
if torch.cuda.is_available():
    _WHY = "there is a GPU: benchmarks/gpu/run.py checks the kernels on it"
elif importlib.util.find_spec("triton") is None:
    _WHY = "triton is not installed, so its interpreter cannot run the kernels"
elif "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    _WHY = "triton was loaded without its interpreter; set TRITON_INTERPRET=1"
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined, which is after this

interpreted = pytest.mark.skipif(_WHY is not None, reason=str(_WHY))
