"""Where the GPU benchmarks run, and how they time: captured graphs in turns, on inputs that do not fit the cache."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer import __version__
from gossamer._gpu_timing import Run, milliseconds, sets_of
from gossamer.kernels.gpu.runtime import has_triton, on_gpu


@dataclass
class Stage:
    """A GPU, or with ``dry`` the CPU and shapes so small that everything runs once; nothing is timed then."""

    dry: bool

    @property
    def device(self) -> torch.device:
        """Where tensors are made."""
        return torch.device("cpu" if self.dry else "cuda")

    @functools.cached_property
    def generator(self) -> torch.Generator:
        """Of all random numbers; made when needed, since the process that only reports takes no GPU."""
        return torch.Generator(self.device).manual_seed(0)

    def size(self, real: int, tiny: int) -> int:
        """The real size, or the one of a dry run."""
        return tiny if self.dry else real

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal numbers; never zeros, on which products are faster."""
        return torch.randn(shape, device=self.device, generator=self.generator).to(dtype)

    def sets(self, each: int) -> int:
        """How many sets of inputs of so many bytes exceed the cache."""
        return 1 if self.dry else sets_of(each)

    def kernels(self, *tensors: Tensor) -> bool:
        """Whether Triton kernels run here: on the GPU, or interpreted."""
        interpreted = has_triton() and os.environ.get("TRITON_INTERPRET") == "1"
        return interpreted if self.dry else on_gpu(*tensors)

    def milliseconds(self, sides: Mapping[str, Run], sets: int, *, graphs: bool = True) -> dict[str, float]:
        """Milliseconds of a call: median of rounds in which all sides take turns, each as a graph of all its sets.

        In a dry run every side is called once, and the answer is empty. graphs: replay graphs, else launch.
        """
        if self.dry:
            for run in sides.values():
                run(0)
            return {}
        return milliseconds(sides, sets, graphs=graphs)


def versions() -> dict[str, str]:
    """What figures depend on."""
    told = {"gossamer": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if has_triton():
        import triton

        told["triton"] = triton.__version__
    if torch.cuda.is_available():
        told |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        told["cusparselt"] = str(
            torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None
        )
    return told


def clocks() -> str:
    """What the driver says of clocks and power, if it is asked where nvidia-smi is."""
    query = "clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return "clocks unknown"
    return f"SM clock, memory clock, power, its limit, temperature: {' '.join(done.stdout.split())}"
