"""The structure of the supports that a run ended with: whether it holds, and what packed forms of it would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..checkpoint import load_model
from ..kernels.semi_structured import is_valid
from ..method import Method
from ..topology import FanInDropGrow, Support, Unstructured
from ..topology.structures import NM, Block, Structure

HEADER = ("weight", "structure", "holds", "bytes packed, 16-bit values", "bytes dense, 16-bit")
_VALUE = 2  # bytes of a float16 or bfloat16
_SIDES = (128, 64, 32, 16, 8, 4, 2)


@dataclass(frozen=True)
class Checked:
    """What was found of one weight. packed: bytes of its packed form, None where there is none; dense: of all entries.

    holds: whether the support has the structure, and the saved weight no entry outside the support.
    """

    weight: str
    structure: str
    holds: bool
    packed: int | None
    dense: int


def name_of(method: object) -> str | None:
    """Name of the structure of a method, None if it has none."""
    own = isinstance(method, Method) and not isinstance(method.structure, Unstructured)
    return method.structure.name if own and isinstance(method, Method) else None


def of_run(method: object, supports: Mapping[str, Support], file: Path) -> list[Checked]:
    """Look at the weights in the checkpoint of a run; nothing to look at without a structure.

    SRigL keeps its fan-in only in the neurons that it keeps, so its structure is no property of a support.
    """
    if not isinstance(method, Method) or name_of(method) is None or isinstance(method.rule, FanInDropGrow):
        return []
    weights = load_model(file)
    return [_checked(name, method.structure, support, weights[name]) for name, support in supports.items()]


def _checked(name: str, structure: Structure, support: Support, weight: Tensor) -> Checked:
    mask = support.mask.cpu()
    holds = structure.is_valid(mask) and not bool((weight.ne(0) & ~mask).any())
    packed = packed_bytes(structure, mask, _VALUE) if holds else None
    return Checked(name, structure.name, holds, packed, mask.numel() * _VALUE)


def packed_bytes(structure: Structure, mask: Tensor, value: int) -> int | None:
    """Bytes of a weight in the form that kernels for its structure hold, with values of so many bytes.

    N:4 with N <= 2 along inputs: two values of every four and two bits for each, once (a transposable one is packed a
    second time for the gradient of the input). Blocks: b x b values and four bytes for each. Others: None.

    >>> import torch
    >>> packed_bytes(NM(2, 4), torch.tensor([[True, True, False, False]] * 4), value=2)
    18
    """
    if isinstance(structure, NM) and structure.m == 4 and structure.n <= 2 and structure.axis == "inputs":
        return mask.numel() // 2 * value + mask.numel() // 8
    if isinstance(structure, Block) and mask.ndim == 2 and structure.shape[0] == structure.shape[1]:
        side = structure.shape[0]
        blocks = F.max_pool2d(mask.float()[None], side, ceil_mode=True).count_nonzero()
        return int(blocks) * (side * side * value + 4)
    return None


def described(checked: list[Checked]) -> dict[str, Any] | None:
    """For result.json: name, whether it holds in all weights, bytes in all (None if a weight has no packed form)."""
    if not checked:
        return None
    packed = [weight.packed for weight in checked]
    return {
        "name": checked[0].structure,
        "holds": all(weight.holds for weight in checked),
        "broken": [weight.weight for weight in checked if not weight.holds],
        "packed_bytes": None if None in packed else sum(size or 0 for size in packed),
        "dense_bytes": sum(weight.dense for weight in checked),
    }


def patterns_in(file: Path) -> dict[str, str]:
    """Name of each weight in a model or training file -> what hardware could make of its zeros, see `pattern_of`.

    Raises:
        CheckpointError: as `checkpoint.load_model`.
    """
    return {name: pattern_of(weight) for name, weight in load_model(file).items() if isinstance(weight, Tensor)}


def pattern_of(weight: Tensor) -> str:
    """The pattern of the non-zeros of a weight (out, in, *kernel), "" if there is none.

    Named as the structures are. "2:4", "2:4 transposable", "2:4 along outputs": at most two in every four consecutive
    entries, at each kernel position. "block B": the largest that fits, of sides that are powers of two up to 128. A
    full or empty weight, and one of less than two dimensions, has none.

    >>> import torch
    >>> pattern_of(torch.tensor([[1.0, 2.0, 0.0, 0.0]] * 4)), pattern_of(torch.eye(4).kron(torch.ones(2, 2)))
    ('2:4, block 2', '2:4 transposable, block 2')
    """
    mask = weight.ne(0)
    if mask.ndim < 2 or bool(mask.all()) or not bool(mask.any()):
        return ""
    by_position = mask.reshape(*mask.shape[:2], -1)
    inputs = is_valid(by_position.movedim(1, -1).flatten(0, -2))
    outputs = is_valid(by_position.movedim(0, -1).flatten(0, -2))
    told = ["2:4 transposable" if outputs else "2:4"] if inputs else ["2:4 along outputs"] * outputs
    side = next((side for side in _SIDES if Block(side).is_valid(mask)), None)
    return ", ".join([*told, *([f"block {side}"] if side else [])])
