"""No access outside a buffer and no undefined behaviour in the native kernels, over random shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gossamer.kernels.cpu import build

ROOT = Path(__file__).parents[2]


def runtime() -> str:
    """The address sanitizer of the compiler: python itself must load it first."""
    try:
        command = [*build.compiler(), "-print-file-name=libasan.so"]
    except build.BuildError as error:
        pytest.skip(str(error))
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("this compiler has no libasan.so")
    return str(Path(found).resolve())


@pytest.mark.slow
def test_random_shapes(tmp_path: Path) -> None:
    preload = runtime()
    library = build.build(tmp_path / "sanitized.so", sanitize=True)
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter leaks by itself
        "OMP_WAIT_POLICY": "passive",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    environment.pop("GOSSAMER_CPU", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.sanitized", str(library), "10"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}{done.stderr[-4000:]}"
    assert done.stdout.startswith("clean: ")
