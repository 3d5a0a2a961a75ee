"""What ranks must agree on: supports and trainables, broadcast once and checked by content hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import AttachError, SyncError


def active() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def refuse(model: nn.Module) -> None:
    """Raise for wrappers that flatten parameters, and say why."""
    for module in model.modules():
        kind = type(module).__name__
        if kind == "FullyShardedDataParallel":
            raise AttachError("FSDP1 flattens parameters, so a weight's support is lost; use fully_shard (FSDP2)")
        if kind == "DeepSpeedEngine":
            raise AttachError("DeepSpeed flattens parameters, so a weight's support is lost; use DDP or FSDP2")


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor (FSDP2)."""
    return type(tensor).__name__ == "DTensor"


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that lives on this rank; the tensor itself when it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def gather(shard: Tensor, like: Tensor) -> Tensor:
    """The whole tensor from equally sharded parts; `like` is the DTensor that says how. A collective."""
    if not is_sharded(like):
        return shard
    from torch.distributed.tensor import DTensor

    flat = shard.to(torch.uint8) if shard.dtype == torch.bool else shard
    whole = DTensor.from_local(
        flat,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        shape=like.shape,
        stride=like.stride(),
    ).full_tensor()
    return whole.to(shard.dtype)


def shard(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `whole`, cut as the DTensor `like` is; rank 0's values count. A collective."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    flat = whole.to(torch.uint8) if whole.dtype == torch.bool else whole
    part = distribute_tensor(flat, like.device_mesh, like.placements)  # type: ignore[attr-defined]
    return part.to_local().to(whole.dtype)


def broadcast(tensor: Tensor) -> Tensor:
    """Overwrite `tensor` with rank 0's, in place, and return it."""
    if tensor.dtype == torch.bool:
        buffer = tensor.to(torch.uint8)
        dist.broadcast(buffer, src=0)
        return tensor.copy_(buffer.bool())
    dist.broadcast(tensor, src=0)
    return tensor


def check_supports(sites: Mapping[str, Any], step: int) -> None:
    """Raise `SyncError` naming the weights whose supports differ between ranks. A collective."""
    names, device = list(sites), next(iter(sites.values())).parameter.device
    mine = torch.tensor([site.support().digest() for site in sites.values()], dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    different = torch.stack([other != everyone[0] for other in everyone]).any(0)
    if bool(different.any()):
        bad = [name for name, flag in zip(names, different.tolist(), strict=True) if flag]
        ranks = [r for r, other in enumerate(everyone) if bool((other != everyone[0]).any())]
        raise SyncError(
            f"supports differ between ranks at step {step}: {', '.join(bad)} on ranks {ranks} against rank 0; "
            "something changed a support or a weight on one rank only"
        )
