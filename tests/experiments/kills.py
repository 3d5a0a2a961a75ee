"""Processes that train and kill themselves."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

from gossamer.experiments.config import RunConfig

# Text, since a new process finds what is installed, but not what is beside the tests.
_CODE = """
import os, signal
from gossamer.experiments.config import RunConfig
from gossamer.experiments.train import train

def progress(update):
    if update.step == kill:
        os.kill(os.getpid(), signal.SIGKILL)

train(RunConfig.from_dict(values), resume=True, progress=progress)
"""


def fork_server() -> ForkServerContext:
    """How to start processes as forks of one that has loaded all they need: that takes longer than what they train."""
    multiprocessing.set_forkserver_preload(["torch._dynamo", "gossamer.experiments.study.worker"])
    return multiprocessing.get_context("forkserver")


def train_with_kills(config: RunConfig, steps: list[int]) -> list[int | None]:
    """Train in one process after the other, each resuming; return how each ended.

    steps: at which of its steps every process gets SIGKILL from itself; 0: never.
    """
    ends = []
    for kill in steps:
        names = {"values": config.to_dict(), "kill": kill}
        process = fork_server().Process(target=exec, args=(_CODE, names))
        process.start()
        process.join()
        ends.append(process.exitcode)
    return ends
