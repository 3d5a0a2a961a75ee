"""Processes that train and kill themselves."""

from __future__ import annotations

import json
import subprocess
import sys

from gossamer.experiments.config import RunConfig

# Loading torch takes longer than the training: each process is a fork of one that has loaded and done nothing else.
_CODE = """
import json, os, signal, sys
import torch._dynamo
from gossamer.experiments.config import RunConfig
from gossamer.experiments.train import train
config, ends = RunConfig.from_dict(json.loads(sys.argv[1])), []
for kill in json.loads(sys.argv[2]):
    def progress(update):
        if update.step == kill:
            os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        train(config, resume=True, progress=progress)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


def train_with_kills(config: RunConfig, steps: list[int]) -> list[int]:
    """Train in one process after the other, each resuming; return how each ended.

    steps: at which of its steps every process gets SIGKILL from itself; 0: never.
    """
    command = [sys.executable, "-c", _CODE, json.dumps(config.to_dict()), json.dumps(steps)]
    found: list[int] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found
