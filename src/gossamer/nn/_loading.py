"""What is loaded into a sparse layer, looked through before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..kernels import sparse


def loadable(
    own: Mapping[str, Tensor],
    matrix: tuple[int, int],
    taps: int,
    state: Mapping[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    problems: list[str],
) -> tuple[int, int] | None:
    """The lengths of values and index that a layer has to hold next; None, after writing why not, to load nothing.

    own: name -> tensor of the layer. The arguments from `state` on are those of ``_load_from_state_dict``. Whether a
    missing bias or an unknown key is an error is known to torch alone, which tells after it has loaded the others.
    """
    saved = {name: state[prefix + name] for name in own if prefix + name in state}
    problem = misfit(saved, own, matrix, taps, metadata.get("assign_to_params_buffers", False))
    if problem:
        problems.append(f"sparse layer {prefix.rstrip('.') or 'at the root'}: {problem}")
        return None
    return len(saved.get("values", own["values"])), len(saved.get("index", own["index"]))


def misfit(
    saved: Mapping[str, Any], own: Mapping[str, Tensor], matrix: tuple[int, int], taps: int, assign: bool
) -> str:
    """Why saved tensors cannot be those of a layer, or ''.

    saved, own: name -> tensor, of "values", "index" and "bias" those that there are. assign: they take the place of the
    layer's own, instead of being copied into them.
    """
    if not saved.keys() & {"values", "index"}:
        return ""
    if not saved.keys() >= {"values", "index"}:
        return "values and index belong together, one of them is missing"
    for name, value in saved.items():
        if not isinstance(value, Tensor):
            return f"{name} is a {type(value).__name__}; expected a tensor, e.g. torch.as_tensor({name})"
    values, index, bias = saved["values"], saved["index"], saved.get("bias")
    if values.ndim != 1 or not values.is_floating_point():
        return f"values are {values.dtype} of shape {tuple(values.shape)}; expected a 1-D floating point tensor"
    if bias is not None and "bias" in own and bias.shape != own["bias"].shape:
        return f"bias has shape {tuple(bias.shape)}, the layer's has {tuple(own['bias'].shape)}"
    absent = [name for name, value in saved.items() if value.is_meta and (assign or not own.get(name, value).is_meta)]
    if absent and not (assign and len(absent) == len(saved)):
        return f"{', '.join(absent)} on the meta device, where there are no numbers to load"
    try:
        if index.is_meta:
            return _wrong_size(index, len(values), matrix, taps)
        sparse.check(index.cpu(), matrix, len(values), taps)
    except ConfigError as error:
        return str(error)
    return ""


def _wrong_size(index: Tensor, count: int, matrix: tuple[int, int], taps: int) -> str:
    """Of an index of which there is a size only."""
    size = sparse.index_bytes(matrix, count, taps)
    if tuple(index.shape) == (size,):
        return ""
    return (
        f"index has shape {tuple(index.shape)}; that of {count} values in a {matrix[0]} x {matrix[1]} matrix has {size}"
    )
