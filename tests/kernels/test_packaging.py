"""Wheel and source distribution hold what they must, with and without a compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gossamer.kernels.cpu import build

ROOT = Path(__file__).parents[2]
CPU = "gossamer/kernels/cpu/"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source tree")]


def package(folder: Path, command: str, compiler: str | None = None) -> tuple[Path, str]:
    """Build in a copy of the sources; returns what came out and what was said."""
    pytest.importorskip("setuptools", minversion="70.1")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", ".build-*")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    environment = os.environ | ({"CXX": compiler} if compiler else {})
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next((folder / "dist").iterdir()), done.stderr


def sources() -> set[str]:
    return {f"{CPU}native/{path.name}" for path in build.NATIVE.iterdir()}


def test_a_wheel_holds_the_library_and_its_sources(tmp_path: Path) -> None:
    try:
        command = build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    quick = tmp_path / "c++"  # what is packed does not depend on how well it was optimised
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@" -O0\n')
    quick.chmod(0o755)
    wheel, _ = package(tmp_path, "bdist_wheel", compiler=shlex.quote(str(quick)))
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {f"{CPU}_native.so", f"{CPU}build.py", "gossamer/py.typed"} | sources()


def test_without_a_compiler_the_wheel_is_built_and_says_so(tmp_path: Path) -> None:
    wheel, said = package(tmp_path, "bdist_wheel", compiler="false")
    assert "native CPU kernels were NOT built" in said
    assert "python -m gossamer.kernels.cpu.build" in said
    names = set(zipfile.ZipFile(wheel).namelist())
    assert f"{CPU}_native.so" not in names
    assert names >= sources()


def test_the_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    archive, _ = package(tmp_path, "sdist")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[-1] for name in opened.getnames()}
    assert names >= {"setup.py", f"src/{CPU}build.py"} | {f"src/{name}" for name in sources()}
    assert not [name for name in names if name.endswith(".so")]
