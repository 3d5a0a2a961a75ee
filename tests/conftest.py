"""Small tensors: one thread is faster than two, and rounding does not depend on the machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
