"""Batch order without stored state: every batch is a pure function of (seed, step), so that a resumed run is exact."""

from __future__ import annotations

import functools
import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose seed is a stable digest of `key`: the same on every machine and in every process.

    >>> a, b = keyed_generator("order", 0, 3), keyed_generator("order", 0, 3)
    >>> a.initial_seed() == b.initial_seed() != keyed_generator("order", 3, 0).initial_seed()
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of `n` examples in one epoch: a permutation of 0..n-1, int64.

    >>> sorted(epoch_order(4, seed=0, epoch=7).tolist())
    [0, 1, 2, 3]
    """
    return _cached_order(n, seed, epoch).clone()


@functools.lru_cache(maxsize=8)
def _cached_order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=keyed_generator("order", seed, epoch))


def batch_indices(step: int, batch_size: int, n: int, seed: int) -> Tensor:
    """Return the examples of step `step` (from 0), int64 of shape (batch_size,).

    An epoch is n // batch_size steps; the examples that are left over are dropped, other ones in every epoch.

    Raises:
        ConfigError: `batch_size` is not in 1..n.

    >>> first = torch.cat([batch_indices(t, batch_size=3, n=10, seed=0) for t in range(3)])
    >>> bool((first == epoch_order(10, seed=0, epoch=0)[:9]).all())
    True
    """
    if not 1 <= batch_size <= n:
        raise ConfigError(f"batch_size = {batch_size}: expected 1 to {n}, the number of training examples")
    epoch, place = divmod(step, n // batch_size)
    return _cached_order(n, seed, epoch)[place * batch_size : (place + 1) * batch_size].clone()


def begins_epoch(step: int, accumulate: int, batch_size: int, n: int) -> bool:
    """Whether optimizer step `step` (from 0), of `accumulate` batches each, is the first of a pass over `n` examples.

    >>> [step for step in range(12) if begins_epoch(step, accumulate=1, batch_size=3, n=10)]
    [0, 3, 6, 9]
    """
    before, now = (at * accumulate // max(1, n // batch_size) for at in (step - 1, step))
    return before != now


def token_batch(tokens: Tensor, step: int, batch_size: int, context: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the windows of step `step` and their next tokens, both int64 of shape (batch_size, context).

    Windows start anywhere, drawn independently with replacement.

    Raises:
        ConfigError: `batch_size` is below 1, or the text has no window of `context` + 1 tokens.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: expected at least 1")
    starts = len(tokens) - context
    if starts < 1:
        raise ConfigError(f"context = {context}: the split has only {len(tokens)} tokens; use a shorter context")
    first = torch.randint(starts, (batch_size, 1), generator=keyed_generator("tokens", seed, step))
    window = tokens[(first + torch.arange(context + 1)).to(tokens.device)].long()
    return window[:, :-1], window[:, 1:]


def augment(images: Tensor, step: int, seed: int, pad: int = 4) -> Tensor:
    """Shift every image by up to `pad` pixels (zeros move in) and mirror half of them, as (seed, step) decides.

    images: (n, channels, height, width), normalised, so that zero is the mean colour. Source: He et al. 2016,
    arXiv:1512.03385, section 4.2.
    """
    n, channels, height, width = images.shape
    generator = keyed_generator("augment", seed, step)
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    example, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    places = (example, channel, rows[:, None, :, None], columns[:, None, None, :])
    return F.pad(images, (pad, pad, pad, pad))[tuple(p.to(images.device) for p in places)]
