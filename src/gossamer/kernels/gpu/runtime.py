"""Whether Triton kernels can run on given tensors."""

from __future__ import annotations

import contextlib
import functools
import importlib.util

from torch import Tensor

LEAST = (8, 0)  # compute capability: bfloat16 in tensor cores


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; nothing is imported."""
    return importlib.util.find_spec("triton") is not None


def on_gpu(*tensors: Tensor | None) -> bool:
    """Whether Triton kernels are what computes with these tensors: all on a CUDA device that they run on."""
    given = [tensor for tensor in tensors if tensor is not None]
    return has_triton() and all(tensor.is_cuda and _capable(tensor.get_device()) for tensor in given)


@functools.cache
def _capable(device: int) -> bool:
    import torch

    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= LEAST


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which to launch: Triton takes the current device, whichever the tensors are on."""
    import torch

    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
