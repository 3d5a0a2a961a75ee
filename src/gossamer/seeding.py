"""Random numbers that depend on nothing but their key, and the caller's generators left as they were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator_for(seed: int, name: str, event: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its key: the same on every rank and after a resume."""
    return torch.Generator().manual_seed(_digest(seed, name, event))


@contextmanager
def own_random_state(seed: int, name: str, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Inside, the generators of torch, numpy and Python start from a key; afterwards they are as they were."""
    key = _digest(seed, name, "")
    before = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device for device in set(devices) if device.type == "cuda"]):
            torch.manual_seed(key)
            np.random.seed(key % 2**32)
            random.seed(key)
            yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


def _digest(seed: int, name: str, event: str) -> int:
    key = hashlib.blake2b(f"{seed}|{name}|{event}".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") >> 1
