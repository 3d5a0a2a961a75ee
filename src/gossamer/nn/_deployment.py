"""Trained 2:4 weights as tensors that torch itself multiplies on sparse tensor cores."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import ConfigError
from ..kernels import semi_structured
from ._forms import same_as
from .convert import put
from .semi_structured import SemiStructuredLinear

_DTYPES = (torch.float16, torch.bfloat16)


def to_torch_semi_structured(model: nn.Module) -> nn.Module:
    """Put `torch.sparse.to_sparse_semi_structured` weights into the linear layers whose weights are 2:4; for inference.

    The model runs without gossamer then, and cannot be trained or saved by ``state_dict`` for other machines. torch
    does not look whether a weight is 2:4 and drops what is not; here such layers, and those whose sizes are no
    multiples of 16, stay as they are. The model is changed in place.

    Returns:
        The model, or the new layer if the model is a single one.

    Raises:
        ConfigError: no weight can be converted; says why the first three cannot.
    """
    layers = {name: m for name, m in model.named_modules() if type(m) in (nn.Linear, SemiStructuredLinear)}
    why = {name: _unfit(module) for name, module in layers.items()}
    chosen = [module for name, module in layers.items() if not why[name]]
    if not chosen:
        told = "; ".join(f"{name or 'the layer'}: {reason}" for name, reason in list(why.items())[:3])
        raise ConfigError(f"no weight can become a semi-structured tensor of torch: {told or 'no linear layers'}")
    made: dict[nn.Module, nn.Module] = {}
    for module in chosen:
        made[module] = module.dense_module() if isinstance(module, SemiStructuredLinear) else same_as(module, nn.Linear)
        packed = torch.sparse.to_sparse_semi_structured(module.get_parameter("weight").detach().contiguous())
        made[module].weight = nn.Parameter(packed, requires_grad=False)
    return put(model, made)


def _unfit(module: nn.Module) -> str:
    weight = module.get_parameter("weight").detach()
    if weight.device.type != "cuda":
        return f"on {weight.device}, these tensors are for CUDA devices"
    if weight.dtype not in _DTYPES:
        return f"{weight.dtype}, these tensors are float16 or bfloat16; use model.to(torch.bfloat16)"
    if not semi_structured.fits(*weight.shape):
        return f"{' x '.join(map(str, weight.shape))}, sizes must be multiples of {semi_structured.MULTIPLE}"
    return "" if semi_structured.is_valid(weight) else "not 2:4 along its inputs"
