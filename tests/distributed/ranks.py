"""Two gloo processes that run what a module's `checks()` gives, one module after the other.

They are started once for all modules: until torch, its compiler and FSDP are loaded takes as long as most checks.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 500  # seconds for the checks of one module


class Ranks:
    """The processes; `folder` must be new. Close it with `stop`."""

    def __init__(self, folder: Path):
        self._folder, self._processes = folder, list[subprocess.Popen[str]]()
        for rank in range(2):
            command = [sys.executable, "-m", "tests.distributed.ranks", str(folder / "store"), str(rank)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with open(self._errors(rank), "w") as errors:
                self._processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
                    )
                )

    def found(self, module: str) -> dict[str, Any]:
        """What every check of a module of this package found: name -> [what rank 0 found, what rank 1 found]."""
        out, end = self._folder / f"{module}.json", time.monotonic() + LIMIT
        for process in self._processes if not out.exists() else ():
            assert process.stdin is not None
            process.stdin.write(f"{json.dumps([module, str(out)])}\n")
            process.stdin.flush()
        while not out.exists():
            alive = all(process.poll() is None for process in self._processes)
            said = "\n".join(self._errors(rank).read_text()[-3000:] for rank in range(2))
            assert alive, said
            assert time.monotonic() < end, said
            time.sleep(0.05)
        return json.loads(out.read_text())

    def stop(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def _errors(self, rank: int) -> Path:
        return self._folder / f"errors-{rank}.txt"


def answers(found: dict[str, Any], check: str) -> list[dict[str, Any]]:
    """What each rank found, and no error."""
    for rank in found[check]:
        assert "error" not in rank, rank["error"]
    return found[check]


def main() -> None:
    """Answer the requests on standard input; rank 0 writes the answers."""
    import torch
    import torch.distributed as dist

    store, rank = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for line in sys.stdin:
        module, out = json.loads(line)
        found: dict[str, list[Any]] = {}
        for name, check in importlib.import_module(f"{__package__}.{module}").checks().items():
            torch.manual_seed(rank)  # global seeds differ on purpose
            try:
                mine = check()
            except Exception:
                mine = {"error": traceback.format_exc()}
            everyone: list[Any] = [None, None]
            dist.all_gather_object(everyone, mine)
            found[name] = everyone
        if rank == 0:
            Path(f"{out}.part").write_text(json.dumps(found))
            os.replace(f"{out}.part", out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
